from tests.api.test_stream import *  # noqa: F403
