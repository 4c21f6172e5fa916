from tests.integration.test_projector_recent_events import *  # noqa: F403
