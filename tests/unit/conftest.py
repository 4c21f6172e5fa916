"""Makes the assertions inside the harness tell what they compared, as those in tests do."""

import pytest

pytest.register_assert_rewrite("tests.unit.support")
