"""Settings for the unit tests only."""

import pytest
from hypothesis import settings

# Assertions inside the harness then show what they compared, like those in tests.
pytest.register_assert_rewrite("tests.unit.stories")

# The duration of one example says more about the machine than about the code.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
