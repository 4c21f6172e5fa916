"""API keys: creation, first use, revocation and expiry, and when a key is required."""

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
from tests.unit.stories import START, Story, given
from tests.unit.test_commands import taken

ONE, OTHER = "2222222222", "3333333333"
DIGEST = "0" * 64
DAY_SECONDS = 86_400.0


def creation(key_id: str = ONE, **fields: Any) -> CreateKey:
    return CreateKey(**{"key_id": key_id, "digest": DIGEST, "scope": "operator", **fields})


def a_key(key_id: str = ONE, **fields: Any) -> Story:
    return given(creation(key_id, **fields))


class TestCreation:
    def test_operator_key_is_created(self) -> None:
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

    def test_agent_key_is_created_for_an_unregistered_agent(self) -> None:
        story = given().when(creation(scope="agent", for_agent="ann", expires_days=2))
        [created] = story.events
        assert isinstance(created, KeyCreated)
        assert (created.agent, created.expires_at) == ("ann", START + timedelta(days=2))
        story.then_replied(agent="ann", expires_at=START + timedelta(days=2))

    @pytest.mark.parametrize(
        "fields",
        [
            {"scope": "agent"},
            {"for_agent": "ann"},
            {"scope": "auditor", "for_agent": "ann"},
            {"scope": "x"},
        ],
    )
    def test_agent_is_required_for_agent_keys_and_rejected_for_others(self, fields: dict[str, str]) -> None:
        with pytest.raises(ValidationError):
            creation(**fields)

    @pytest.mark.parametrize("days", [0, -1, 36_501])
    def test_lifetime_out_of_bounds_is_rejected(self, days: int) -> None:
        with pytest.raises(ValidationError):
            creation(expires_days=days)

    def test_id_of_an_active_key_is_refused(self) -> None:
        a_key().when(creation()).then_refused("key_exists")

    def test_id_of_a_revoked_or_expired_key_is_refused(self) -> None:
        a_key().given(RevokeKey(key_id=ONE)).when(creation()).then_refused("key_exists")
        a_key(expires_days=1).when(creation(), at=DAY_SECONDS).then_refused("key_exists")

    def test_number_of_keys_in_use_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deciding, "MAX_KEYS", 1)
        story = a_key().when(creation(OTHER))
        story.then_refused("too_many_keys")
        story.given(RevokeKey(key_id=ONE)).when(creation(OTHER)).then_recorded(*story.events)
        assert story.outcome.refusal is None


class TestFirstUse:
    def test_first_use_is_recorded_once(self) -> None:
        story = a_key().when(NoteKeyUse(key_id=ONE), at=5)
        story.then(KeyFirstUsed(key_id=ONE, agent=None))
        assert story.caused_by(KeyFirstUsed) == story.position_of(KeyCreated)
        assert story.row(KEYS, ONE).first_used_at == story.now
        story.when(NoteKeyUse(key_id=ONE), at=6).then_nothing()

    def test_first_use_noted_by_several_processes_is_recorded_once(self) -> None:
        story = a_key().when(NoteKeyUse(key_id=ONE), NoteKeyUse(key_id=ONE))
        story.then(KeyFirstUsed(key_id=ONE, agent=None))

    def test_first_use_of_a_revoked_key_is_refused(self) -> None:
        story = a_key().given(RevokeKey(key_id=ONE))
        story.when(NoteKeyUse(key_id=ONE)).then_refused("key_not_found")
        a_key().when(RevokeKey(key_id=ONE), NoteKeyUse(key_id=ONE)).then_refused(
            "key_not_found", KeyRevoked(key_id=ONE, agent=None)
        )

    def test_first_use_of_an_agent_key_names_the_agent(self) -> None:
        story = a_key(scope="agent", for_agent="ann").when(NoteKeyUse(key_id=ONE))
        story.then(KeyFirstUsed(key_id=ONE, agent="ann"))


class TestRevocation:
    def test_revocation_is_recorded_and_the_key_leaves_memory(self) -> None:
        story = a_key(scope="agent", for_agent="ann").when(RevokeKey(key_id=ONE))
        story.then(KeyRevoked(key_id=ONE, agent="ann"))
        assert story.caused_by(KeyRevoked) == story.position_of(KeyCreated)
        assert story.squad.rows(KEYS).get(ONE) is None
        assert f"key-{ONE}" not in story.squad.versions

    def test_second_revocation_changes_nothing(self) -> None:
        story = a_key().given(RevokeKey(key_id=ONE), at=1)
        revoked = story.position_of(KeyRevoked)
        story.when(RevokeKey(key_id=ONE), at=9).then_nothing()
        story.then_replied(position=revoked, revoked_at=START + timedelta(seconds=1))

    def test_revoking_an_unknown_key_is_refused(self) -> None:
        given().when(RevokeKey(key_id=ONE)).then_refused("key_not_found")


class TestExpiry:
    def test_key_expires_by_the_clock(self) -> None:
        story = a_key(scope="agent", for_agent="ann", expires_days=1)
        assert next_due(story.squad) == START + timedelta(hours=12)
        story.when(at=DAY_SECONDS - 1)
        assert story.row(KEYS, ONE).state == "active"
        story.when(at=DAY_SECONDS).then_clock_recorded(KeyExpired(key_id=ONE, agent="ann"))
        assert story.caused_by(KeyExpired) == story.position_of(KeyCreated)
        assert story.squad.rows(KEYS).get(ONE) is None

    def test_key_without_expiry_does_not_affect_the_timer(self) -> None:
        assert next_due(a_key().squad) == START + timedelta(hours=12)

    def test_timer_waits_for_the_keys_expiry(self) -> None:
        story = a_key(expires_days=1)
        # The budget day has turned meanwhile, and turns again only after the key's expiry.
        story.when(at=DAY_SECONDS - 1)
        assert next_due(story.squad) == START + timedelta(days=1)

    def test_expired_key_can_still_be_revoked(self) -> None:
        story = a_key(expires_days=1).when(at=DAY_SECONDS)
        story.when(RevokeKey(key_id=ONE)).then(KeyRevoked(key_id=ONE, agent=None))


class TestKeyRequirement:
    def test_no_key_is_required_before_the_first_one(self) -> None:
        assert not is_key_required(given().squad)

    def test_key_is_required_until_all_are_revoked(self) -> None:
        story = a_key().given(creation(OTHER))
        assert is_key_required(story.squad)
        story.given(RevokeKey(key_id=ONE))
        assert is_key_required(story.squad)
        story.given(RevokeKey(key_id=OTHER))
        assert not is_key_required(story.squad)

    def test_key_is_still_required_when_the_last_one_has_expired(self) -> None:
        story = a_key(expires_days=1).when(at=DAY_SECONDS * 30)
        assert not list(story.squad.all(KEYS))
        assert is_key_required(story.squad)
        story.given(RevokeKey(key_id=ONE))
        assert not is_key_required(story.squad)

    def test_recalling_a_revoked_key_does_not_count_it_again(self) -> None:
        story = a_key().given(creation(OTHER), RevokeKey(key_id=ONE), RevokeKey(key_id=ONE))
        assert story.row(ACCESS, THE_SQUAD).unrevoked_keys == 1


class TestKeyFormat:
    def test_new_key_contains_its_id_and_matches_its_digest(self) -> None:
        key = api_keys.make()
        assert key.text.startswith(f"squad_{key.id}_")
        assert taken(KeyId, key.id) == key.id
        assert creation(key.id, digest=key.digest).key_id == key.id
        assert api_keys.digest_of(key.text) == key.digest
        assert key.text not in (key.id, key.digest)

    def test_new_keys_are_unique(self) -> None:
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
    def test_id_is_extracted_from_a_whole_or_partial_key(self, text: str, id_: str) -> None:
        assert api_keys.id_in(text) == id_
