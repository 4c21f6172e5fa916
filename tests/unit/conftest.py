"""Settings of the unit tests' own."""

import pytest
from hypothesis import settings

# The assertions inside the harness tell what they compared, as those in tests do.
pytest.register_assert_rewrite("tests.unit.support")

# How long one example takes says more about the machine than about the code.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
