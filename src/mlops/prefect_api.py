"""The Prefect server as a client of ours sees it, with errors that a user can act on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from mlops.errors import MlopsError
from mlops.settings import PrefectSettings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

CONNECT_TIMEOUT_SECONDS = 5.0


def check_server(settings: PrefectSettings) -> None:
    """Ask the server for its version, with our credentials.

    Raises:
        MlopsError: Nothing answers there, or something else, or it refuses the credentials.
    """
    url = settings.prefect_api_url
    auth = settings.prefect_api_auth_string
    parts = auth.get_secret_value().split(":", 1) if auth else []
    try:
        response = httpx.get(
            f"{url}/admin/version",
            auth=(parts[0], parts[1]) if len(parts) > 1 else None,
            timeout=CONNECT_TIMEOUT_SECONDS,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error
    # Other servers ask for credentials too; Prefect says it in JSON of its own.
    if response.status_code == httpx.codes.UNAUTHORIZED and "exception_message" in response.text:
        raise _refused(url)
    kind = response.headers.get("content-type", "")
    if response.status_code != httpx.codes.OK or "json" not in kind:
        raise MlopsError(
            f"{url}: answers, but is no Prefect server (GET /admin/version gave "
            f"{response.status_code} {kind})",
            hint="PREFECT_API_URL is http://<host>:<port>/api",
        )


@contextmanager
def connect(settings: PrefectSettings) -> Iterator["SyncPrefectClient"]:
    """Open Prefect's own client, after a check that the server is there.

    Raises:
        MlopsError: The server cannot be used; also when it goes away in the middle.
    """
    check_server(settings)
    # Prefect's settings are read from the environment when it is imported.
    os.environ["PREFECT_API_URL"] = settings.prefect_api_url
    if settings.prefect_api_auth_string:
        os.environ["PREFECT_API_AUTH_STRING"] = settings.prefect_api_auth_string.get_secret_value()
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise _refused(settings.prefect_api_url) from error
        raise MlopsError(
            f"{settings.prefect_api_url}: refused {_request(error.request)}: {_detail(error)}"
        ) from error
    except httpx.HTTPError as error:
        raise _unreachable(settings.prefect_api_url, error) from error


def ensure_work_pool(client: "SyncPrefectClient", name: str) -> bool:
    """Create a process work pool if there is none of that name; return whether it was missing.

    Its job template is filled in by the first worker that serves it.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:  # somebody else was quicker
            return False
        return True
    return False


def _request(request: httpx.Request) -> str:
    return f"{request.method} {urlsplit(str(request.url)).path}"


def _detail(error: httpx.HTTPStatusError) -> str:
    """Return what the server says is wrong, without the client's advice around it."""
    try:
        body: dict[str, Any] = error.response.json()
    except ValueError:
        return f"status {error.response.status_code}"
    return str(body.get("detail") or body.get("exception_detail") or body)


def _refused(url: str) -> MlopsError:
    return MlopsError(
        f"{url}: the Prefect server refused these credentials",
        hint="check PREFECT_API_AUTH_STRING (user:password)",
    )


def _unreachable(url: str, error: Exception) -> MlopsError:
    return MlopsError(
        f"{url}: the Prefect server does not answer ({str(error) or type(error).__name__})",
        hint="is it up? `./mlops local status` on a checkout; else check PREFECT_API_URL",
    )
