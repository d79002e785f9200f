"""Prefect's web application: with our version and work pool, kept to itself, and quicker.

Beside it, in the same process, lost agents are looked for.
"""

import asyncio
import contextlib
import functools
import gc
import os
import zoneinfo
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mlops import __version__
from mlops.garbage import collect_seldom
from mlops.prefect_api import VERSION_HEADER
from mlops.settings import LostAgentsSettings

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

POOL_VARIABLE = "MLOPS_WORK_POOL"
HEADERS = (
    # By which clients know that this is a server of ours, and whether it is older than they are.
    (VERSION_HEADER.encode(), __version__.encode()),
    # Prefect 3.8's V2 UI calls an analytics host even with analytics switched off.
    (b"content-security-policy", b"connect-src 'self'"),
)


def create_app() -> Application:
    """Return the application for uvicorn: Prefect's, with our headers on every answer."""
    collect_seldom()
    # Prefect 3.8 looks through all of the machine's time zone files, 5 ms, each time that it
    # reads a schedule: a list of 200 deployments took 2.0 s, and takes 0.3 s with this.
    zoneinfo.available_timezones = functools.cache(zoneinfo.available_timezones)
    from prefect.server.api.server import create_app as create_prefect_app

    from mlops.server.background_work import look_seldom

    look_seldom()
    prefect = create_prefect_app()
    settings = LostAgentsSettings.from_environment()

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        watching: asyncio.Task[None] | None = None

        async def receive_ours() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and watching:
                watching.cancel()
            return message

        async def send_ours(message: Message) -> None:
            nonlocal watching
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            elif message["type"] == "lifespan.startup.complete":
                await _ensure_work_pool(prefect, os.environ[POOL_VARIABLE])
                # What was imported stays: looking through it again and again for garbage was a
                # fifth of the server's work.
                gc.freeze()
                watching = asyncio.create_task(_watch(prefect, settings))
            await send(message)

        is_lifespan = scope["type"] == "lifespan"
        await prefect(scope, receive_ours if is_lifespan else receive, send_ours)

    return application


async def _ensure_work_pool(prefect: Any, name: str) -> None:
    """Create the work pool that agents serve by default, before anybody can ask for it.

    Prefect 3.8 makes none. The first worker fills in its job template.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    async with _client(prefect) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=name, type="process"))


async def _watch(prefect: Any, settings: LostAgentsSettings) -> None:
    from mlops.server.lost_agents import end_regularly

    async with _client(prefect) as client:
        await end_regularly(client, settings)


@contextlib.asynccontextmanager
async def _client(prefect: Any) -> AsyncIterator["PrefectClient"]:
    """Yield a client that reaches the application without the network."""
    import httpx
    from prefect.client.orchestration import PrefectClient

    async with PrefectClient(
        "http://prefect/api",
        auth_string=os.environ["PREFECT_SERVER_API_AUTH_STRING"],
        httpx_settings={"transport": httpx.ASGITransport(app=prefect)},
    ) as client:
        yield client
