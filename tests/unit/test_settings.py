"""Settings: which source wins, how mistakes are reported, and what becomes policy."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from projections.agents import AgentRow
from service import settings
from service.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.settings import Settings

TOML = "port = 4001\ndaily_tokens = 10\nreset_hour = 3\n"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and an environment without settings."""
    for name in os.environ:
        if name.startswith("SQUAD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _read(text: str | None = None, **flags: Any) -> Settings:
    if text is not None:
        Path("squad.toml").write_text(text)
    return settings.read(**flags)


def _error_message(text: str | None = None, **flags: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        _read(text, **flags)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_defaults_are_those_of_the_interface() -> None:
    found = _read()
    assert (found.dsn, found.listen_dsn, found.squad_schema, found.data) == (
        None,
        None,
        "squad",
        Path(".squad"),
    )
    assert (found.host, found.port, found.agents_url) == ("127.0.0.1", 3001, "http://localhost:3002")
    assert (found.daily_tokens, found.reset_hour, found.timezone) == (100_000, 0, "UTC")
    assert (found.conflict_window_seconds, found.operation_timeout_seconds) == (30, 60)
    assert (found.idle_after_minutes, found.offline_after_minutes) == (10, 60)


def test_flags_override_the_environment_which_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUAD_PORT", "4002")
    monkeypatch.setenv("SQUAD_DAILY_TOKENS", "20")
    found = _read(TOML, port=4003)
    assert (found.port, found.daily_tokens, found.reset_hour, found.host) == (4003, 20, 3, "127.0.0.1")


def test_flag_that_is_not_given_overrides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAD_DSN", "dbname=x")
    assert _read(dsn=None).dsn == "dbname=x"


def test_file_that_was_read_does_not_affect_settings_made_without_it() -> None:
    _error_message(TOML + "no_setting = 1\n")
    assert settings.Settings().port == 3001
    assert _read(TOML).port == 4001
    assert settings.Settings().port == 3001


def test_data_flag_overrides_every_dsn_except_that_of_a_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUAD_DSN", "dbname=x")
    monkeypatch.setenv("SQUAD_LISTEN_DSN", "dbname=x")
    found = _read(data=Path("here"))
    assert (found.dsn, found.listen_dsn, found.data) == (None, None, Path("here"))
    assert _read(data=Path("here"), dsn="dbname=y").dsn == "dbname=y"
    monkeypatch.setenv("SQUAD_DATA", "there")
    assert _read().dsn == "dbname=x"


def test_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAD_PORT", "")
    assert _read(TOML).port == 4001


def test_variables_of_a_kubernetes_service_named_squad_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUAD_PORT", "tcp://10.96.0.17:3001")
    monkeypatch.setenv("SQUAD_PORT_3001_TCP", "tcp://10.96.0.17:3001")
    monkeypatch.setenv("SQUAD_SERVICE_PORT", "3001")
    assert _read(TOML).port == 4001
    assert settings.Settings().port == 3001
    assert settings.misspelt() == []
    monkeypatch.setenv("SQUAD_PORT", "tcp://[fd00::17]:3001")
    assert _read(TOML).port == 4001
    monkeypatch.setenv("SQUAD_PORT", "tcp://3001")
    assert "SQUAD_PORT" in _error_message(TOML)


def test_file_is_that_of_the_flag_else_the_variable_else_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for number in (1, 2, 3):
        (folder / f"{number}.toml").write_text(f"port = {number}")
    (folder / "3.toml").rename("squad.toml")
    assert settings.read().port == 3
    monkeypatch.setenv("SQUAD_CONFIG", str(folder / "2.toml"))
    assert settings.read().port == 2
    assert settings.read(folder / "1.toml").port == 1


def test_every_variable_of_the_interface_equals_its_setting_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {
        "dsn": "dbname=a",
        "listen_dsn": "dbname=b",
        "schema": "other",
        "data": "elsewhere",
        "host": "::1",
        "port": "80",
        "agents_url": "http://agents.test",
        "daily_tokens": "5",
        "reset_hour": "23",
        "timezone": "Europe/Berlin",
        "conflict_window_seconds": "1.5",
        "operation_timeout_seconds": "2.5",
        "idle_after_minutes": "3",
        "offline_after_minutes": "4",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"SQUAD_{name.upper()}", value)
    from_environment = _read()
    for name in values:
        monkeypatch.delenv(f"SQUAD_{name.upper()}")
    from_file = _read("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    assert from_environment == from_file
    assert from_file.squad_schema == "other"
    assert str(from_file.data) == "elsewhere"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("port", "65536", "less than or equal to 65535"),
        ("port", "http", "valid integer"),
        ("schema", "Bad-Name", "[a-z_]"),
        ("dsn", "nonsense", "must be a libpq connection string or URI"),
        ("listen_dsn", "host", "must be a libpq connection string or URI"),
        ("dsn", "host=\udcff", "must be UTF-8"),
        ("listen_dsn", "host=h connect_timeout=soon", "bad value for connect_timeout: 'soon'"),
        ("agents_url", "ftp://x", "must be an http or https URL"),
        ("daily_tokens", "-1", "greater than or equal to 0"),
        ("daily_tokens", "1e30", "valid integer"),
        ("reset_hour", "24", "less than or equal to 23"),
        ("timezone", "Mars/Olympus", "must be the name of an IANA time zone, such as Europe/Berlin"),
        ("conflict_window_seconds", "0.09", "greater than or equal to 0.1"),
        ("operation_timeout_seconds", "0", "greater than or equal to 0.1"),
        ("operation_timeout_seconds", "1e9", "less than or equal to 604800"),
        ("idle_after_minutes", "soon", "valid number"),
        ("offline_after_minutes", "-5", "greater than 0"),
        ("log_format", "xml", "'console' or 'json'"),
        ("insecure", "perhaps", "valid boolean"),
        ("key_requests_per_second", "-1", "greater than or equal to 0"),
        ("address_requests_per_second", "inf", "finite number"),
        ("max_streams", "0", "greater than or equal to 1"),
        ("max_streams_per_key", "many", "valid integer"),
        ("trusted_proxies", "the proxy", "must be addresses or networks, such as 10.0.0.5 or 10.0.0.0/24"),
        ("trusted_proxies", "10.0.0.1/8", "must be addresses or networks, such as 10.0.0.5 or 10.0.0.0/24"),
    ],
)
def test_invalid_variable_is_reported_with_its_name_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"SQUAD_{name.upper()}", value)
    message = _error_message()
    assert message.startswith(f"{name} (SQUAD_{name.upper()}) is {value!r}: ")
    assert allowed in message


@pytest.mark.parametrize(
    "dsn", ["postgresql://ada:s3cret@[host/db", "host=db pasword=s3cret", "password='s3cret"]
)
def test_invalid_dsn_that_may_contain_a_password_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setenv("SQUAD_LISTEN_DSN", dsn)
    message = _error_message()
    assert message == (
        "listen_dsn (SQUAD_LISTEN_DSN) is not valid: must be a libpq connection string or URI"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 3001", "prot is not a setting; did you mean port?"),
        ("daily_token = 5", "daily_token is not a setting; did you mean daily_tokens?"),
        ('[job.mine]\ncron = "* * * * *"', "job is not a setting; did you mean jobs?"),
        ("colour = 3", "colour is not a setting"),
        ("port = 65536", "port (SQUAD_PORT) is 65536: input should be less than or equal to 65535"),
        ("[budget]\nagent_limit = 5", "budget.agent_limit is not a setting"),
        (
            "[budget.agent_limits]\nada = -5",
            "budget.agent_limits.ada is -5: input should be greater than or",
        ),
        (
            '[budget.agent_limits]\nada = "much"',
            "budget.agent_limits.ada is 'much': input should be a valid int",
        ),
        ("[agents.ada]\npriority = 1", "agents.ada.role is missing"),
        ('[agents.ada]\nrole = "w"\nurl = "x"', "agents.ada.url is 'x': must be an http or https URL"),
        ('[agents.ada]\nrole = "w"\ncolor = "x"', "agents.ada.color is not a setting"),
        ("port = ", "squad.toml is not valid TOML"),
        ("port = 1\nport = 2", "squad.toml is not valid TOML"),
        ("port = true", "port (SQUAD_PORT) is True: must be a number, not true or false"),
        (
            "idle_after_minutes = true",
            "idle_after_minutes (SQUAD_IDLE_AFTER_MINUTES) is True: must be a number",
        ),
        ('[agents.ada]\nrole = "w"\npriority = false', "agents.ada.priority is False: must be a number"),
        ("[budget.agent_limits]\nada = true", "budget.agent_limits.ada is True: must be a number"),
        ('dsn = ""', "dsn (SQUAD_DSN) is '': must name a database"),
        ('data = ""', "data (SQUAD_DATA) is '': must name a file or folder"),
        ("insecure = 1", "insecure (SQUAD_INSECURE) is 1: must be true or false, not a number"),
        (
            "encrypt_payloads = 0.0",
            "encrypt_payloads (SQUAD_ENCRYPT_PAYLOADS) is 0.0: must be true or false",
        ),
        ("port = 3001.0", "port (SQUAD_PORT) is 3001.0: must be a whole number, without a decimal point"),
        ("daily_tokens = 1e5", "daily_tokens (SQUAD_DAILY_TOKENS) is 100000.0: must be a whole number"),
        ('[agents.ada]\nrole = "w"\npriority = 1.0', "agents.ada.priority is 1.0: must be a whole number"),
        ("[budget.agent_limits]\nada = 5.0", "budget.agent_limits.ada is 5.0: must be a whole number"),
        (
            "trusted_proxies = [5]",
            "trusted_proxies (SQUAD_TRUSTED_PROXIES) is [5]: must be addresses or net",
        ),
        (f"daily_tokens = {'9' * 5_000}", "squad.toml is not valid TOML: Exceeds the limit"),
        (f"port = {'[' * 9_000}{']' * 9_000}", "squad.toml is nested too deep"),
        (
            f"port{'.x' * 9_000} = 1",
            "port (SQUAD_PORT) is nested too deep: input should be a valid integer",
        ),
    ],
)
def test_invalid_entry_in_the_file_is_reported_with_its_path(text: str, message: str) -> None:
    assert _error_message(text).startswith(message)


def test_variable_with_a_misspelt_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    valid = ("SQUAD_CONFIG", "SQUAD_SCHEMA", "squad_port", "SQUAD_AGENTS")
    unrelated = (
        "SQUAD_URL",
        "SQUAD_API_KEY",
        "SQUAD_TEST_DSN",
        "SQUAD_SERVICE_HOST",
        "SQUAD_PORT_3001_TCP",
    )
    for name in (*valid, *unrelated, "SQUAD_ENCRYPT_PAYLOAD", "SQUAD_PROT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SQUAD_PORTS", "")
    assert settings.misspelt() == [
        "SQUAD_ENCRYPT_PAYLOAD is not a setting and is ignored; did you mean SQUAD_ENCRYPT_PAYLOADS?",
        "SQUAD_PROT is not a setting and is ignored; did you mean SQUAD_PORT?",
    ]


def test_tilde_in_a_path_becomes_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    found = _read('data = "~/squad"\ncheckpoint_key = "~/key"')
    assert (found.data, found.checkpoint_key) == (Path("/home/ada/squad"), Path("/home/ada/key"))
    assert _read(data=Path("~")).data == Path("/home/ada")


def test_tilde_of_an_unknown_user_is_reported() -> None:
    message = _error_message('data = "~nobody-at-all/squad"')
    assert "data (SQUAD_DATA) is '~nobody-at-all/squad': must not begin with" in message


def test_every_invalid_setting_is_reported_on_its_own_line() -> None:
    with pytest.raises(SettingsError) as raised:
        _read("port = -1\nreset_hour = 99\nprot = 1")
    assert len(str(raised.value).splitlines()) == 3


def test_long_value_is_shortened_in_the_message() -> None:
    message = _error_message(f'timezone = "{"x" * 5_000}"')
    assert len(message) < 300


def test_variable_that_should_be_json_but_is_not_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAD_BUDGET", "much")
    assert _error_message() == "SQUAD_BUDGET is 'much': must be a JSON object"


def test_variable_that_is_nested_too_deep_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAD_BUDGET", "[" * 9_000)
    assert _error_message() == "a setting is nested too deep"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_folder_or_pipe_in_place_of_the_file_is_reported_at_once(
    make: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder / "squad.toml")
    assert _error_message() == "the configuration file squad.toml is not a regular file"
    monkeypatch.setenv("SQUAD_CONFIG", str(folder / "squad.toml"))
    assert _error_message() == f"the configuration file {folder}/squad.toml is not a regular file"


def test_missing_or_binary_file_is_reported(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        settings.read(folder / "nowhere.toml")
    (folder / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"binary\.toml is not valid TOML"):
        settings.read(folder / "binary.toml")


def test_unreachable_file_is_reported_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = folder / ("x" * 300)
    message = f"the configuration file {unreachable} cannot be read: File name too long"
    with pytest.raises(SettingsError) as raised:
        settings.read(unreachable)
    assert str(raised.value) == message
    monkeypatch.setenv("SQUAD_CONFIG", str(unreachable))
    assert _error_message() == message
    (folder / "file").touch()
    with pytest.raises(SettingsError, match="does not exist"):
        settings.read(folder / "file" / "squad.toml")


def test_file_in_a_folder_without_permission_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert _error_message() == "the configuration file squad.toml cannot be read: Permission denied"


def test_only_settings_that_were_set_become_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _read().policy().model_fields_set == set()
    monkeypatch.setenv("SQUAD_RESET_HOUR", "0")
    policy = _read("daily_tokens = 100000\n[budget.agent_limits]\nada = 5\n").policy()
    assert policy.model_fields_set == {"reset_hour", "daily_tokens", "agent_limits"}
    assert policy.agent_limits == {"ada": 5}


def test_empty_section_of_agent_limits_sets_no_limits() -> None:
    assert _read("[budget.agent_limits]\n").policy().agent_limits == {}
    assert _read("[budget]\n").policy().model_fields_set == set()


def test_agents_in_the_file_are_registered() -> None:
    [ada, bob] = _read(
        '[agents.ada]\nrole = "writer"\nurl = "http://a.test"\npriority = 5\n[agents.bob]\nrole = "editor"'
    ).registrations(lambda _: None)
    assert (ada.name, ada.role, ada.url, ada.priority) == ("ada", "writer", "http://a.test", 5)
    assert (bob.name, bob.role, bob.url, bob.priority) == ("bob", "editor", None, 0)


def test_agent_fields_that_the_file_omits_stay_as_registered() -> None:
    """An agent's secret can only be set in the file, and there the role is mandatory."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    row = AgentRow("1", "ada", "reader", "idle", moment, "http://a.test", 5, 0, moment, 1)
    [kept] = _read('[agents.ada]\nrole = "writer"').registrations({"ada": row}.get)
    assert (kept.role, kept.url, kept.priority) == ("writer", "http://a.test", 5)
    [changed] = _read('[agents.ada]\nrole = "writer"\npriority = 0').registrations({"ada": row}.get)
    assert (changed.url, changed.priority) == ("http://a.test", 0)
    # Earlier versions accepted such a URL. It must not prevent a start.
    old = row.replaced(url="http://a.test:0")
    [kept] = _read('[agents.ada]\nrole = "writer"').registrations({"ada": old}.get)
    assert (kept.role, kept.url, kept.priority) == ("writer", "http://a.test:0", 5)


def test_lists_are_comma_separated_in_the_environment_and_arrays_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUAD_CORS_ORIGINS", "https://a.example, http://localhost:5173")
    monkeypatch.setenv("SQUAD_TRUSTED_PROXIES", "10.0.0.5,2001:db8::/32")
    from_environment = _read()
    monkeypatch.delenv("SQUAD_CORS_ORIGINS")
    monkeypatch.delenv("SQUAD_TRUSTED_PROXIES")
    from_file = _read(
        'cors_origins = ["https://a.example", "http://localhost:5173"]\n'
        'trusted_proxies = ["10.0.0.5", "2001:db8::/32"]\n'
    )
    assert from_environment == from_file
    assert from_file.cors_origins == ("https://a.example", "http://localhost:5173")
    assert [str(network) for network in from_file.trusted_proxies] == ["10.0.0.5/32", "2001:db8::/32"]
    assert (_read("").cors_origins, _read("").trusted_proxies) == ((), ())


@pytest.mark.parametrize(
    "origin", ["*", "a.example", "https://a.example/", "https://a.example/x", "null", "HTTPS://A.EXAMPLE"]
)
def test_origin_must_be_written_as_browsers_send_it(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("SQUAD_CORS_ORIGINS", f"https://b.example,{origin}")
    message = _error_message()
    assert message.startswith("cors_origins.1 is ")
    assert "must be an origin, such as https://board.example.org, without a path" in message


def test_default_is_secure_and_allows_no_origins_and_trusts_no_proxies() -> None:
    found = _read()
    assert (found.insecure, found.cors_origins, found.trusted_proxies) == (False, (), ())


def test_settings_are_immutable() -> None:
    found = _read()
    with pytest.raises(ValueError, match="frozen"):
        found.port = 1  # type: ignore[misc]
