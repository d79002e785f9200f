"""The Prefect server as a client of ours sees it, with errors that a user can act on."""

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
from packaging.version import Version

from mlops import __version__
from mlops.errors import CredentialsError, MlopsError
from mlops.settings import PrefectSettings

VERSION_HEADER = "mlops-version"  # of our Prefect server's answers: the release it runs
CONNECT_TIMEOUT_SECONDS = 5.0
TIMEOUT_SECONDS = 30.0
RETRY_SECONDS = 2.0
RETRIES = 10  # of somebody who looks on while a server starts anew
PAGE = 200  # the most that the server returns at once
OVERLAP = 20  # of two pages
# Types of the states that a run does not leave by itself.
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})

# Orders in which no two are equal. Names are none: many flows have a deployment of the same name,
# and the server may return equals in another order each time.
Sort = Literal["CREATED_DESC", "ID_DESC"]


# With which a server asks to be asked again.
_BUSY = {
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.TOO_MANY_REQUESTS,
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
}


class RefusedRequestError(MlopsError):
    """The server understood a request and refused it.

    Attributes:
        status_code: Of its answer.
        detail: What it says is wrong.
    """

    def __init__(self, url: str, request: str, response: httpx.Response) -> None:
        self.status_code = response.status_code
        self.detail = error_detail(response)
        super().__init__(f"{url}: refused {request}: {self.detail}")


class PrefectApi:
    """The server's REST API, for commands, which should not wait for Prefect's client.

    Its import takes a second of a core, longer than all the rest of a registration.

    Args:
        settings: Address and identity.
        retries: How often `send` tries again when the server is away or busy.
    """

    def __init__(self, settings: PrefectSettings, *, retries: int = 0) -> None:
        self._settings = settings
        self._retries = retries
        self._http = httpx.Client(
            auth=_login(settings),
            timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            # Without https there is no need to load the machine's certificates.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if settings.prefect_api_url.startswith("http:")
            else True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def post(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a query and return the list that answers it.

        Args:
            path: Below the API's address, such as `/deployments/filter`.
            body: The query.

        Raises:
            MlopsError: The server does not answer, refuses, is another one, or older than we are.
        """
        url = f"{self._settings.prefect_api_url}{path}"
        try:
            response = self._http.post(url, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(self._settings.prefect_api_url, error) from error
        answer = _json(response)
        if response.is_success and isinstance(answer, list):
            _refuse_older(self._settings.prefect_api_url, response)
            return answer
        check_server(self._settings)  # which says what is wrong, unless it is only this query
        raise MlopsError(
            f"{self._settings.prefect_api_url}: refused POST {path}: {error_detail(response)}"
        )

    def send(self, method: str, path: str, body: object = None) -> Any:
        """Send a request about one thing and return the JSON that answers it; None: there is none.

        Args:
            method: Of HTTP.
            path: Below the API's address, such as `/deployments/`.
            body: What to send; None: nothing.

        Raises:
            RefusedRequestError: The server refuses the request.
            MlopsError: The server does not answer, or refuses the credentials.
        """
        url = self._settings.prefect_api_url
        for tries_left in range(self._retries, -1, -1):
            try:
                response = self._http.request(method, f"{url}{path}", json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not tries_left:
                    raise _unreachable(url, error) from error
            else:
                if not tries_left or response.status_code not in _BUSY:
                    break
            time.sleep(RETRY_SECONDS)
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError as error:
            if response.status_code == httpx.codes.UNAUTHORIZED:
                raise _refused(url) from error
            raise RefusedRequestError(url, _request(response.request), response) from error
        return _json(response)

    def pages(self, path: str, query: dict[str, Any], sort: Sort) -> Iterator[dict[str, Any]]:
        """Yield everything that a query finds, each once.

        The server counts pages by position, and what vanishes meanwhile moves the rest forward,
        past the edge of a page. So each page begins with the end of the one before.

        Args:
            path: Below the API's address, such as `/deployments/filter`.
            query: The query, without sort, limit and offset.
            sort: The order of the pages.

        Raises:
            MlopsError: Too much vanished at once for all of the rest to be seen; see `post`.
        """
        seen: set[str] = set()
        offset = 0
        while True:
            page = self.post(path, {**query, "sort": sort, "limit": PAGE, "offset": offset})
            new = [answer for answer in page if answer["id"] not in seen]
            if offset and page and len(new) == len(page):
                raise MlopsError(
                    f"{self._settings.prefect_api_url}: much was deleted while POST {path} was "
                    "answered",
                    hint="try again",
                )
            seen.update(answer["id"] for answer in new)
            yield from new
            if len(page) < PAGE:
                return
            offset += PAGE - OVERLAP


def check_server(settings: PrefectSettings) -> None:
    """Ask the server for its version, with our credentials.

    Raises:
        MlopsError: Nothing answers there, or something else, it refuses the credentials, or is
            older than we are.
    """
    url = settings.prefect_api_url
    try:
        response = httpx.get(
            f"{url}/admin/version", auth=_login(settings), timeout=CONNECT_TIMEOUT_SECONDS
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error
    if VERSION_HEADER not in response.headers:
        raise MlopsError(
            f"{url}: is no server of this platform; there answers {_who(response)}",
            hint="PREFECT_API_URL is http://<server>:<port>/api; with Compose, check SERVER_IP",
        )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise _refused(url)
    if not response.is_success:
        raise MlopsError(f"{url}: GET /admin/version gave {response.status_code}")
    _refuse_older(url, response)


def _refuse_older(url: str, response: httpx.Response) -> None:
    version = response.headers.get(VERSION_HEADER, __version__)
    if Version(version) < Version(__version__):
        raise MlopsError(
            f"{url}: the server is mlops {version}, older than this one, {__version__}",
            hint="update the server first, then what uses it",
        )


def _who(response: httpx.Response) -> str:
    """Say what kind of server has answered."""
    title = re.search(r"<title>\s*([^<]{1,60})", response.text)
    kind = response.headers.get("content-type", "nothing to read").split(";")[0]
    facts = [
        response.headers.get("server", "an unnamed server"),
        f"with {response.status_code} {kind}",
        f"titled {title[1].strip()!r}" if title else "",
    ]
    return " ".join(fact for fact in facts if fact)


def _login(settings: PrefectSettings) -> tuple[str, str] | None:
    auth = settings.prefect_api_auth_string
    name, separator, password = auth.get_secret_value().partition(":") if auth else ("", "", "")
    return (name, password) if separator else None


@contextmanager
def connect(settings: PrefectSettings) -> Iterator[PrefectApi]:
    """Open the API after a check that the server is there; `send` waits if it goes away then.

    Args:
        settings: Address and identity.

    Raises:
        MlopsError: The server cannot be used.
    """
    check_server(settings)
    with closing(PrefectApi(settings, retries=RETRIES)) as api:
        yield api


def ensure_work_pool(api: PrefectApi, name: str) -> bool:
    """Create a process work pool if there is none of that name; return whether it was missing.

    Its job template is filled in by the first worker that serves it.
    """
    try:
        api.send("GET", f"/work_pools/{quote(name, safe='')}")
    except RefusedRequestError as error:
        if error.status_code != httpx.codes.NOT_FOUND:
            raise
    else:
        return False
    try:
        api.send("POST", "/work_pools/", {"name": name, "type": "process"})
    except RefusedRequestError as error:
        if error.status_code != httpx.codes.CONFLICT:  # somebody else was quicker
            raise
        return False
    return True


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error of httpx says that a server is away or unwell, and may be back."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError)


def error_detail(response: httpx.Response) -> str:
    """Return what the server says is wrong, without the client's advice around it."""
    body = _json(response)
    if not isinstance(body, dict):
        return f"status {response.status_code}"
    return str(body.get("detail") or body.get("exception_detail") or body)


def _request(request: httpx.Request) -> str:
    return f"{request.method} {urlsplit(str(request.url)).path}"


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _refused(url: str) -> CredentialsError:
    return CredentialsError(
        f"{url}: the Prefect server refused these credentials",
        hint="check PREFECT_API_AUTH_STRING (user:password); "
        "with Compose, PREFECT_USERNAME and PREFECT_PASSWORD in .env",
    )


def _unreachable(url: str, error: Exception) -> MlopsError:
    return MlopsError(
        f"{url}: the Prefect server does not answer ({str(error) or type(error).__name__})",
        hint="is it up (`./mlops local status` on a checkout), and is PREFECT_API_URL right? "
        "With Compose: SERVER_IP, and the server's --bind",
    )
