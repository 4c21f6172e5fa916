"""Calls to agents: the signed headers of a request, and how the answer is read."""

from __future__ import annotations

from typing import Any

import pytest

from service.commands import Usage
from service.scheduling.calls import decode_secret, is_misreported, read_answer, signed_headers, usage_in
from service.values import MAX_TOKENS

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1_614_265_330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
"""The example that libraries for the Standard Webhooks specification are tested with."""


class TestHeaders:
    def test_signature_matches_the_example_of_the_specification(self) -> None:
        assert signed_headers(SECRET, MESSAGE_ID, TIMESTAMP, BODY) == {
            "Content-Type": "application/json",
            "webhook-id": MESSAGE_ID,
            "webhook-timestamp": "1614265330",
            "webhook-signature": SIGNATURE,
        }

    def test_signature_is_the_same_without_the_prefix_of_the_secret(self) -> None:
        plain = SECRET.removeprefix("whsec_")
        assert signed_headers(plain, MESSAGE_ID, TIMESTAMP, BODY)["webhook-signature"] == SIGNATURE

    @pytest.mark.parametrize(
        ("message_id", "timestamp", "body"),
        [
            ("msg_other", TIMESTAMP, BODY),
            (MESSAGE_ID, TIMESTAMP + 1, BODY),
            (MESSAGE_ID, TIMESTAMP, BODY + b" "),
        ],
    )
    def test_signature_covers_the_id_the_time_and_the_body(
        self, message_id: str, timestamp: int, body: bytes
    ) -> None:
        assert signed_headers(SECRET, message_id, timestamp, body)["webhook-signature"] != SIGNATURE

    @pytest.mark.parametrize("secret", [None, ""])
    def test_headers_are_unsigned_without_a_secret(self, secret: str | None) -> None:
        headers = signed_headers(secret, MESSAGE_ID, TIMESTAMP, BODY)
        assert headers.keys() == {"Content-Type", "webhook-id", "webhook-timestamp"}


class TestSecrets:
    @pytest.mark.parametrize("secret", ["whsec_YWJj", "YWJj"])
    def test_secret_is_base64_with_or_without_a_prefix(self, secret: str) -> None:
        assert decode_secret(secret) == b"abc"

    @pytest.mark.parametrize("secret", ["whsec_abc", "ab c=", "whsec_whsec_YWJj", "ü"])
    def test_invalid_secret_is_rejected(self, secret: str) -> None:
        with pytest.raises(ValueError, match=r".+"):
            decode_secret(secret)


class TestTokens:
    @pytest.mark.parametrize(
        ("body", "tokens"),
        [
            ({"tokens_used": 7}, 7),
            ({"tokens_used": 0}, 0),
            ({"usage": {"input_tokens": 3, "output_tokens": 4}}, 7),
            ({"usage": {"input_tokens": 3}}, 3),
            ({"usage": {"output_tokens": 4}}, 4),
            ({"tokens_used": 5, "usage": {"input_tokens": 3, "output_tokens": 4}}, 5),
            ({"tokens_used": None, "usage": {"input_tokens": 3, "output_tokens": 4}}, 7),
            ({"tokens_used": 7.0}, 7),
            ({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}, 7),
            ({"usage": {"input_tokens": 3.0, "completion_tokens": 4}}, 7),
            ({"tokens_used": MAX_TOKENS // 2}, MAX_TOKENS // 2),
        ],
    )
    def test_tokens_are_what_the_answer_reports(self, body: Any, tokens: int) -> None:
        usage = usage_in(body)
        assert usage
        assert usage.tokens_used == tokens
        assert not is_misreported(body)

    @pytest.mark.parametrize(
        "body",
        [
            None,
            [],
            "7",
            7,
            {},
            {"tokens_used": -1},
            {"tokens_used": 1.5},
            {"tokens_used": "7"},
            {"tokens_used": True},
            {"tokens_used": 10**30},
            {"usage": 7},
            {"usage": {}},
            {"usage": {"input_tokens": "3", "output_tokens": None}},
        ],
    )
    def test_tokens_are_unknown_when_the_answer_reports_no_valid_number(self, body: Any) -> None:
        assert usage_in(body) is None

    @pytest.mark.parametrize(
        "body",
        [
            {"tokens_used": -1},
            {"tokens_used": 1.5},
            {"tokens_used": float("inf")},
            {"tokens_used": "7"},
            {"tokens_used": True},
            {"tokens_used": 10**30},
            {"usage": 7},
            {"usage": {"total_tokens": 7}},
            {"usage": {"input_tokens": 3, "output_tokens": "4"}},
            {"tokens_used": "7", "usage": {"input_tokens": 3}},
        ],
        ids=str,
    )
    def test_report_that_is_not_understood_is_recognized(self, body: Any) -> None:
        assert is_misreported(body)

    @pytest.mark.parametrize(
        "body",
        [None, [], "7", {}, {"tokens_used": None}, {"usage": {}}, {"tokens_used": 7, "usage": "few"}],
        ids=str,
    )
    def test_answer_without_a_report_or_with_a_total_is_not_misreported(self, body: Any) -> None:
        assert not is_misreported(body)


class TestAnswers:
    @pytest.mark.parametrize("status", [200, 201, 204, 299])
    def test_2xx_is_a_success(self, status: int) -> None:
        assert read_answer(status, b'{"new": 3, "tokens_used": 9}', quote=True) == (
            True,
            None,
            {"new": 3, "tokens_used": 9},
            Usage(9),
        )

    def test_answer_may_be_empty(self) -> None:
        assert read_answer(204, b"", quote=True) == (True, None, None, None)

    def test_answer_that_is_not_json_is_truncated_text(self) -> None:
        reply = read_answer(200, b"caf\xc3\xa9 \xff" + b"x" * 1_000, quote=True)
        assert reply.ok
        assert reply.body.startswith("café �xxx")
        assert len(reply.body) <= 300

    @pytest.mark.parametrize(
        ("status", "answer", "reason"),
        [
            (500, b"", "the agent answered 500: nothing"),
            (404, b"not here", "the agent answered 404: not here"),
            (422, b'{"error":"no mail"}', 'the agent answered 422: {"error":"no mail"}'),
            (302, b'""', "the agent answered 302: nothing"),
            (199, b"1", "the agent answered 199: 1"),
            (502, b"a\x00b", "the agent answered 502: ab"),
            (502, b'"a\\u0000b"', "the agent answered 502: ab"),
            (502, b"a\xed\xa0\x80b", "the agent answered 502: a\ufffd\ufffd\ufffdb"),
            (502, b"\x00", "the agent answered 502: nothing"),
            (500, b"[" * 300 + b"]" * 300, "the agent answered 500: (nested too deep to be shown)"),
        ],
    )
    def test_any_other_status_is_a_failure_that_quotes_the_answer(
        self, status: int, answer: bytes, reason: str
    ) -> None:
        reply = read_answer(status, answer, quote=True)
        assert not reply.ok
        assert reply.reason == reason

    @pytest.mark.parametrize(
        "answer", [b"", b"no answer for carl@customer.example", b'{"to":"carl"}', b"[" * 300]
    )
    def test_failure_may_not_quote_the_answer_if_payloads_are_encrypted(self, answer: bytes) -> None:
        assert read_answer(500, answer, quote=False).reason == (
            "the agent answered 500 (its answer is not kept, because payloads are encrypted)"
        )

    def test_failure_reports_tokens_too(self) -> None:
        assert read_answer(500, b'{"tokens_used": 9}', quote=True).usage == Usage(9)
