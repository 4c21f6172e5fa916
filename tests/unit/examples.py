"""One handwritten example of every kind of event; `tests/golden/events` has their stored form.

Together they contain what another encoder might store differently: accents, emoji, characters that JSON
must escape and some that it need not, floats, times with and without a fraction of a second, empty objects
and lists.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from eventstore.events import (
    AgentHeartbeatRecorded,
    AgentProfileChanged,
    AgentRegistered,
    AgentStatusChanged,
    AnyEvent,
    AppendAbandoned,
    BudgetDayReset,
    BudgetThresholdCrossed,
    ConflictDetected,
    EmailReceived,
    EmailUpdated,
    MessageAcknowledged,
    MessageSent,
    OperationExpired,
    OperationFinished,
    OperationRenewed,
    OperationStarted,
    OrchestratorStarted,
    OrchestratorStopped,
    PolicySet,
    RequestAnswered,
    SubjectForgotten,
    TaskCreated,
    TaskUpdated,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)

_ID = "0198c0de-0000-7000-8000-00000000000{}".format
_DAY = date(2026, 3, 29)
_WHOLE_SECOND = datetime(2026, 3, 29, 1, 0, 0, tzinfo=UTC)
_FRACTION = datetime(2026, 3, 29, 1, 0, 0, 120_000, tzinfo=UTC)
_TO_THE_MICROSECOND = datetime(2026, 3, 29, 1, 0, 0, 123_456, tzinfo=UTC)

EXAMPLES: tuple[AnyEvent, ...] = (
    AgentRegistered(
        agent="email_agent",
        agent_id=_ID(1),
        role="E-Mail · Ünïcode ✉️",
        url="https://agents.example.org/email?v=1&x=<y>",
        priority=-5,
        automatic=False,
    ),
    AgentProfileChanged(agent="email_agent", role="support", url=None, priority=0),
    AgentStatusChanged(agent="email_agent", previous="active", status="idle", reason="inactivity"),
    AgentHeartbeatRecorded(agent="email_agent"),
    MessageSent(
        message_id=_ID(2),
        agent="email_agent",
        to_agent=None,
        message='Tab\t, line\nfeed, "quotes", back\\slash, unit\x1fseparator, delete\x7f, \u2028, 🦉, שלום',
        task_id="task-uuid",
        data={
            "emailId": "123",
            "": [],
            "nested": {"true": True, "false": False, "null": None, "list": [1, -1, 0]},
            "floats": [0.1, -0.5, 1.0, 1234.5678],
            "integers": [9223372036854775807, -9223372036854775808, 18446744073709551615],
            "b before a": 1,
            "a": {},
        },
    ),
    MessageAcknowledged(message_id=_ID(2), agent="quote_agent"),
    OperationStarted(
        operation_id=_ID(3),
        agent="email_agent",
        action="respond",
        resources={"emailId": "email-123", "customerId": "456"},
        ttl_seconds=60.0,
        blocks_until=_WHOLE_SECOND,
        expires_at=_TO_THE_MICROSECOND,
    ),
    OperationRenewed(
        operation_id=_ID(3), agent="email_agent", blocks_until=_FRACTION, expires_at=_TO_THE_MICROSECOND
    ),
    OperationFinished(operation_id=_ID(3), agent="email_agent", outcome="succeeded", tokens_used=None),
    OperationExpired(operation_id=_ID(3), agent="email_agent"),
    ConflictDetected(
        operation_id=_ID(3),
        conflict_id=_ID(4),
        agent="quote_agent",
        action="quote",
        resources={"customerId": "456", "orderId": "789"},
        contested={"customerId": "456"},
        holders=["email_agent"],
        holder_action="respond",
    ),
    PolicySet(
        daily_tokens=100_000,
        agent_limits={"quote_agent": 30_000, "email_agent": 50_000},
        warning_percents=[50, 75, 90],
        reset_hour=0,
        timezone="Europe/Berlin",
        conflict_window_seconds=30.0,
        operation_timeout_seconds=0.25,
        idle_after_minutes=10.0,
        offline_after_minutes=60.0,
        day=_DAY,
    ),
    TokensReserved(
        day=_DAY, reservation_id=_ID(5), agent="email_agent", tokens=500, expires_at=_WHOLE_SECOND
    ),
    TokensSettled(
        day=_DAY,
        reservation_id=_ID(5),
        agent="email_agent",
        tokens_reserved=500,
        tokens_used=450,
        input_tokens=400,
        output_tokens=50,
        model="a-model-1",
    ),
    TokensReleased(
        day=_DAY, reservation_id=_ID(5), agent="email_agent", tokens_reserved=500, reason="expired"
    ),
    TokensUsed(
        day=_DAY,
        agent="email_agent",
        tokens=450,
        input_tokens=400,
        output_tokens=50,
        model="a-model-1",
        operation_id=_ID(3),
        task_id=None,
    ),
    TokensDenied(
        day=_DAY, agent="quote_agent", tokens=1_000_000_000_000, reason="budget_exhausted", remaining=-50
    ),
    BudgetThresholdCrossed(day=_DAY, percent=90, level="critical", used=90_000, total=100_000),
    BudgetDayReset(
        day=_DAY,
        starts_at=datetime(2026, 3, 28, 23, tzinfo=UTC),
        ends_at=datetime(2026, 3, 29, 22, tzinfo=UTC),
        total=100_000,
        previous_day=date(2026, 3, 28),
        previous_used=340,
        previous_total=100_000,
        previous_agents={"quote_agent": 40, "email_agent": 300},
    ),
    TaskCreated(
        task_id=_ID(6),
        title="Answer the quote",
        description="By Friday.\n\nWith prices.",
        status="new",
        assigned_agent=None,
        priority="medium",
        deliverable_url=None,
    ),
    TaskUpdated(
        task_id=_ID(6),
        title="Answer the quote",
        description=None,
        status="completed",
        assigned_agent="quote_agent",
        priority="urgent",
        deliverable_url="https://example.org/quote.pdf",
        changed=["description", "status", "assigned_agent", "priority", "deliverable_url"],
    ),
    EmailReceived(
        email_id=_ID(7),
        gmail_message_id="18f2a1b3c4d5e6f7",
        from_email="Zoë <zoe@example.org>",
        subject=None,
        category="unclassified",
        status="unread",
        handled_by=None,
        payload={"labels": ["INBOX"]},
    ),
    EmailUpdated(
        email_id=_ID(7),
        category="sales",
        status="draft_created",
        handled_by="email_agent",
        payload=None,
        changed=["category", "status", "handled_by", "payload"],
    ),
    OrchestratorStarted(),
    OrchestratorStopped(),
    SubjectForgotten(key_id=_ID(9), emails=[_ID(6), _ID(7)], messages=[], in_plain=1),
    RequestAnswered(
        key="4f9a-key",
        fingerprint="b94d27b9934d3e08",
        status=201,
        body={"id": _ID(3), "position": 7, "expires_at": "2026-03-29T01:01:00Z"},
    ),
    AppendAbandoned(first_event_id=_ID(8), events=3),
)
