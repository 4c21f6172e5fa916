from tests.api.test_tasks_and_emails import *  # noqa: F403
