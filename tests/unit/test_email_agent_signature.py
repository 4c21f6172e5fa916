"""Signatures of calls to the e-mail agent, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from examples.email_agent import settings
from examples.email_agent.signature import BadSignature, sign, verify

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
ID, NOW, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}'
HEADERS = {
    "webhook-id": ID,
    "webhook-timestamp": str(NOW),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def test_example_of_the_specification_is_signed_and_verified() -> None:
    assert sign(SECRET, ID, NOW, BODY) == HEADERS["webhook-signature"]
    verify(SECRET, HEADERS, BODY, NOW)


def test_one_matching_signature_is_enough() -> None:
    both = f"{sign(OTHER_SECRET, ID, NOW, BODY)} v2,abc {HEADERS['webhook-signature']}"
    verify(SECRET, {**HEADERS, "webhook-signature": both}, BODY, NOW + 299)


@pytest.mark.parametrize(
    ("changed", "body", "now", "reason"),
    [
        ({}, BODY + b" ", NOW, "does not match"),
        ({}, BODY, NOW + 301, "too far"),
        ({}, BODY, NOW - 301, "too far"),
        ({"webhook-id": "another"}, BODY, NOW, "does not match"),
        ({"webhook-timestamp": str(NOW + 1)}, BODY, NOW, "does not match"),
        ({"webhook-timestamp": "soon"}, BODY, NOW, "not a number"),
        ({"webhook-timestamp": "9" * 400}, BODY, NOW, "not a number"),
        ({"webhook-signature": ""}, BODY, NOW, "does not match"),
        ({"webhook-signature": "v1,\udcff"}, BODY, NOW, "does not match"),
        ({"webhook-signature": sign(OTHER_SECRET, ID, NOW, BODY)}, BODY, NOW, "does not match"),
    ],
)
def test_invalid_signature_is_refused(
    changed: Mapping[str, str], body: bytes, now: int, reason: str
) -> None:
    with pytest.raises(BadSignature, match=reason):
        verify(SECRET, {**HEADERS, **changed}, body, now)


@pytest.mark.parametrize("name", HEADERS)
def test_each_header_is_required(name: str) -> None:
    with pytest.raises(BadSignature, match=f"{name} is missing"):
        verify(SECRET, {key: value for key, value in HEADERS.items() if key != name}, BODY, NOW)


# Settings ---------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("EMAIL_AGENT_IMAP_USER", "shop")
    monkeypatch.setenv("EMAIL_AGENT_IMAP_PASSWORD", "pass-word")
    monkeypatch.delenv("SQUAD_URL", raising=False)
    return monkeypatch


def test_settings_come_from_the_environment_and_hide_secrets(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SQUAD_URL", "http://squad.example:3001/")
    environment.setenv("EMAIL_AGENT_WEBHOOK_SECRET", SECRET)
    read = settings.read()
    assert (read.squad_url, read.port, read.name) == ("http://squad.example:3001", 3002, "email_agent")
    assert SECRET not in repr(read)
    assert "pass-word" not in repr(read)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("EMAIL_AGENT_PORT", "70000", "EMAIL_AGENT_PORT: "),
        ("EMAIL_AGENT_SQUAD_URL", "squad", "EMAIL_AGENT_SQUAD_URL: "),
        ("EMAIL_AGENT_WEBHOOK_SECRET", "whsec_not base64!", "EMAIL_AGENT_WEBHOOK_SECRET: must be base64"),
        ("EMAIL_AGENT_WEBHOOK_SECRET", "whsec_", "EMAIL_AGENT_WEBHOOK_SECRET: must be base64"),
        ("EMAIL_AGENT_IMAP_MAILBOX", "INBOX\r\nX", "EMAIL_AGENT_IMAP_MAILBOX: "),
        ("EMAIL_AGENT_LLM_MODEL", "small", "EMAIL_AGENT_LLM_BASE_URL and EMAIL_AGENT_LLM_MODEL"),
        ("EMAIL_AGENT_IMAP_USER", "", "EMAIL_AGENT_IMAP_USER: field required"),
    ],
)
def test_error_names_the_invalid_setting_but_no_secret(
    environment: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(settings.SettingsError) as error:
        settings.read()
    assert str(error.value).startswith(reason)
    assert "not base64" not in str(error.value)


def test_unencrypted_imap_to_another_host_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("EMAIL_AGENT_IMAP_SECURITY", "none")
    settings.read()
    environment.setenv("EMAIL_AGENT_IMAP_HOST", "imap.example")
    with pytest.raises(settings.SettingsError, match=r"in clear to imap\.example"):
        settings.read()
