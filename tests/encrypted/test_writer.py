from tests.integration.test_writer import *  # noqa: F403
