"""Claims and their heartbeats, judged again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from msgspec import structs

from eventstore.events import OperationRenewed, OperationStarted
from projections.operations import OPERATIONS
from service.decide.operations import find_conflict
from service.whatif import wording

if TYPE_CHECKING:
    from datetime import datetime

    from eventstore.events import ConflictDetected, OperationExpired, OperationFinished
    from eventstore.recorded import Recorded
    from projections.operations import OperationRow
    from service.whatif.trial import Trial


@dataclass
class _Claim:
    """An operation that is active in the log."""

    blocks_until: datetime
    expires_at: datetime
    would_expire_at: datetime | None = None
    """When it would have expired, if that is before its end in the log and not reported yet."""


class Claims:
    """The operations part of a trial."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._squad = trial.squad
        self._logged = {
            row.id: _Claim(row.blocks_until, row.expires_at) for row in trial.squad.all(OPERATIONS)
        }

    def pass_time(self, now: datetime) -> None:
        """Expire operations that would not have been renewed in time."""
        for row in self._squad.expire(now):
            if claim := self._logged.get(row.id):
                claim.would_expire_at = row.expires_at

    def start(self, event: OperationStarted, at: Recorded) -> None:
        """Judge a claim that was made."""
        trial = self._trial
        self._logged[event.operation_id] = _Claim(event.blocks_until, event.expires_at)
        if trial.judging:
            trial.report.requests += 1
            if conflict := find_conflict(self._squad, event.resources, at.recorded_at):
                sentence = wording.claim_refused(event, conflict)
                trial.refused[event.operation_id] = trial.record_difference(
                    at, event, "claim", "refused", sentence
                )
                return
        self._squad.claim(self._timed(event, at), at)

    def renew(self, event: OperationRenewed, at: Recorded) -> None:
        """Judge a heartbeat that was accepted."""
        trial = self._trial
        claim, row = self._logged.get(event.operation_id), self._squad.operation(event.operation_id)
        if claim:
            claim.blocks_until, claim.expires_at = event.blocks_until, event.expires_at
        if row is None:
            self._report_expiry(event, claim, at, "heartbeat")
            return
        if trial.judging:
            trial.report.requests += 1
            if conflict := find_conflict(self._squad, row.resources, at.recorded_at, renewing=row):
                trial.record_difference(
                    at, event, "heartbeat", "refused", wording.heartbeat_refused(row, conflict)
                )
                return
            if trial.rules.changes_claims:
                event = self._renewal(row, at.recorded_at)
        self._squad.claim(event, at)

    def finish(self, event: OperationFinished, at: Recorded) -> None:
        """End an operation; one that would have expired before cannot be finished."""
        claim = self._forget(event.operation_id)
        if self._squad.operation(event.operation_id):
            self._squad.finish(event)
        elif claim and claim.expires_at > at.recorded_at:
            self._report_expiry(event, claim, at, "finish")

    def expire(self, event: OperationExpired) -> None:
        """Forget an operation of the log. When it would have expired is up to `pass_time`."""
        self._trial.report.expired_too_soon += self._squad.operation(event.operation_id) is not None
        self._forget(event.operation_id)

    def conflict(self, event: ConflictDetected, at: Recorded) -> None:
        """Judge a claim, or a heartbeat, that was refused."""
        trial, now = self._trial, at.recorded_at
        if not trial.judging:
            return
        trial.report.requests += 1
        renewing = self._heartbeat_of(event, now)
        if find_conflict(self._squad, event.resources, now, renewing=renewing):
            return
        if renewing:
            trial.record_difference(at, event, "heartbeat", "allowed", wording.heartbeat_allowed(event))
            self._squad.claim(self._renewal(renewing, now), at)
            return
        trial.record_difference(at, event, "claim", "allowed", wording.claim_allowed(event))
        started = OperationStarted(
            operation_id=event.conflict_id,
            agent=event.agent,
            action=event.action,
            resources=event.resources,
            **self._times(self._squad.policy.operation_timeout_seconds, now),
        )
        self._squad.claim(started, at)

    def _forget(self, operation_id: str) -> _Claim | None:
        """Forget an operation that has ended in the log."""
        self._trial.refused.pop(operation_id, None)
        return self._logged.pop(operation_id, None)

    def _heartbeat_of(self, event: ConflictDetected, now: datetime) -> OperationRow | None:
        """The operation whose heartbeat was refused; None if it was a new claim that was refused.

        The log does not say which it was. It was most likely a heartbeat if the agent still had a claim
        with the same action and resources; unless the agent's own claim blocked it, as it does a new claim.
        """
        holder = self._logged.get(event.operation_id)
        if event.agent in event.holders and holder and holder.blocks_until > now:
            return None
        mine = (
            row
            for resource in event.resources.items()
            for operation_id in self._squad.claims(resource)
            if (row := self._squad.operation(operation_id))
            and row.id != event.operation_id
            and row.expires_at > now
            and (row.agent, row.action, row.resources) == (event.agent, event.action, event.resources)
        )
        return min(mine, key=lambda row: row.fencing_token, default=None)

    def _report_expiry(
        self,
        event: OperationRenewed | OperationFinished,
        claim: _Claim | None,
        at: Recorded,
        what: Literal["heartbeat", "finish"],
    ) -> None:
        """Report, once, that an operation would have expired, unless it would never have started."""
        if claim and claim.would_expire_at:
            self._trial.report.requests += 1
            sentence = wording.expired(event.agent, what, claim.would_expire_at)
            self._trial.record_difference(at, event, what, "refused", sentence)
            claim.would_expire_at = None

    def _timed(self, event: OperationStarted, at: Recorded) -> OperationStarted:
        """The claim with the times that it would have had."""
        trial = self._trial
        if not trial.judging or not trial.rules.changes_claims:
            return event
        timeout, policy = trial.rules.operation_timeout_seconds, trial.policy
        # A claim with its own time to live, other than the policy's, keeps it.
        is_own = policy is None or event.ttl_seconds != policy.operation_timeout_seconds
        ttl_seconds = event.ttl_seconds if timeout is None or is_own else timeout
        return structs.replace(event, **self._times(ttl_seconds, at.recorded_at))

    def _renewal(self, row: OperationRow, now: datetime) -> OperationRenewed:
        times = self._times(row.ttl_seconds, now)
        del times["ttl_seconds"]
        return OperationRenewed(operation_id=row.id, agent=row.agent, **times)

    def _times(self, ttl_seconds: float, now: datetime) -> dict[str, Any]:
        window_seconds = min(self._squad.policy.conflict_window_seconds, ttl_seconds)
        return {
            "ttl_seconds": ttl_seconds,
            "blocks_until": now + timedelta(seconds=window_seconds),
            "expires_at": now + timedelta(seconds=ttl_seconds),
        }
