"""Which keys a route accepts, and what an agent's key may see."""

from __future__ import annotations

import pytest

from service.callers import ANYBODY, Caller
from service.http.problems import Problem
from service.http.scope import DENIAL_DETAIL, Scope, caller, own_agent, require, require_own, set_caller

ANN = Caller("agent", "2222222222", "ann")
AUDITOR, OPERATOR = Caller("auditor", "3333333333"), Caller("operator", "4444444444")

ACCEPTED = {
    Scope.READ: (ANN, AUDITOR, OPERATOR, ANYBODY),
    Scope.AUDIT: (AUDITOR, OPERATOR, ANYBODY),
    Scope.ACT: (ANN, OPERATOR, ANYBODY),
    Scope.OPERATE: (OPERATOR, ANYBODY),
}


@pytest.mark.parametrize("who", [ANN, AUDITOR, OPERATOR, ANYBODY])
@pytest.mark.parametrize("scope", ACCEPTED)
def test_scope_accepts_its_keys_and_names_them_to_others(scope: Scope, who: Caller) -> None:
    set_caller(who)
    assert caller() is who
    if who in ACCEPTED[scope]:
        require(scope)
    else:
        with pytest.raises(Problem) as refused:
            require(scope)
        assert (refused.value.code, refused.value.body["detail"]) == ("not_allowed", DENIAL_DETAIL[scope])


@pytest.mark.parametrize("owner", ["ann", "bob", None])
@pytest.mark.parametrize("who", [AUDITOR, OPERATOR, ANYBODY])
def test_caller_that_is_not_an_agent_sees_everything(who: Caller, owner: str | None) -> None:
    set_caller(who)
    assert own_agent() is None
    require_own(owner, "it belongs to another agent")


def test_agents_key_sees_what_belongs_to_the_agent() -> None:
    set_caller(ANN)
    assert own_agent() == "ann"
    require_own("ann", "it belongs to another agent")


@pytest.mark.parametrize("owner", ["bob", None])
def test_agents_key_sees_nothing_else(owner: str | None) -> None:
    set_caller(ANN)
    with pytest.raises(Problem) as refused:
        require_own(owner, "it belongs to another agent")
    assert refused.value.code == "wrong_agent"
    assert "'ann'" in str(refused.value)
