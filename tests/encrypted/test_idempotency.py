from tests.api.test_idempotency import *  # noqa: F403
