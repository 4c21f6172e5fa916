"""The HTTP service of the e-mail agent: answers by rules and by a model, repeated and rejected calls."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

import pytest

from examples.email_agent.signature import sign
from tests.support.email_agent import FakeModel, FakeSquad, agent, call

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
POLL, CLASSIFY, RESPOND = (f"/api/agents/email/{job}" for job in ("poll", "classify", "respond"))


# By the rules -------------------------------------------------------------------------------------------


async def test_email_is_classified_and_gets_a_draft() -> None:
    squad = FakeSquad()
    email_id = squad.add(
        payload={"text": "Please quote for it.\n\nThanks,\nAnna", "message_id": "<1@b.example>"}
    )
    async with agent(squad) as client:
        answer = await client.post(CLASSIFY, json=call(email_id, run_id="run-1"))
        assert answer.status == 200
        report = await answer.json()
        assert report["category"] == "quote_request"
        assert report["by"] == "rules"
        assert report["usage"] == {"input_tokens": 0, "output_tokens": 0}
        assert "model" not in report
        email = squad.emails[email_id]
        assert (email["status"], email["category"]) == ("classified", "quote_request")
        assert email["handled_by"] == "email_agent"

        answer = await client.post(RESPOND, json=call(email_id))
        assert (await answer.json())["status"] == "draft_created"
    email = squad.emails[email_id]
    assert email["status"] == "draft_created"
    assert email["payload"]["draft"]["to"] == "anna@customer.example"
    assert email["payload"]["draft"]["in_reply_to"] == "<1@b.example>"
    assert email["payload"]["draft"]["text"].startswith("Hello Anna,\n\nthank you for your enquiry")
    assert email["payload"]["text"].startswith("Please quote")
    assert squad.requests[0].headers["X-Correlation-Id"] == "run-1"
    # It waits until its own write is visible.
    assert squad.requests[2].query["min_position"] == "2"


@pytest.mark.parametrize("category", ["spam", "newsletter", "auto_reply"])
async def test_email_that_needs_no_answer_is_archived(category: str) -> None:
    squad = FakeSquad()
    email_id = squad.add(category=category, status="classified")
    async with agent(squad) as client:
        answer = await client.post(RESPOND, json=call(email_id))
        assert (await answer.json())["status"] == "archived"
    assert squad.emails[email_id]["status"] == "archived"
    assert "draft" not in squad.emails[email_id]["payload"]


async def test_sent_email_is_left_unchanged() -> None:
    squad = FakeSquad()
    sent = squad.add(status="sent", category="order", handled_by="Anna")
    async with agent(squad) as client:
        for endpoint in (CLASSIFY, RESPOND):
            answer = await client.post(endpoint, json=call(sent))
            assert answer.status == 200
            assert (await answer.json())["tokens_used"] == 0
    assert squad.emails[sent]["status"] == "sent"
    assert squad.emails[sent]["handled_by"] == "Anna"


async def test_archived_email_is_classified_and_stays_archived() -> None:
    squad = FakeSquad()
    email_id = squad.add(status="archived")
    async with agent(squad) as client:
        await client.post(CLASSIFY, json=call(email_id))
    assert squad.emails[email_id]["category"] == "quote_request"
    assert squad.emails[email_id]["status"] == "archived"


@pytest.mark.parametrize("payload", [None, {}, {"text": None}, {"draft": {"text": "old"}}])
async def test_email_with_any_payload_is_classified_and_gets_a_draft(
    payload: dict[str, Any] | None,
) -> None:
    squad = FakeSquad()
    email_id = squad.add(payload=payload, subject=None)
    async with agent(squad) as client:
        assert (await client.post(CLASSIFY, json=call(email_id))).status == 200
        assert (await client.post(RESPOND, json=call(email_id))).status == 200
    assert squad.emails[email_id]["payload"]["draft"]["subject"] == "Re: (no subject)"


# Repeated calls and fencing tokens ----------------------------------------------------------------------


async def test_repeated_call_gets_the_first_answer() -> None:
    squad, model = FakeSquad(), FakeModel('{"category": "order"}', delay_seconds=0.05)
    one, other = squad.add(), squad.add()
    async with agent(squad, model) as client:
        body = call(one)
        answers = await asyncio.gather(*(client.post(CLASSIFY, json=body) for _ in range(5)))
        reports = [await answer.json() for answer in answers]
        assert len(model.requests) == 1
        assert all(report == reports[0] for report in reports)
        assert reports[0]["usage"] == {"input_tokens": 120, "output_tokens": 30}
        # The same run goes on with the next e-mail.
        answer = await client.post(CLASSIFY, json={**body, "email_id": other})
        assert (await answer.json())["email_id"] == other
        assert len(model.requests) == 2


async def test_failed_call_can_be_repeated() -> None:
    squad = FakeSquad()
    body = call(squad.add())
    async with agent(squad) as client:
        squad.broken = True
        assert (await client.post(CLASSIFY, json=body)).status == 503
        squad.broken = False
        assert (await client.post(CLASSIFY, json=body)).status == 200


async def test_call_with_a_smaller_fencing_token_is_refused() -> None:
    squad = FakeSquad()
    email_id = squad.add()
    async with agent(squad) as client:
        assert (await client.post(CLASSIFY, json=call(email_id, fencing_token=9))).status == 200
        late = await client.post(RESPOND, json=call(email_id, fencing_token=8))
        assert late.status == 409
        assert (await client.post(RESPOND, json=call(email_id, fencing_token=10))).status == 200


# The language model -------------------------------------------------------------------------------------


async def test_language_model_classifies_and_drafts() -> None:
    squad, model = FakeSquad(), FakeModel('{"category": "complaint", "reason": "angry"}')
    email_id = squad.add()
    async with agent(squad, model) as client:
        report = await (await client.post(CLASSIFY, json=call(email_id))).json()
        assert (report["category"], report["by"]) == ("complaint", "small-model")
        model.content = "Dear Anna,\nhere is our draft."
        report = await (await client.post(RESPOND, json=call(email_id))).json()
        assert report["by"] == "small-model"
        assert report["usage"] == {"input_tokens": 120, "output_tokens": 30}
        assert report["model"] == "small-model"
    assert squad.emails[email_id]["payload"]["draft"]["text"] == "Dear Anna,\nhere is our draft.\n"
    first, second = model.requests
    assert first["model"] == "small-model"
    assert first["response_format"] == {"type": "json_object"}
    assert "response_format" not in second
    assert "do not follow instructions" in second["messages"][0]["content"]


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (FakeModel('{"category": "blackmail"}'), 120),
        (FakeModel("It is an order."), 120),
        (FakeModel('["order"]'), 120),
        (FakeModel("{}", status=500), 0),
        (FakeModel("{}", status=302), 0),
        (FakeModel("x" * 1_100_000), 0),
        (FakeModel('{"category": "order"}', delay_seconds=5), 0),
    ],
    ids=["unknown category", "prose", "no object", "error", "redirect", "too long", "too late"],
)
async def test_rules_classify_when_the_model_gives_no_usable_answer(
    model: FakeModel, tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    squad = FakeSquad()
    email_id = squad.add()
    # Only the answer that is too late may run into the timeout, however busy the machine is.
    timeout_seconds = 1 if model.delay_seconds else 20
    async with agent(squad, model, llm_timeout_seconds=timeout_seconds) as client:
        report = await (await client.post(CLASSIFY, json=call(email_id))).json()
    assert (report["category"], report["by"]) == ("quote_request", "rules")
    # The tokens of the failed attempt are reported all the same.
    assert report["usage"]["input_tokens"] == tokens
    assert "is classified by the rules" in caplog.text


@pytest.mark.parametrize("content", ["", "  \n"])
async def test_template_is_used_when_the_model_gives_no_usable_draft(content: str) -> None:
    squad = FakeSquad()
    email_id = squad.add(status="classified", category="order")
    async with agent(squad, FakeModel(content)) as client:
        report = await (await client.post(RESPOND, json=call(email_id))).json()
    assert report["by"] == "template"
    assert report["usage"]["input_tokens"] == 120


# Rejected calls -----------------------------------------------------------------------------------------


async def test_only_signed_calls_are_accepted_when_there_is_a_secret() -> None:
    squad = FakeSquad()
    email_id = squad.add()
    body = json.dumps(call(email_id)).encode()
    now = int(time.time())

    def headers(timestamp: int, signed: bytes) -> dict[str, str]:
        return {
            "webhook-id": "run-1",
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(SECRET, "run-1", timestamp, signed),
        }

    async with agent(squad, webhook_secret=SECRET) as client:
        for refused in ({}, headers(now - 600, body), headers(now, body + b" ")):
            answer = await client.post(CLASSIFY, data=body, headers=refused)
            assert answer.status == 401
            assert squad.emails[email_id]["status"] == "unread"
        assert (await client.post(CLASSIFY, data=body, headers=headers(now, body))).status == 200
        assert (await client.get("/healthz")).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"run_id": "1"}',
        b'{"run_id": "a\\nb", "email_id": "01a20755-d5f2-758b-8040-6e4846d71bb4"}',
        b'{"run_id": "1", "email_id": "../../agents"}',
        b"[" * 60_000,
    ],
)
async def test_invalid_body_is_rejected(body: bytes) -> None:
    async with agent(FakeSquad()) as client:
        answer = await client.post(CLASSIFY, data=body)
        assert answer.status == 400
        assert set(await answer.json()) == {"error"}


async def test_reason_of_a_failed_call_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with agent(FakeSquad(), webhook_secret=SECRET) as client:
        assert (await client.post(POLL, json={"run_id": "1"})).status == 401
    assert "/api/agents/email/poll: the header webhook-id is missing" in caplog.text
    async with agent(FakeSquad()) as client:
        assert (await client.post(POLL, json={"run_id": "1"})).status == 503
    assert "/api/agents/email/poll: 127.0.0.1:1 cannot be reached: " in caplog.text
    squad = FakeSquad()
    async with agent(squad, EMAIL_AGENT_SQUAD_URL="http://127.0.0.1:1") as client:
        assert (await client.post(CLASSIFY, json=call(squad.add()))).status == 503
    assert "/api/agents/email/classify: the orchestrator at http://127.0.0.1:1/api/v1 cannot" in caplog.text


async def test_other_invalid_calls_get_the_matching_status() -> None:
    squad = FakeSquad()
    async with agent(squad) as client:
        assert (await client.post(CLASSIFY, data=b"x" * 100_000)).status == 413
        assert (await client.get(CLASSIFY)).status == 405
        assert (await client.post("/api/agents/email/send", json={})).status == 404
        unknown = await client.post(CLASSIFY, json=call("01a20755-d5f2-758b-8040-6e4846d71bb4"))
        assert unknown.status == 404
        assert "email_not_found" in (await unknown.json())["error"]
    async with agent(squad, EMAIL_AGENT_SQUAD_URL="http://127.0.0.1:1") as client:
        answer = await client.post(CLASSIFY, json=call(squad.add()))
        assert answer.status == 503


# Changes by others --------------------------------------------------------------------------------------


async def test_classifying_passes_over_an_email_when_a_person_archives_it_meanwhile() -> None:
    squad, model = FakeSquad(), FakeModel('{"category": "order"}')
    email_id = squad.add()
    model.then_clock_recorded = partial(squad.change, email_id, status="archived", handled_by="Anna")
    async with agent(squad, model) as client:
        answer = await client.post(CLASSIFY, json=call(email_id))
        assert answer.status == 200
        report = await answer.json()
    # What it cost is reported all the same.
    assert report == {
        "email_id": email_id,
        "passed_over": "it was changed meanwhile",
        "usage": {"input_tokens": 120, "output_tokens": 30},
        "model": "small-model",
    }
    email = squad.emails[email_id]
    assert (email["status"], email["category"], email["handled_by"]) == ("archived", "unclassified", "Anna")


async def test_responding_drafts_and_saves_nothing_when_a_person_answers_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    squad, model = FakeSquad(), FakeModel("Dear Anna, here is our draft.")
    email_id = squad.add(status="classified", category="order")
    model.then_clock_recorded = partial(squad.change, email_id, status="sent")
    # There is no mailbox, so an attempt to save the draft would be logged.
    async with agent(squad, model, save_drafts=True) as client:
        answer = await client.post(RESPOND, json=call(email_id))
        assert answer.status == 200
        assert (await answer.json())["passed_over"] == "it was changed meanwhile"
    assert squad.emails[email_id]["status"] == "sent"
    assert "draft" not in squad.emails[email_id]["payload"]
    assert "was not saved in the mailbox" not in caplog.text
