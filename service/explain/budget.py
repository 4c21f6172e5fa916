"""Why tokens were refused, and what the budget was spent on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventstore.events import (
    BudgetDayReset,
    BudgetThresholdCrossed,
    PolicySet,
    TokensDenied,
    TokensReleased,
    TokensReserved,
    TokensSettled,
)
from service.explain import words
from service.explain.narration import rules_at
from service.explain.record import Spending
from service.explain.sentences import dated, sentence

if TYPE_CHECKING:
    from datetime import date

    from eventstore.recorded import Recorded
    from service.explain.narration import Narration, Rules
    from service.explain.record import LogQueries, Share, Use

MAX_NAMED = 10
"""The number of agents that are listed; the rest is summed."""


async def denied(event: TokensDenied, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """The rules, what the budget was spent on, and when the request would have been allowed."""
    own_limit = event.reason == "agent_limit_reached"
    rules = await rules_at(past, at.position)
    allowed = _explain_rule(event, rules, narration, own_limit=own_limit)
    spending = await _spending(past, event.day, at.position - 1, event.agent if own_limit else None)
    owner = event.agent if own_limit else "the squad"
    used, held = words.number(spending.used), words.number(spending.reserved)
    narration.add_reason(
        f"By then {owner} had used {used} and reserved {held} of them; the request was for"
        f" {words.number(event.tokens)} more.",
        at,
    )
    narration.facts |= {"asked": event.tokens, "remaining": event.remaining, "allowed": allowed}
    await _explain_usage(spending, past, narration)
    await _explain_next_chance(event, at, rules, allowed, spending, past, narration)


async def crossed(
    event: BudgetThresholdCrossed, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """What crossed the threshold, and what the budget was spent on."""
    if at.caused_by and (cause := await past.event_at(at.caused_by)):
        what = "The rules were changed" if isinstance(cause.event, PolicySet) else sentence(cause)[:-1]
        narration.add_reason(f"{what}: this crossed the threshold.", cause.at)
    if rules := await rules_at(past, at.position):
        percents = words.joined(f"{percent}%" for percent in rules.policy.warning_percents)
        narration.add_reason(
            f"The thresholds are {percents} of a day's budget, under the rules {rules.since}.", rules.at
        )
        narration.facts["policy"] = rules.facts("daily_tokens", "warning_percents")
    narration.facts |= {
        "percent": event.percent,
        "level": event.level,
        "used": event.used,
        "total": event.total,
    }
    await _explain_usage(await _spending(past, event.day, at.position, None), past, narration)


async def ended(
    event: TokensSettled | TokensReleased, at: Recorded, past: LogQueries, narration: Narration
) -> None:
    """When the tokens were reserved, and until when."""
    start = await past.first(at.stream, (TokensReserved.type,))
    if start is None or not isinstance(start.event, TokensReserved):
        return
    until = words.moment(start.event.expires_at)
    narration.add_reason(
        f"The reservation was made {words.at(start.at)} from the budget for {event.day}, to expire at"
        f" {until}.",
        start.at,
    )
    narration.facts |= {"reserved_at": start.at.recorded_at, "expires_at": start.event.expires_at}
    if isinstance(event, TokensReleased) and event.reason == "expired":
        narration.add_reason(f"It was neither settled nor released by {until}.", at)


async def reserved(event: TokensReserved, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """How the reservation ended."""
    end = await past.first(at.stream, (TokensSettled.type, TokensReleased.type), after=at.position)
    if end is None:
        narration.add_outcome("The reservation was still open at the end of the log.")
    else:
        narration.add_outcome(dated(end), end.at)


async def day_began(event: BudgetDayReset, at: Recorded, past: LogQueries, narration: Narration) -> None:
    """The rules, and what the previous day used; or the same day, if only its bounds moved."""
    starts, ends = words.moment(event.starts_at), words.moment(event.ends_at)
    narration.add_reason(f"It runs from {starts} to {ends}.", at)
    if rules := await rules_at(past, at.position):
        narration.add_reason(
            f"Each day begins at {rules.policy.reset_hour}:00 {rules.policy.timezone} and has"
            f" {words.tokens(rules.policy.daily_tokens)}, under the rules {rules.since}.",
            rules.at,
        )
        narration.facts["policy"] = rules.facts("daily_tokens", "reset_hour", "timezone")
    if event.previous_day is None:
        narration.add_reason("It is the first budget day.", at)
        return
    spent = sorted(event.previous_agents.items(), key=lambda part: (-part[1], part[0]))
    parts = [f"{agent} {words.number(used)}" for agent, used in spent[:MAX_NAMED] if used]
    if rest := sum(used for _, used in spent[MAX_NAMED:]):
        parts.append(f"others {words.number(rest)}")
    by_agent = f" ({words.joined(parts)})" if parts else ""
    used = f"{words.number(event.previous_used)} of {words.tokens(event.previous_total)}{by_agent}"
    if event.previous_day == event.day:
        narration.add_reason(
            f"It began under other rules; what was used under them still counts: {used}.", at
        )
    else:
        narration.add_reason(f"On the previous day, {event.previous_day}, the squad used {used}.", at)


def _explain_rule(
    event: TokensDenied, rules: Rules | None, narration: Narration, *, own_limit: bool
) -> int | None:
    """Name the rule that refused it; return how many tokens that rule allows."""
    if rules is None:
        return None
    limit = rules.policy.agent_limits.get(event.agent)
    narration.facts["policy"] = {**rules.facts("daily_tokens"), "agent_limit": limit}
    if own_limit and limit is not None:
        narration.add_reason(
            f"{event.agent} may use {words.tokens(limit)} a day, under the rules {rules.since}.", rules.at
        )
        return limit
    total = rules.policy.daily_tokens
    narration.add_reason(
        f"The squad may use {words.tokens(total)} a day, under the rules {rules.since}.", rules.at
    )
    return total


async def _spending(past: LogQueries, day: date, upto: int, agent: str | None) -> Spending:
    began = await past.first(f"budget-{day.isoformat()}", (BudgetDayReset.type,))
    return await past.spending(began, upto, agent) if began else Spending()


async def _explain_usage(spending: Spending, past: LogQueries, narration: Narration) -> None:
    narration.facts |= {
        "used": spending.used,
        "reserved": spending.reserved,
        "used_by": _shares(spending.used_by),
        "reserved_by": _shares(spending.held_by),
        "largest_uses": [use._asdict() for use in spending.uses],
        "largest_reservations": [use._asdict() for use in spending.held],
    }
    if spending.used_by:
        narration.add_reason(f"Used that day: {_by_agent(spending.used_by)}.")
    await _explain_each(
        "The largest uses, largest first:", spending.uses, spending.used_by, past, narration
    )
    if spending.held_by:
        narration.add_reason(f"Reserved at that time: {_by_agent(spending.held_by)}.")
    await _explain_each(
        "The largest reservations, largest first:", spending.held, spending.held_by, past, narration
    )


async def _explain_each(
    title: str, uses: tuple[Use, ...], shares: tuple[Share, ...], past: LogQueries, narration: Narration
) -> None:
    if not uses:
        return
    found = {item.at.position: item for item in await past.events_at([use.position for use in uses])}
    parts = [
        f"{words.number(use.tokens)} by {use.agent} {words.at(found[use.position].at)}"
        for use in uses
        if use.position in found
    ]
    events = sum(share.events for share in shares) - len(uses)
    if events > 0:
        left = sum(share.tokens for share in shares) - sum(use.tokens for use in uses)
        parts.append(f"{words.number(left)} in {words.count(events, 'smaller one')}")
    narration.add_reason(title, *(item.at for item in found.values()), items=parts)


async def _explain_next_chance(
    event: TokensDenied,
    at: Recorded,
    rules: Rules | None,
    allowed: int | None,
    spending: Spending,
    past: LogQueries,
    narration: Narration,
) -> None:
    # The day that was open at the time. Found by type, because its stream holds a whole day's use.
    day = await past.last_of(BudgetDayReset.type, upto=at.position)
    ends_at = day.event.ends_at if day and isinstance(day.event, BudgetDayReset) else None
    narration.facts["budget_resets_at"] = ends_at
    if rules and (most := _more_than_a_day(event, rules.policy)):
        narration.add_reason(
            f"Under these rules it would not have been allowed on any day: a request for"
            f" {words.tokens(event.tokens)} exceeds {most}."
        )
        return
    if ends_at and day:
        until = words.moment(ends_at)
        wait = words.duration(ends_at - at.recorded_at)
        narration.add_reason(
            f"It would have been allowed on the next day at the latest, from {until}, {wait} later.", day.at
        )
    if allowed is None:
        return
    limit = rules.policy.agent_limits.get(event.agent) if rules else None
    own = sum(share.tokens for share in spending.used_by if share.agent == event.agent)
    if limit is not None and own + event.tokens > limit:
        if event.reason != "agent_limit_reached":
            narration.add_reason(
                f"Until then its own limit would have refused it as well: {event.agent} had used"
                f" {words.number(own)} of its {words.tokens(limit)} a day."
            )
        return
    short = event.tokens - (allowed - spending.used - spending.reserved)
    if 0 < short <= spending.reserved:
        narration.add_reason(
            f"It could have been allowed sooner: it was {words.tokens(short)} short, and reserved tokens"
            f" ({words.number(spending.reserved)} at that time) are available again once released."
        )


def _more_than_a_day(event: TokensDenied, policy: PolicySet) -> str | None:
    """The daily budget or limit that is smaller than the request, if there is one."""
    if event.tokens > policy.daily_tokens:
        return f"the daily budget of {words.number(policy.daily_tokens)}"
    limit = policy.agent_limits.get(event.agent)
    if limit is not None and event.tokens > limit:
        return f"the daily limit of {words.number(limit)} for {event.agent}"
    return None


def _by_agent(shares: tuple[Share, ...]) -> str:
    parts = [f"{share.agent} {words.number(share.tokens)}" for share in shares[:MAX_NAMED]]
    if rest := sum(share.tokens for share in shares[MAX_NAMED:]):
        parts.append(f"{words.count(len(shares) - MAX_NAMED, 'other agent')} {words.number(rest)}")
    return words.joined(parts)


def _shares(shares: tuple[Share, ...]) -> list[dict[str, Any]]:
    shown = [share._asdict() for share in shares[:MAX_NAMED]]
    if rest := shares[MAX_NAMED:]:
        shown.append(
            {
                "agent": None,
                "tokens": sum(share.tokens for share in rest),
                "events": sum(share.events for share in rest),
            }
        )
    return shown
