from tests.integration.test_email_jobs import *  # noqa: F403
