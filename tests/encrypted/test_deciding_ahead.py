from tests.integration.test_deciding_ahead import *  # noqa: F403
