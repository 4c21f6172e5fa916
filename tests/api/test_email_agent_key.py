"""The e-mail agent of `examples` with an API key, on a squad that requires one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from examples.email_agent.squad import Squad, SquadRefusal
from tests.api.client import running_service
from tests.support.email_agent import settings
from tests.support.keys import make_key

if TYPE_CHECKING:
    from eventstore.events import KeyScope

MAIL = {"gmail_message_id": "g-1", "from_email": "customer@example.org", "payload": {"text": "hello"}}


async def test_email_agent_works_with_its_own_key(database: str) -> None:
    key = (await make_key(database, "agent", "email_agent")).text
    async with running_service(database) as service, aiohttp.ClientSession() as http:
        squad = Squad(settings(squad_url=service.url, squad_api_key=key), http)
        assert await squad.log_email(MAIL)
        assert not await squad.log_email(MAIL)
        listed = (await service.api.with_key(key).get("emails")).expect(200)["items"]
        email = await squad.email(listed[0]["id"])
        assert await squad.update_email(email, {"category": "order", "handled_by": "email_agent"})
        assert (await squad.email(email.id)).category == "order"
        assert not await squad.update_email(email, {"category": "support"})
        assert (await squad.email(email.id)).category == "order"


@pytest.mark.parametrize(
    ("scope", "agent", "code"),
    [
        ("agent", "quote_agent", "wrong_agent"),
        ("auditor", None, "not_allowed"),
        (None, None, "unauthorized"),
    ],
)
async def test_email_agent_is_refused_when_its_key_is_missing_or_not_its_own(
    database: str, scope: KeyScope | None, agent: str | None, code: str
) -> None:
    key = (await make_key(database, scope, agent)).text if scope else None
    await make_key(database)
    async with running_service(database) as service, aiohttp.ClientSession() as http:
        squad = Squad(settings(squad_url=service.url, squad_api_key=key), http)
        with pytest.raises(SquadRefusal) as refused:
            await squad.log_email({**MAIL, "handled_by": "email_agent"})
        assert refused.value.code == code
