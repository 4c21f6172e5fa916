from tests.integration.test_email_jobs_turns import *  # noqa: F403
