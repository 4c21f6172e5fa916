"""Job settings: the default jobs, a squad's own, what is invalid, and the secrets of agents."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from service.commands import DefineJob, SetPolicy
from service.job_spec import BUILT_IN_TASKS, JobSpec, merge_job
from service.scheduling.job_tasks import TASKS
from service.settings import Settings, SettingsError, read
from tests.unit.stories import given

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_SCHEDULES = {
    "email_poll": "*/5 * * * *",
    "email_classify": "*/10 * * * *",
    "email_respond": "*/15 * * * *",
    "status_update": "* * * * *",
    "conflict_check": "*/2 * * * *",
    "token_monitor": "*/5 * * * *",
    "token_reset": "0 0 * * *",
}
KEY = base64.b64encode(b"a key that nobody may see").decode()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("SQUAD_AGENTS", "SQUAD_JOBS", "SQUAD_TIMEZONE", "SQUAD_RESET_HOUR", "SQUAD_CONFIG"):
        monkeypatch.delenv(variable, raising=False)


def settings(toml: str, tmp_path: Path) -> Settings:
    path = tmp_path / "squad.toml"
    path.write_text(toml, encoding="utf-8")
    return read(path)


def error_of(toml: str, tmp_path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(toml, tmp_path)
    return str(caught.value)


class TestDefaults:
    def test_defaults_are_the_seven_jobs_of_the_seed_with_its_schedules(self) -> None:
        specs = read().job_specs()
        assert {name: spec.cron for name, (_, spec) in specs.items()} == DEFAULT_SCHEDULES
        assert {source for source, _ in specs.values()} == {"default"}
        assert all(spec.task == name for name, (_, spec) in specs.items())

    def test_default_jobs_call_the_seeds_agent_with_the_seeds_tokens(self) -> None:
        specs = read().job_specs()
        calling = {name: spec.tokens for name, (_, spec) in specs.items() if spec.agent == "email_agent"}
        assert calling == {"email_poll": 1_000, "email_classify": 0, "email_respond": 0}

    def test_defaults_follow_the_configured_reset_hour_and_time_zone(self, tmp_path: Path) -> None:
        specs = settings('reset_hour = 6\ntimezone = "Europe/Berlin"', tmp_path).job_specs()
        assert specs["token_reset"][1].cron == "0 6 * * *"
        assert {spec.timezone for _, spec in specs.values()} == {"Europe/Berlin"}

    def test_defaults_follow_the_policy_in_the_log_when_none_is_configured(self) -> None:
        policy = given(SetPolicy(reset_hour=6, timezone="Europe/Berlin")).squad.policy
        specs = read().job_specs(policy)
        assert specs["token_reset"][1].cron == "0 6 * * *"
        assert {spec.timezone for _, spec in specs.values()} == {"Europe/Berlin"}

    def test_defaults_ignore_the_policy_in_the_log_when_its_time_zone_is_unknown(self) -> None:
        specs = read().job_specs(given().squad.policy.replaced(reset_hour=6, timezone="Mars/Olympus"))
        assert specs["token_reset"][1].cron == "0 0 * * *"
        assert {spec.timezone for _, spec in specs.values()} == {"UTC"}

    def test_every_built_in_task_has_a_default_job(self) -> None:
        assert set(BUILT_IN_TASKS) == set(TASKS) == set(DEFAULT_SCHEDULES)


class TestConfiguredJobs:
    def test_section_overrides_a_default_job_field_by_field(self, tmp_path: Path) -> None:
        source, spec = settings("[jobs.email_poll]\nretries = 3", tmp_path).job_specs()["email_poll"]
        assert source == "settings"
        assert (spec.retries, spec.task, spec.cron) == (3, "email_poll", "*/5 * * * *")

    def test_section_can_disable_a_default_job(self, tmp_path: Path) -> None:
        spec = settings("[jobs.email_poll]\nenabled = false", tmp_path).job_specs()["email_poll"][1]
        assert not spec.enabled

    def test_interval_replaces_cron_and_endpoint_replaces_task(self, tmp_path: Path) -> None:
        toml = '[jobs.email_poll]\nevery = "30s"\nendpoint = "/mine"'
        spec = settings(toml, tmp_path).job_specs()["email_poll"][1]
        assert (spec.cron, spec.every, spec.task, spec.endpoint) == (None, 30.0, None, "/mine")

    def test_new_job_is_added_in_the_squads_time_zone(self, tmp_path: Path) -> None:
        toml = (
            'timezone = "Asia/Kathmandu"\n'
            '[jobs.report]\nagent = "quote_agent"\nendpoint = "/report"\ncron = "0 8 * * MON-FRI"'
        )
        specs = settings(toml, tmp_path).job_specs()
        assert specs.keys() == {*DEFAULT_SCHEDULES, "report"}
        assert specs["report"] == (
            "settings",
            JobSpec(
                agent="quote_agent", endpoint="/report", cron="0 8 * * MON-FRI", timezone="Asia/Kathmandu"
            ),
        )

    def test_job_can_have_its_own_time_zone(self, tmp_path: Path) -> None:
        toml = '[jobs.token_monitor]\ntimezone = "Africa/Cairo"'
        assert settings(toml, tmp_path).job_specs()["token_monitor"][1].timezone == "Africa/Cairo"

    def test_merge_keeps_both_cron_and_interval_so_that_they_are_rejected(self) -> None:
        assert merge_job({"cron": "* * * * *"}, {"cron": "1 * * * *", "every": 2}) == {
            "cron": "1 * * * *",
            "every": 2,
        }


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("500ms", 0.5),
            ("2s", 2),
            ("1.5 m", 90),
            ("5m", 300),
            ("1h", 3_600),
            ("7d", 604_800),
            (2, 2),
            (0.5, 0.5),
        ],
    )
    def test_duration_is_text_with_a_unit_or_seconds(self, text: Any, seconds: float) -> None:
        assert JobSpec(task="status_update", every=text).every == seconds


VALID_JOB = {"agent": '"a"', "endpoint": '"/x"', "cron": '"* * * * *"'}


def job_section(**fields: str) -> str:
    """The section of a job that is valid except for these fields."""
    lines = {name: value for name, value in {**VALID_JOB, **fields}.items() if value}
    return "[jobs.mine]\n" + "\n".join(f"{name} = {value}" for name, value in lines.items())


class TestInvalidJobs:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            (
                {"cron": '"60 * * * *"'},
                "jobs.mine.cron is '60 * * * *': is not a cron expression: bad minute",
            ),
            ({"cron": '"* * * *"'}, "jobs.mine.cron is '* * * *': must have five fields: minute, hour,"),
            (
                {"cron": '"0 0 30 2 *"'},
                "jobs.mine.cron is '0 0 30 2 *': is not a cron expression: bad day-of-m",
            ),
            ({"cron": '"0 0 */31 2 1#5"'}, "jobs.mine.cron is '0 0 */31 2 1#5': there is no such day"),
            ({"cron": '"0 9 * * *\\n"'}, "jobs.mine.cron is '0 9 * * *\\n': must be five fields on one"),
            (
                {"cron": '"*/5 2 29 3 */7"', "timezone": '"Europe/Berlin"'},
                "jobs.mine: cron: no clock in Europe/Berlin shows such a time",
            ),
            ({"cron": "5"}, "jobs.mine.cron is 5: "),
            (
                {"timezone": '"Berlin"'},
                "jobs.mine.timezone is 'Berlin': must be the name of an IANA time zone",
            ),
            (
                {"timezone": '"../../etc/passwd"'},
                "jobs.mine.timezone is '../../etc/passwd': must be the name",
            ),
            ({"agent": '""'}, "jobs.mine.agent is '': "),
            ({"agent": '"a\\nb"'}, "jobs.mine.agent is 'a\\nb': must be one line of text"),
            (
                {"cron": "", "every": '"soon"'},
                "jobs.mine.every is 'soon': must be a duration such as 500ms",
            ),
            ({"cron": "", "every": '"1ms"'}, "jobs.mine.every is '1ms': "),
            ({"cron": "", "every": "0"}, "jobs.mine.every is 0: "),
            ({"cron": "", "every": "nan"}, "jobs.mine.every is nan: "),
            (
                {"endpoint": "", "task": '"dance"'},
                "jobs.mine.task is 'dance': input should be 'email_poll'",
            ),
            ({"tokens": "-1"}, "jobs.mine.tokens is -1: "),
            ({"tokens": '"many"'}, "jobs.mine.tokens is 'many': "),
            ({"timeout_seconds": "0"}, "jobs.mine.timeout_seconds is 0: "),
            ({"timeout_seconds": "inf"}, "jobs.mine.timeout_seconds is inf: "),
            ({"retries": "21"}, "jobs.mine.retries is 21: "),
            ({"overlap": '"never"'}, "jobs.mine.overlap is 'never': input should be 'skip', 'buffer_one'"),
            ({"catch_up_seconds": "0"}, "jobs.mine.catch_up_seconds is 0: "),
            ({"jitter_seconds": "-1"}, "jobs.mine.jitter_seconds is -1: "),
            ({"pause_on_failure": '"yes"'}, "jobs.mine.pause_on_failure is 'yes': "),
            ({"enabled": "1"}, "jobs.mine.enabled is 1: "),
            ({"colour": '"red"'}, "jobs.mine.colour is not a setting"),
            ({"every": '"2s"'}, "jobs.mine: cron, every: name exactly one of them"),
            ({"cron": ""}, "jobs.mine: cron, every: name exactly one of them"),
            ({"task": '"email_poll"'}, "jobs.mine: endpoint, task: name exactly one of them"),
            ({"endpoint": ""}, "jobs.mine: endpoint, task: name exactly one of them"),
            ({"agent": ""}, "jobs.mine: agent: name the agent that is to be called"),
            (
                {"agent": "", "endpoint": "", "task": '"email_poll"'},
                "jobs.mine: agent: name the agent that is to be called",
            ),
        ],
    )
    def test_error_names_the_job_and_the_field(
        self, fields: dict[str, str], expected: str, tmp_path: Path
    ) -> None:
        assert error_of(job_section(**fields), tmp_path).startswith(expected)

    @pytest.mark.parametrize(
        "endpoint",
        [
            "x",
            "http://elsewhere.example/x",
            "//elsewhere.example/x",
            "/../x",
            "/a/../../x",
            "/a/./x",
            "/%2e%2E/x",
            "/a/%2e./x",
            "/a b",
            "/a#b",
            "/?x",
            "",
        ],
    )
    def test_endpoint_that_is_no_path_below_the_agents_url_is_rejected(
        self, endpoint: str, tmp_path: Path
    ) -> None:
        error = error_of(job_section(endpoint=f'"{endpoint}"'), tmp_path)
        assert (
            error
            == f"jobs.mine.endpoint is {endpoint!r}: must be a path at the agent's URL, such as"
            + (" /api/agents/email/poll")
        )

    @pytest.mark.parametrize("endpoint", ["/", "/x", "/a/b?since=../x", "/a..b/...", "/ü"])
    def test_endpoint_below_the_agents_url_is_accepted(self, endpoint: str, tmp_path: Path) -> None:
        spec = settings(job_section(endpoint=f'"{endpoint}"'), tmp_path).job_specs()["mine"][1]
        assert spec.endpoint == endpoint

    def test_all_errors_are_reported_at_once(self, tmp_path: Path) -> None:
        toml = "[jobs.email_poll]\nretries = 99\ntokens = -5\n" + job_section(timezone='"Berlin"')
        assert [line.split(" is ")[0] for line in error_of(toml, tmp_path).splitlines()] == [
            "jobs.email_poll.tokens",
            "jobs.email_poll.retries",
            "jobs.mine.timezone",
        ]

    def test_section_that_is_no_table_is_rejected(self, tmp_path: Path) -> None:
        assert error_of("jobs = 3", tmp_path).startswith("jobs (SQUAD_JOBS) is 3: ")
        assert error_of("[jobs]\nmine = 3", tmp_path).startswith("jobs.mine is 3: ")


class TestSecrets:
    AGENT = '[agents.ann]\nrole = "x"\nsecret = "{}"'

    @pytest.mark.parametrize("prefix", ["", "whsec_"])
    def test_secret_is_available_for_signing(self, prefix: str, tmp_path: Path) -> None:
        assert settings(self.AGENT.format(prefix + KEY), tmp_path).secrets() == {"ann": prefix + KEY}

    def test_secret_is_not_shown_with_the_settings(self, tmp_path: Path) -> None:
        squad = settings(self.AGENT.format(KEY), tmp_path)
        assert KEY not in f"{squad!r} {squad} {squad.agents['ann']!r} {squad.model_dump()} "
        assert KEY not in squad.model_dump_json()
        assert KEY not in repr(squad.registrations(lambda _: None))

    def test_secret_is_in_no_job_definition(self, tmp_path: Path) -> None:
        for name, (source, spec) in settings(self.AGENT.format(KEY), tmp_path).job_specs().items():
            command = DefineJob(name=name, source=source, definition=spec.definition())
            assert KEY not in repr(command)

    @pytest.mark.parametrize("secret", ["not base64!", "whsec_", "", "whsec_%%%", "YWJ"])
    def test_invalid_secret_is_rejected_without_being_shown(self, secret: str, tmp_path: Path) -> None:
        error = error_of(self.AGENT.format(secret), tmp_path)
        assert error == "agents.ann.secret is not valid: must be base64, with or without the prefix whsec_"

    @pytest.mark.parametrize(
        "agents", [f'[{{"secret": "{KEY}"}}]', f'{{"ann": ["{KEY}"]}}', f'{{"ann": {{"secret": "{KEY}"']
    )
    def test_secret_in_an_invalid_variable_is_not_shown(
        self, agents: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SQUAD_AGENTS", agents)
        with pytest.raises(SettingsError) as caught:
            read()
        assert KEY not in f"{caught.value} {caught.value.__cause__}"
