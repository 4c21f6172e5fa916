"""Why tokens were refused, and what filled the budget."""

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
from service.explain.record import Spending
from service.explain.sentences import dated, sentence
from service.explain.telling import rules_at

if TYPE_CHECKING:
    from datetime import date

    from eventstore.recorded import Recorded
    from service.explain.record import Past, Share, Use
    from service.explain.telling import Rules, Telling

MOST_NAMED = 10
"""How many uses, and how many agents, are told one by one; the rest is summed."""


async def denied(event: TokensDenied, at: Recorded, past: Past, telling: Telling) -> None:
    """By which rules, what had filled the budget, and when it would have been allowed again."""
    own_limit = event.reason == "agent_limit_reached"
    rules = await rules_at(past, at.position)
    allowed = _say_the_rule(event, rules, telling, own_limit=own_limit)
    spending = await _spending(past, event.day, at.position - 1, event.agent if own_limit else None)
    whose = f"{event.agent} had" if own_limit else "the squad had"
    telling.say(
        f"By then {whose} used {words.number(spending.used)} and set aside"
        f" {words.number(spending.reserved)} of them; {words.tokens(event.tokens)} more were asked for.",
        at,
    )
    telling.facts |= {"asked": event.tokens, "remaining": event.remaining, "allowed": allowed}
    await _say_what_filled_it(spending, past, telling)
    await _say_when_again(event, at, rules, allowed, spending, past, telling)


async def crossed(event: BudgetThresholdCrossed, at: Recorded, past: Past, telling: Telling) -> None:
    """What crossed it, and what had filled the budget."""
    if at.caused_by and (cause := await past.one(at.caused_by)):
        what = "The rules were changed" if isinstance(cause.event, PolicySet) else sentence(cause)[:-1]
        telling.say(f"{what}: that is what crossed it.", cause.at)
    if rules := await rules_at(past, at.position):
        percents = words.listed(f"{percent} %" for percent in rules.policy.warning_percents)
        telling.say(
            f"Warnings are due at {percents} of a day's budget, by the rules {rules.since}.", rules.at
        )
        telling.facts["policy"] = rules.facts("daily_tokens", "warning_percents")
    telling.facts |= {
        "percent": event.percent,
        "level": event.level,
        "used": event.used,
        "total": event.total,
    }
    await _say_what_filled_it(await _spending(past, event.day, at.position, None), past, telling)


async def ended(event: TokensSettled | TokensReleased, at: Recorded, past: Past, telling: Telling) -> None:
    """When the tokens were set aside, and until when."""
    start = await past.first(at.stream, (TokensReserved.type,))
    if start is None or not isinstance(start.event, TokensReserved):
        return
    until, they = words.moment(start.event.expires_at), words.they(event.tokens_reserved)
    telling.say(
        f"{they} had been set aside {words.at(start.at)}, until {until}, as part of the budget of"
        f" {event.day}.",
        start.at,
    )
    telling.facts |= {"reserved_at": start.at.recorded_at, "expires_at": start.event.expires_at}
    if isinstance(event, TokensReleased) and event.reason == "expired":
        them = "it" if event.tokens_reserved == 1 else "them"
        telling.say(f"Nobody settled {them} or gave {them} back by {until}.", at)


async def reserved(event: TokensReserved, at: Recorded, past: Past, telling: Telling) -> None:
    """What became of them."""
    end = await past.first(at.stream, (TokensSettled.type, TokensReleased.type), after=at.position)
    if end is None:
        are = "It is" if event.tokens == 1 else "They are"
        telling.say_later(f"{are} neither used nor given back where the log ends.")
    else:
        telling.say_later(dated(end), end.at)


async def day_began(event: BudgetDayReset, at: Recorded, past: Past, telling: Telling) -> None:
    """By which rules, and what the day before came to; or the same day, where only its bounds moved."""
    starts, ends = words.moment(event.starts_at), words.moment(event.ends_at)
    telling.say(f"It lasts from {starts} to {ends}.", at)
    if rules := await rules_at(past, at.position):
        telling.say(
            f"Days begin at {rules.policy.reset_hour}:00 in {rules.policy.timezone} and have"
            f" {words.tokens(rules.policy.daily_tokens)}, by the rules {rules.since}.",
            rules.at,
        )
        telling.facts["policy"] = rules.facts("daily_tokens", "reset_hour", "timezone")
    if event.previous_day is None:
        telling.say("It is the first.", at)
        return
    spent = sorted(event.previous_agents.items(), key=lambda part: (-part[1], part[0]))
    parts = [f"{agent} {words.number(used)}" for agent, used in spent[:MOST_NAMED] if used]
    if rest := sum(used for _, used in spent[MOST_NAMED:]):
        parts.append(f"others {words.number(rest)}")
    told_apart = f": {words.listed(parts)}" if parts else ""
    amount = f"{words.number(event.previous_used)} of {words.tokens(event.previous_total)}{told_apart}"
    if event.previous_day == event.day:
        telling.say(f"It had begun by other rules, and had come to {amount}. That counts on.", at)
    else:
        telling.say(f"The day before, {event.previous_day}, came to {amount}.", at)


def _say_the_rule(
    event: TokensDenied, rules: Rules | None, telling: Telling, *, own_limit: bool
) -> int | None:
    """Says which rule refused it; gives how many tokens it allows."""
    if rules is None:
        return None
    limit = rules.policy.agent_limits.get(event.agent)
    telling.facts["policy"] = {**rules.facts("daily_tokens"), "agent_limit": limit}
    if own_limit and limit is not None:
        telling.say(
            f"{event.agent} may use {words.tokens(limit)} a day, by the rules {rules.since}.", rules.at
        )
        return limit
    total = rules.policy.daily_tokens
    telling.say(f"The squad may use {words.tokens(total)} a day, by the rules {rules.since}.", rules.at)
    return total


async def _spending(past: Past, day: date, upto: int, agent: str | None) -> Spending:
    began = await past.first(f"budget-{day.isoformat()}", (BudgetDayReset.type,))
    return await past.spending(began, upto, agent) if began else Spending()


async def _say_what_filled_it(spending: Spending, past: Past, telling: Telling) -> None:
    telling.facts |= {
        "used": spending.used,
        "reserved": spending.reserved,
        "used_by": _shares(spending.used_by),
        "reserved_by": _shares(spending.held_by),
        "largest_uses": [use._asdict() for use in spending.uses],
        "largest_reservations": [use._asdict() for use in spending.held],
    }
    if spending.used_by:
        telling.say(f"Used that day: {_by_agent(spending.used_by)}.")
    await _say_each("The largest uses, the largest first:", spending.uses, spending.used_by, past, telling)
    if spending.held_by:
        telling.say(f"Set aside at that moment: {_by_agent(spending.held_by)}.")
    await _say_each(
        "The largest reservations, the largest first:", spending.held, spending.held_by, past, telling
    )


async def _say_each(
    title: str, uses: tuple[Use, ...], shares: tuple[Share, ...], past: Past, telling: Telling
) -> None:
    if not uses:
        return
    found = {item.at.position: item for item in await past.several([use.position for use in uses])}
    parts = [
        f"{words.number(use.tokens)} by {use.agent} {words.at(found[use.position].at)}"
        for use in uses
        if use.position in found
    ]
    events = sum(share.events for share in shares) - len(uses)
    if events > 0:
        left = sum(share.tokens for share in shares) - sum(use.tokens for use in uses)
        parts.append(f"{words.number(left)} in {words.count(events, 'smaller one')}")
    telling.say(title, *(item.at for item in found.values()), items=parts)


async def _say_when_again(
    event: TokensDenied,
    at: Recorded,
    rules: Rules | None,
    allowed: int | None,
    spending: Spending,
    past: Past,
    telling: Telling,
) -> None:
    # The one that was open. Its own stream is no way to it: there is a day's use behind it.
    day = await past.last_of(BudgetDayReset.type, upto=at.position)
    ends_at = day.event.ends_at if day and isinstance(day.event, BudgetDayReset) else None
    telling.facts["budget_resets_at"] = ends_at
    if rules and (most := _more_than_a_day(event, rules.policy)):
        telling.say(
            f"Under these rules no day would have allowed it: {words.tokens(event.tokens)} are more than"
            f" the {most}."
        )
        return
    if ends_at and day:
        until = words.moment(ends_at)
        wait = words.duration(ends_at - at.recorded_at)
        telling.say(
            f"It would have been allowed at the latest on the next day, from {until}, {wait} later.", day.at
        )
    if allowed is None:
        return
    limit = rules.policy.agent_limits.get(event.agent) if rules else None
    own = sum(share.tokens for share in spending.used_by if share.agent == event.agent)
    if limit is not None and own + event.tokens > limit:
        if event.reason != "agent_limit_reached":
            telling.say(
                f"Until then its own limit would have refused it as well: of {words.tokens(limit)} a day,"
                f" {event.agent} had used {words.number(own)}."
            )
        return
    short = event.tokens - (allowed - spending.used - spending.reserved)
    if 0 < short <= spending.reserved:
        telling.say(
            f"It could be allowed sooner: {words.number(short)} were missing, and what is given back of the"
            f" {words.number(spending.reserved)} set aside is free at once."
        )


def _more_than_a_day(event: TokensDenied, policy: PolicySet) -> str | None:
    """What a whole day has, for the squad or for the agent, where that is less than was asked for."""
    if event.tokens > policy.daily_tokens:
        return f"{words.number(policy.daily_tokens)} of a whole day"
    limit = policy.agent_limits.get(event.agent)
    if limit is not None and event.tokens > limit:
        return f"{words.number(limit)} that {event.agent} may use on a whole day"
    return None


def _by_agent(shares: tuple[Share, ...]) -> str:
    parts = [f"{share.agent} {words.number(share.tokens)}" for share in shares[:MOST_NAMED]]
    if rest := sum(share.tokens for share in shares[MOST_NAMED:]):
        parts.append(f"{words.count(len(shares) - MOST_NAMED, 'other agent')} {words.number(rest)}")
    return words.listed(parts)


def _shares(shares: tuple[Share, ...]) -> list[dict[str, Any]]:
    shown = [share._asdict() for share in shares[:MOST_NAMED]]
    if rest := shares[MOST_NAMED:]:
        shown.append(
            {
                "agent": None,
                "tokens": sum(share.tokens for share in rest),
                "events": sum(share.events for share in rest),
            }
        )
    return shown
