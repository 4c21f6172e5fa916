from tests.integration.test_email_jobs_selection import *  # noqa: F403
