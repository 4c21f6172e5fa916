from tests.api.test_batch import *  # noqa: F403
