"""Whose keys a route takes, and whose things an agent's key shows."""

from __future__ import annotations

import pytest

from service.callers import ANYBODY, Caller
from service.http.problems import Problem
from service.http.scope import DENIAL_DETAIL, Scope, caller, own_agent, require, require_own, set_caller

ANN = Caller("agent", "2222222222", "ann")
AUDITOR, OPERATOR = Caller("auditor", "3333333333"), Caller("operator", "4444444444")

TAKEN = {
    Scope.READ: (ANN, AUDITOR, OPERATOR, ANYBODY),
    Scope.AUDIT: (AUDITOR, OPERATOR, ANYBODY),
    Scope.ACT: (ANN, OPERATOR, ANYBODY),
    Scope.OPERATE: (OPERATOR, ANYBODY),
}


@pytest.mark.parametrize("who", [ANN, AUDITOR, OPERATOR, ANYBODY])
@pytest.mark.parametrize("scope", TAKEN)
def test_a_route_takes_the_keys_it_is_for_and_says_which_those_are(scope: Scope, who: Caller) -> None:
    set_caller(who)
    assert caller() is who
    if who in TAKEN[scope]:
        require(scope)
    else:
        with pytest.raises(Problem) as refused:
            require(scope)
        assert (refused.value.code, refused.value.body["detail"]) == ("not_allowed", DENIAL_DETAIL[scope])


@pytest.mark.parametrize("whose", ["ann", "bob", None])
@pytest.mark.parametrize("who", [AUDITOR, OPERATOR, ANYBODY])
def test_whoever_is_no_agent_sees_everything(who: Caller, whose: str | None) -> None:
    set_caller(who)
    assert own_agent() is None
    require_own(whose, "that is another's")


def test_an_agents_key_shows_what_is_its_own() -> None:
    set_caller(ANN)
    assert own_agent() == "ann"
    require_own("ann", "that is another's")


@pytest.mark.parametrize("whose", ["bob", None])
def test_an_agents_key_shows_nothing_else(whose: str | None) -> None:
    set_caller(ANN)
    with pytest.raises(Problem) as refused:
        require_own(whose, "that is another's")
    assert refused.value.code == "wrong_agent"
    assert "'ann'" in str(refused.value)
