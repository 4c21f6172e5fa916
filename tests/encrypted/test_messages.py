from tests.api.test_messages import *  # noqa: F403
