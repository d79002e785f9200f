import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from mlops import prefect_api
from mlops.errors import CredentialsError, MlopsError
from mlops.prefect_api import PrefectApi, RefusedRequestError, ensure_work_pool
from mlops.settings import PrefectSettings


class Server(HTTPServer):
    """Gives prepared answers, in their order, and notes what is asked.

    Attributes:
        answers: Status and JSON of each; status 0: the connection is closed instead.
        asked: Method, path and JSON of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, object]] = []
        self.asked: list[tuple[str, str, object]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, json.loads(body) if body else None))
        status, answer = self.server.answers.pop(0)
        self.close_connection = True
        if status:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"" if answer is None else json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(prefect_api, "RETRY_SECONDS", 0)
    with Server() as found:
        Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def connect(server: Server, *, retries: int = 0) -> PrefectApi:
    """Return a client of the stand-in: how the real server answers, others test with that one."""
    url = f"http://127.0.0.1:{server.server_port}/api"
    return PrefectApi(PrefectSettings(prefect_api_url=url), retries=retries)


def test_answer_is_returned(server: Server) -> None:
    """The body goes there as JSON and comes back as JSON; where there is none, as nothing."""
    server.answers = [(201, {"id": 1}), (204, None)]
    api = connect(server)
    assert api.send("POST", "/flows/", {"name": "ä"}) == {"id": 1}
    assert api.send("DELETE", "/flows/1") is None
    assert server.asked == [
        ("POST", "/api/flows/", {"name": "ä"}),
        ("DELETE", "/api/flows/1", None),
    ]


@pytest.mark.parametrize("first", [0, 503, 502, 429])
def test_server_that_is_away_for_a_moment_is_asked_again(server: Server, first: int) -> None:
    """A connection that is cut and an answer that says `busy` are tried again, as often as told."""
    server.answers = [(first, {}), (200, {"id": 1})]
    assert connect(server, retries=1).send("PATCH", "/deployments/1", {}) == {"id": 1}
    server.answers = [(first, {}), (200, {"id": 1})]
    with pytest.raises(MlopsError):
        connect(server).send("PATCH", "/deployments/1", {})


def test_refusal_is_told_once(server: Server) -> None:
    """Other statuses are not tried again; the error has the status and what the server says."""
    server.answers = [(409, {"detail": "is there"})]
    with pytest.raises(RefusedRequestError, match="refused POST /api/flows/: is there") as raised:
        connect(server, retries=3).send("POST", "/flows/", {})
    assert raised.value.status_code == 409
    server.answers = [(401, {})]
    with pytest.raises(CredentialsError, match="refused these credentials"):
        connect(server, retries=3).send("POST", "/flows/", {})
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answers", "made"),
    [
        ([(200, {})], False),
        ([(404, {}), (201, {})], True),
        ([(404, {}), (409, {})], False),
    ],
    ids=["there", "missing", "somebody else was quicker"],
)
def test_work_pool_is_made_where_it_is_missing(
    server: Server, answers: list[tuple[int, object]], made: bool
) -> None:
    """The answer says whether it was missing; a name with a slash stays one name."""
    server.answers = list(answers)
    assert ensure_work_pool(connect(server), "a/b c") == made
    assert server.asked[0][:2] == ("GET", "/api/work_pools/a%2Fb%20c")
    assert server.asked[1:] == [
        ("POST", "/api/work_pools/", {"name": "a/b c", "type": "process"})
    ] * (len(answers) - 1)
