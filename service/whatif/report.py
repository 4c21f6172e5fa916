"""What would have been different: the counts, and the first differences in full."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

from service.explain import words

What = Literal["reservation", "claim", "heartbeat", "finish"]
Verdict = Literal["allowed", "refused"]

MAX_LISTED_DIFFERENCES = 10
"""The number of differences that are listed."""

MAX_ROWS = 1_000
"""The number of rows by day and agent, and of warnings, that are listed; the totals cover all."""

WHAT_IS_EXACT = (
    "Up to the first difference, this is what would have happened. After it, the agents would have acted"
    " differently: an agent that is refused retries or does something else, and one that is allowed goes"
    " on. The rest shows how these rules would have judged the same requests."
)
_USE_IS_A_FACT = (
    "Tokens that were used count under any rules, except those settled from reservations that would have"
    " been refused."
)
_USE_IS_ASSUMED = (
    "How much refused reservations would have used is not known: where they would have been allowed, they"
    " count as used in full."
)
_CLAIM_IS_ASSUMED = (
    "How long refused claims would have been held is not known: where they would have been allowed, they"
    " count as held without a heartbeat, so they block for one conflict window."
)


@dataclass
class Difference:
    """A request that would have been judged differently."""

    position: int
    recorded_at: datetime
    day: date
    agent: str
    what: What
    recorded: Verdict
    instead: Verdict
    tokens: int | None
    sentence: str


class Warned(NamedTuple):
    """A warning that would have come at a different time; None means never."""

    day: date
    percent: int
    recorded_at: datetime | None
    instead_at: datetime | None


@dataclass
class Row:
    """What would have been different for an agent on a day."""

    day: date
    agent: str
    refused_instead: int = 0
    """Requests that were allowed and would have been refused."""
    allowed_instead: int = 0
    """Requests that were refused and would have been allowed."""
    tokens_refused: int = 0
    """Tokens that were reserved and would have been refused."""
    tokens_allowed: int = 0
    """Tokens that were refused and would have been reserved."""


@dataclass
class Report:
    """The whole result."""

    after: int
    """The position after which the other rules apply."""
    upto: int = 0
    """The position up to which history was judged."""
    requests: int = 0
    """The number of requests judged again."""
    judged: Counter[tuple[What, Verdict]] = field(default_factory=Counter)
    """The number of requests of each kind that would have been allowed, or refused, instead."""
    runs_refused: int = 0
    runs_allowed: int = 0
    tokens_refused: int = 0
    tokens_allowed: int = 0
    tokens_not_used: int = 0
    """Tokens settled from reservations that would have been refused."""
    warnings_changed: int = 0
    expired_too_soon: int = 0
    """The number of operations that expired in the log and would still have been active."""
    rows: dict[tuple[date, str], Row] = field(default_factory=dict)
    rows_left_out: int = 0
    """The number of differences on days and agents beyond `MAX_ROWS`."""
    differences: list[Difference] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)

    @property
    def refused_instead(self) -> int:
        """The number of requests that were allowed and would have been refused."""
        return sum(count for (_, instead), count in self.judged.items() if instead == "refused")

    @property
    def allowed_instead(self) -> int:
        """The number of requests that were refused and would have been allowed."""
        return sum(count for (_, instead), count in self.judged.items() if instead == "allowed")

    @property
    def is_different(self) -> bool:
        """Whether anything would have been different."""
        return bool(self.judged) or self.warnings_changed > 0

    def count(self, difference: Difference) -> bool:
        """Count a difference; return whether it is among those that are listed."""
        self.judged[difference.what, difference.instead] += 1
        tokens, row = difference.tokens or 0, self._row(difference.day, difference.agent)
        if difference.instead == "refused":
            self.tokens_refused += tokens
            row.refused_instead += 1
            row.tokens_refused += tokens
        else:
            self.tokens_allowed += tokens
            row.allowed_instead += 1
            row.tokens_allowed += tokens
        is_listed = len(self.differences) < MAX_LISTED_DIFFERENCES
        if is_listed:
            self.differences.append(difference)
        return is_listed

    def warn(self, warned: Warned) -> None:
        """Count a warning that would have come at a different time."""
        self.warnings_changed += 1
        if len(self.warnings) < MAX_ROWS:
            self.warnings.append(warned)

    def summary(self) -> str:
        """The result in one sentence."""
        if not self.is_different:
            judged = words.count(self.requests, "request")
            return f"Nothing would have been different, in {judged}."
        warned = words.count(self.warnings_changed, "warning")
        late = f"{warned} would have come at a different time, or not at all"
        if not self.judged:
            return f"Every request would have been judged the same; {late}."
        counts = (
            f"Of {words.count(self.requests, 'request')}, {self.refused_instead:,} would have been refused"
            f" instead of allowed, and {self.allowed_instead:,} allowed instead of refused"
        )
        return f"{counts}; {late}." if self.warnings_changed else f"{counts}."

    def caveats(self) -> list[str]:
        """The limits of the result; if anything is different, the first says what is exact."""
        unheard = self._not_judged()
        if not self.is_different:
            return unheard
        reservations = self.judged["reservation", "allowed"] + self.judged["reservation", "refused"]
        claims = self.judged["claim", "allowed"] + self.judged["heartbeat", "allowed"]
        return [
            WHAT_IS_EXACT,
            *([_USE_IS_A_FACT] if reservations else []),
            *([_USE_IS_ASSUMED] if self.judged["reservation", "allowed"] else []),
            *([_CLAIM_IS_ASSUMED] if claims else []),
            *unheard,
        ]

    def _not_judged(self) -> list[str]:
        if not self.expired_too_soon:
            return []
        operations = words.count(self.expired_too_soon, "operation")
        return [
            f"{operations} that expired would still have been active. Later requests for what had expired"
            " were refused without an event, so they could not be judged again."
        ]

    def _row(self, day: date, agent: str) -> Row:
        row = self.rows.get((day, agent))
        if row is None:
            row = Row(day, agent)
            if len(self.rows) < MAX_ROWS:
                self.rows[day, agent] = row
            else:
                self.rows_left_out += 1
        return row


def shown(report: Report) -> dict[str, Any]:
    """The report as the API shows it."""
    judged = report.judged
    return {
        "summary": report.summary(),
        "different": report.is_different,
        "after": report.after,
        "upto": report.upto,
        "requests": report.requests,
        "refused_instead": report.refused_instead,
        "allowed_instead": report.allowed_instead,
        "reservations": _pair(judged, "reservation"),
        "claims": _pair(judged, "claim"),
        "heartbeats": _pair(judged, "heartbeat"),
        "finishes": _pair(judged, "finish"),
        "runs": {"refused_instead": report.runs_refused, "allowed_instead": report.runs_allowed},
        "tokens_refused": report.tokens_refused,
        "tokens_allowed": report.tokens_allowed,
        "tokens_not_used": report.tokens_not_used,
        "days": [asdict(row) for _, row in sorted(report.rows.items())],
        "days_left_out": report.rows_left_out,
        "differences": [asdict(difference) for difference in report.differences],
        "warnings_changed": report.warnings_changed,
        "warnings": [warned._asdict() for warned in report.warnings],
        "caveats": report.caveats(),
    }


def _pair(judged: Counter[tuple[What, Verdict]], what: What) -> dict[str, int]:
    return {"refused_instead": judged[what, "refused"], "allowed_instead": judged[what, "allowed"]}
