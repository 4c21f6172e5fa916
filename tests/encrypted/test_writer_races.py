from tests.integration.test_writer_races import *  # noqa: F403
