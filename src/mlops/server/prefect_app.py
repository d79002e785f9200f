"""Prefect's web application: with our version and work pool, kept to itself, and quicker."""

import base64
import functools
import os
import zoneinfo
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlops import __version__
from mlops.prefect_api import VERSION_HEADER

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
    # Prefect 3.8 looks through all of the machine's time zone files, 5 ms, each time that it
    # reads a schedule: a list of 200 deployments took 2.0 s, and takes 0.3 s with this.
    zoneinfo.available_timezones = functools.cache(zoneinfo.available_timezones)
    from prefect.server.api.server import create_app as create_prefect_app

    prefect = create_prefect_app()

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        async def send_ours(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            elif message["type"] == "lifespan.startup.complete":
                await _ensure_work_pool(prefect, os.environ[POOL_VARIABLE])
            await send(message)

        await prefect(scope, receive, send_ours)

    return application


async def _ensure_work_pool(prefect: Any, name: str) -> None:
    """Create the work pool that agents serve by default, before anybody can ask for it.

    Prefect 3.8 makes none. The first worker fills in its job template.
    """
    import httpx

    login = os.environ["PREFECT_SERVER_API_AUTH_STRING"].encode()
    headers = {"authorization": f"Basic {base64.b64encode(login).decode()}"}
    transport = httpx.ASGITransport(app=prefect)
    async with httpx.AsyncClient(transport=transport, base_url="http://prefect") as client:
        response = await client.post(
            "/api/work_pools/", json={"name": name, "type": "process"}, headers=headers
        )
    if response.status_code not in (httpx.codes.CREATED, httpx.codes.CONFLICT):
        raise RuntimeError(f"work pool {name}: HTTP {response.status_code}: {response.text}")
