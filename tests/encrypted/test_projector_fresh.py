from tests.integration.test_projector_fresh import *  # noqa: F403
