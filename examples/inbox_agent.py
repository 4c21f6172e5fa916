"""A small agent that waits at its inbox and answers each message: `python -m examples.inbox_agent`.

It needs nothing but the standard library. Copy it, and put your own work into `answer`. Any number of its
processes may run at once, and each may be killed at any moment:

- A message stays in the inbox until it is acknowledged, which is the last step, so none is lost.
- A message is claimed before it is worked on, so no two processes work on it at once.
- The answer is sent with an Idempotency-Key. If a process dies between sending it and acknowledging the
  message, the next one finds that out when it sends its own, and the squad has one answer.
- Tokens are reserved before they are spent. When the day's budget is used up, messages wait.
- If the service, or a proxy before it, answers with an error or not at all, the agent tries again.
- Only what somebody asked this agent is answered: no message to all, and no answer, which would be answered
  again by another agent of this kind, and so on.

If `answer` raises an error that is none of the network's, the process ends, with the message still in the
inbox: have something start it again. A message that fails every time would end it every time. So catch in
`answer` what no repetition mends, and return a text that says so: the message is answered with it, and
acknowledged.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "inbox_agent"
TOKENS = 500
"""What answering a message takes at most."""

WAIT_SECONDS = 50
"""How long a request waits for a message."""

CLAIM_LOST = ("conflict", "operation_expired", "operation_finished")
"""The codes with which a renewal is refused when the claim is lost for good."""

RENEWAL_SECONDS = 10.0
"""How often a claim is renewed: well within the 30 seconds for which it blocks others."""

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 5.0, 60.0
"""How long to pause when the service cannot be reached or has refused something."""


class Refused(Exception):
    """The service refused a request, for a reason with a stable `code`."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem['code']}: {problem.get('detail')}")
        self.code = str(problem["code"])
        self.retry_after_seconds = float(problem.get("retry_after_seconds") or 0)


class Work(NamedTuple):
    """The answer to a message, and what it took."""

    text: str
    tokens_used: int


def answer(message: dict[str, Any]) -> Work:
    """Return the answer to a message. A real agent would ask a model here."""
    return Work(f"Your message has {len(message['message'])} characters.", tokens_used=20)


def _json_of(response: IO[bytes]) -> dict[str, Any]:
    """Return the service's answer.

    Raises:
        OSError: it is not the service's.
    """
    with suppress(ValueError):
        answered = json.load(response)
        if isinstance(answered, dict):
            return answered
    raise OSError("the answer is not the service's")


class Squad:
    """The squad's HTTP API."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = f"{url.rstrip('/')}/api/v1"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
    ) -> dict[str, Any]:
        """Send a request, with an idempotency key if one is given, and return the answer.

        Raises:
            Refused: the service answered with a problem.
            OSError, HTTPException: it did not answer, or something else did, such as a proxy.
        """
        headers = {**self._headers, **({"Idempotency-Key": key} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data, headers, method=method)  # noqa: S310 - from the settings
        try:
            with urlopen(request, timeout=WAIT_SECONDS + 10) as response:  # noqa: S310 - as above
                return _json_of(response)
        except HTTPError as error:
            with error:
                problem = _json_of(error)
                if "code" not in problem:
                    raise
                raise Refused(problem) from error


class InboxAgent:
    """Answers messages until `stop` is set."""

    def __init__(self, squad: Squad, name: str = NAME) -> None:
        self.stop = threading.Event()
        self._squad = squad
        self._name = name

    def run(self) -> None:
        """Answer messages as they arrive."""
        after = 0
        while not self.stop.is_set():
            try:
                self._show_life()
                after = self._answer_next(after)
            except (Refused, OSError, HTTPException) as error:
                print(f"{self._name}: {error}", flush=True)
                seconds = error.retry_after_seconds if isinstance(error, Refused) else 0.0
                self.stop.wait(min(max(seconds, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS))

    def _show_life(self) -> None:
        """Send a heartbeat, or register if nobody has registered this agent."""
        try:
            self._squad.call("POST", f"/agents/{self._name}/heartbeat", {})
        except Refused as refused:
            if refused.code != "agent_not_found":
                raise
            self._squad.call("PUT", f"/agents/{self._name}", {"role": "answers messages"})

    def _answer_next(self, after: int) -> int:
        """Answer the messages after a position. Return the position to go on from.

        What stays in the inbox, such as a message that another process has claimed, is looked at again when
        nothing new has come for a while.
        """
        path = f"/agents/{self._name}/inbox?after={after}&wait_seconds={WAIT_SECONDS}"
        messages = self._squad.call("GET", path)["items"]
        for message in messages:
            if not self._is_question(message):
                self._acknowledge(message)
                continue
            try:
                with self._claimed(message) as position:
                    if self._is_open(message, position):
                        self._answer(message)
            except Refused as refused:
                if refused.code != "conflict":
                    raise
        return int(messages[-1]["position"]) if messages else 0

    def _is_question(self, message: dict[str, Any]) -> bool:
        return message["to_agent"] == self._name and "answers" not in (message["data"] or {})

    def _acknowledge(self, message: dict[str, Any]) -> None:
        self._squad.call("POST", f"/messages/{message['id']}/ack", {"agent": self._name})

    @contextmanager
    def _claimed(self, message: dict[str, Any]) -> Iterator[int]:
        """Hold the claim on a message during the block; yield the claim's position in the log.

        Raises:
            Refused: another process has claimed it (`conflict`), or a request failed.
        """
        resources = {"messageId": message["id"]}
        claim = {"agent": self._name, "action": "answer", "resources": resources}
        begun = self._squad.call("POST", "/operations", claim)
        operation = f"/operations/{begun['id']}"
        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(operation, done))
        renewing.start()
        outcome = "failed"
        try:
            yield begun["position"]
            outcome = "succeeded"
        finally:
            done.set()
            renewing.join()
            self._squad.call("POST", f"{operation}/finish", {"outcome": outcome})

    def _renew(self, operation: str, done: threading.Event) -> None:
        while not done.wait(RENEWAL_SECONDS):
            try:
                self._squad.call("POST", f"{operation}/heartbeat", {})
            except (Refused, OSError, HTTPException) as error:
                print(f"{self._name}: {error}", flush=True)
                if isinstance(error, Refused) and error.code in CLAIM_LOST:
                    return

    def _is_open(self, message: dict[str, Any], position: int) -> bool:
        """Whether a message was still in the inbox when it was claimed, and not yet answered by another."""
        before = int(message["position"]) - 1
        path = f"/agents/{self._name}/inbox?after={before}&limit=1&min_position={position}"
        return any(item["id"] == message["id"] for item in self._squad.call("GET", path)["items"])

    def _answer(self, message: dict[str, Any]) -> None:
        squad = self._squad
        reserved = squad.call("POST", "/budget/reservations", {"agent": self._name, "tokens": TOKENS})
        reservation = f"/budget/reservations/{reserved['id']}"
        try:
            work = answer(message)
        except BaseException:
            with suppress(Refused, OSError, HTTPException):
                squad.call("DELETE", reservation)
            raise
        squad.call("POST", f"{reservation}/settle", {"tokens_used": work.tokens_used})
        reply = {
            "from_agent": self._name,
            "to_agent": message["from_agent"],
            "message": work.text,
            "data": {"answers": message["id"]},
        }
        try:
            squad.call("POST", "/messages", reply, key=f"answer-{message['id']}")
        except Refused as refused:
            # An earlier attempt sent another text before it died. That is the answer.
            if refused.code != "idempotency_mismatch":
                raise
        self._acknowledge(message)
        print(f"{self._name}: answered {message['from_agent']}", flush=True)


def main() -> None:
    """Run the agent until it is interrupted."""
    squad = Squad(os.environ.get("SQUAD_URL", "http://127.0.0.1:3001"), os.environ.get("SQUAD_KEY"))
    with suppress(KeyboardInterrupt):
        InboxAgent(squad).run()


if __name__ == "__main__":
    main()
