from tests.integration.test_restore import *  # noqa: F403
