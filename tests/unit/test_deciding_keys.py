"""API keys: made, used, run out, taken back, and known to every process that folds the log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from eventstore.events import KeyCreated, KeyExpired, KeyFirstUsed, KeyRevoked
from projections.keys import ACCESS, KEYS, THE_SQUAD
from service import api_keys
from service.commands import CreateKey, NoteKeyUse, RevokeKey
from service.commands.keys import KeyId
from service.decide import keys as deciding
from service.decide.access import is_key_required
from service.decide.clock import next_due
from tests.unit.support import START, Story, given
from tests.unit.test_commands import taken

ONE, OTHER = "2222222222", "3333333333"
DIGEST = "0" * 64
DAY_SECONDS = 86_400.0


def creation(key_id: str = ONE, **fields: Any) -> CreateKey:
    return CreateKey(**{"key_id": key_id, "digest": DIGEST, "scope": "operator", **fields})


def a_key(key_id: str = ONE, **fields: Any) -> Story:
    return given(creation(key_id, **fields))


class TestMaking:
    def test_an_operators(self) -> None:
        story = given().when(creation(note="the deploy script"))
        story.then(
            KeyCreated(
                key_id=ONE,
                agent=None,
                scope="operator",
                digest=DIGEST,
                note="the deploy script",
                expires_at=None,
            )
        )
        assert story.recorded[0].stream == f"key-{ONE}"
        row = story.row(KEYS, ONE)
        assert (row.state, row.created_by, row.first_used_at) == ("active", "agent:tester", None)

    def test_an_agents_which_need_not_be_registered(self) -> None:
        story = given().when(creation(scope="agent", for_agent="ann", expires_days=2))
        [created] = story.events
        assert isinstance(created, KeyCreated)
        assert (created.agent, created.expires_at) == ("ann", START + timedelta(days=2))
        story.replied(agent="ann", expires_at=START + timedelta(days=2))

    @pytest.mark.parametrize(
        "fields",
        [
            {"scope": "agent"},
            {"for_agent": "ann"},
            {"scope": "auditor", "for_agent": "ann"},
            {"scope": "x"},
        ],
    )
    def test_a_key_has_an_agent_exactly_where_it_is_an_agents(self, fields: dict[str, str]) -> None:
        with pytest.raises(ValidationError):
            creation(**fields)

    @pytest.mark.parametrize("days", [0, -1, 36_501])
    def test_it_lives_a_day_at_least(self, days: int) -> None:
        with pytest.raises(ValidationError):
            creation(expires_days=days)

    def test_an_id_is_given_once(self) -> None:
        a_key().when(creation()).then_refused("key_exists")

    def test_nor_is_it_given_again_when_the_key_is_gone(self) -> None:
        a_key().given(RevokeKey(key_id=ONE)).when(creation()).then_refused("key_exists")
        a_key(expires_days=1).when(creation(), at=DAY_SECONDS).then_refused("key_exists")

    def test_only_so_many_are_in_use_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deciding, "MAX_KEYS", 1)
        story = a_key().when(creation(OTHER))
        story.then_refused("too_many_keys")
        story.given(RevokeKey(key_id=ONE)).when(creation(OTHER)).then_recorded(*story.events)
        assert story.outcome.refusal is None


class TestFirstUse:
    def test_is_noted_once(self) -> None:
        story = a_key().when(NoteKeyUse(key_id=ONE), at=5)
        story.then(KeyFirstUsed(key_id=ONE, agent=None))
        assert story.caused_by(KeyFirstUsed) == story.position_of(KeyCreated)
        assert story.row(KEYS, ONE).first_used_at == story.now
        story.when(NoteKeyUse(key_id=ONE), at=6).then_nothing()

    def test_by_several_processes_at_once_is_noted_once(self) -> None:
        story = a_key().when(NoteKeyUse(key_id=ONE), NoteKeyUse(key_id=ONE))
        story.then(KeyFirstUsed(key_id=ONE, agent=None))

    def test_of_what_is_gone_is_not_noted(self) -> None:
        story = a_key().given(RevokeKey(key_id=ONE))
        story.when(NoteKeyUse(key_id=ONE)).then_refused("key_not_found")
        a_key().when(RevokeKey(key_id=ONE), NoteKeyUse(key_id=ONE)).then_refused(
            "key_not_found", KeyRevoked(key_id=ONE, agent=None)
        )

    def test_of_an_agents_is_told_of_the_agent(self) -> None:
        story = a_key(scope="agent", for_agent="ann").when(NoteKeyUse(key_id=ONE))
        story.then(KeyFirstUsed(key_id=ONE, agent="ann"))


class TestRevoking:
    def test_takes_a_key_back(self) -> None:
        story = a_key(scope="agent", for_agent="ann").when(RevokeKey(key_id=ONE))
        story.then(KeyRevoked(key_id=ONE, agent="ann"))
        assert story.caused_by(KeyRevoked) == story.position_of(KeyCreated)
        assert story.squad.rows(KEYS).get(ONE) is None
        assert f"key-{ONE}" not in story.squad.versions

    def test_once_more_changes_nothing(self) -> None:
        story = a_key().given(RevokeKey(key_id=ONE), at=1)
        revoked = story.position_of(KeyRevoked)
        story.when(RevokeKey(key_id=ONE), at=9).then_nothing()
        story.replied(position=revoked, revoked_at=START + timedelta(seconds=1))

    def test_what_never_was_is_told(self) -> None:
        given().when(RevokeKey(key_id=ONE)).then_refused("key_not_found")


class TestRunningOut:
    def test_happens_by_the_clock(self) -> None:
        story = a_key(scope="agent", for_agent="ann", expires_days=1)
        assert next_due(story.squad) == START + timedelta(hours=12)
        story.when(at=DAY_SECONDS - 1)
        assert story.row(KEYS, ONE).state == "active"
        story.when(at=DAY_SECONDS).meanwhile(KeyExpired(key_id=ONE, agent="ann"))
        assert story.caused_by(KeyExpired) == story.position_of(KeyCreated)
        assert story.squad.rows(KEYS).get(ONE) is None

    def test_is_nothing_that_the_timer_waits_for_where_a_key_has_no_end(self) -> None:
        assert next_due(a_key().squad) == START + timedelta(hours=12)

    def test_is_what_the_timer_waits_for(self) -> None:
        story = a_key(expires_days=1)
        # A budget day turned in between; the next one does so after the key has run out.
        story.when(at=DAY_SECONDS - 1)
        assert next_due(story.squad) == START + timedelta(days=1)

    def test_can_still_be_taken_back(self) -> None:
        story = a_key(expires_days=1).when(at=DAY_SECONDS)
        story.when(RevokeKey(key_id=ONE)).then(KeyRevoked(key_id=ONE, agent=None))


class TestWhetherOneIsNeeded:
    def test_not_before_the_first(self) -> None:
        assert not is_key_required(given().squad)

    def test_as_long_as_one_is_not_revoked(self) -> None:
        story = a_key().given(creation(OTHER))
        assert is_key_required(story.squad)
        story.given(RevokeKey(key_id=ONE))
        assert is_key_required(story.squad)
        story.given(RevokeKey(key_id=OTHER))
        assert not is_key_required(story.squad)

    def test_also_when_the_last_has_run_out(self) -> None:
        story = a_key(expires_days=1).when(at=DAY_SECONDS * 30)
        assert not list(story.squad.all(KEYS))
        assert is_key_required(story.squad)
        story.given(RevokeKey(key_id=ONE))
        assert not is_key_required(story.squad)

    def test_recalling_a_finished_key_does_not_count_it_again(self) -> None:
        story = a_key().given(creation(OTHER), RevokeKey(key_id=ONE), RevokeKey(key_id=ONE))
        assert story.row(ACCESS, THE_SQUAD).unrevoked_keys == 1


class TestWhatKeysLookLike:
    def test_a_fresh_one(self) -> None:
        key = api_keys.make()
        assert key.text.startswith(f"squad_{key.id}_")
        assert taken(KeyId, key.id) == key.id
        assert creation(key.id, digest=key.digest).key_id == key.id
        assert api_keys.digest_of(key.text) == key.digest
        assert key.text not in (key.id, key.digest)

    def test_no_two_are_alike(self) -> None:
        made = [api_keys.make() for _ in range(200)]
        assert len({key.text for key in made}) == len({key.id for key in made}) == 200

    @pytest.mark.parametrize(
        ("text", "id_"),
        [
            ("squad_7f3k9q2m4x_abc", "7f3k9q2m4x"),
            ("squad_7f3k9q2m4x", "7f3k9q2m4x"),
            ("7f3k9q2m4x", "7f3k9q2m4x"),
            ("squad_", ""),
            ("", ""),
        ],
    )
    def test_the_id_is_read_out_of_whatever_part_is_at_hand(self, text: str, id_: str) -> None:
        assert api_keys.id_in(text) == id_
