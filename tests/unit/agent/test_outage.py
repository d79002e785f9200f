"""What the agent's loops make of a server that is away for long."""

from functools import partial

import anyio
import httpx
import pytest
from prefect.utilities.services import critical_service_loop

from mlops.agent import outage as module
from mlops.agent.outage import Outage

REQUEST = httpx.Request("GET", "http://127.0.0.1/api")


class DoneError(Exception):
    """The test has seen enough."""


def answer(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status))


@pytest.mark.parametrize("error", [httpx.ConnectError("no"), answer(500), answer(503)])
def test_prefects_loop_never_gives_up(error: httpx.HTTPError) -> None:
    """However often the server does not answer, it is asked again."""
    outage = Outage()
    asked: list[None] = []

    async def ask() -> None:
        asked.append(None)
        if len(asked) > 50:  # Prefect's loop alone gives up after twelve
            raise DoneError
        with outage.bridged():
            raise error

    with pytest.raises(DoneError):
        anyio.run(partial(critical_service_loop, ask, 0, backoff=4))


def test_refusal_is_no_outage() -> None:
    """What will not pass, such as wrong credentials, is not waited for."""
    with pytest.raises(httpx.HTTPStatusError), Outage().bridged():
        raise answer(401)


def test_return_after_a_long_absence_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer counts as contact; only one after a long time without is a return."""
    outage = Outage()
    with outage.bridged():
        pass
    assert not outage.returned.is_set()
    monkeypatch.setattr(module, "ABSENCE_SECONDS", -1.0)
    with outage.bridged():
        raise httpx.ConnectError("away")
    assert not outage.returned.is_set()
    with outage.bridged():
        pass
    assert outage.returned.is_set()
