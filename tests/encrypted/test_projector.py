from tests.integration.test_projector import *  # noqa: F403
