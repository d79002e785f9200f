import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlops import __version__
from mlops.errors import MlopsError
from mlops.prefect_api import VERSION_HEADER, PrefectApi
from mlops.scheduler.reconciler import Reconciler
from mlops.scheduler.watch import watch_folders
from mlops.scheduler.watched_folder import Pace
from mlops.settings import SchedulerSettings


@contextmanager
def servers_of(release: str) -> Iterator[SchedulerSettings]:
    """Serve in place of Prefect and S3, which are not to be had in another release: both empty."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(b"[]")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header(VERSION_HEADER, release)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield SchedulerSettings(
            prefect_api_url=f"{url}/api",
            aws_endpoint_url_s3=url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        server.shutdown()


def test_outage_is_noticed_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    """A scheduler without a folder to register is not well either while its servers are away."""
    with servers_of(__version__) as settings:
        reconciler = Reconciler(settings, tmp_path, Pace(look=0))
        reconciler.follow([])
        assert reconciler.is_well
    reconciler.follow([])
    assert not reconciler.is_well


def test_older_server_is_refused_at_the_start(tmp_path: Path) -> None:
    """A scheduler that is newer than its server ends, and says which of the two to update."""
    with (
        servers_of("0.0.1") as settings,
        pytest.raises(MlopsError, match=r"the server is mlops 0\.0\.1, older than this one"),
    ):
        watch_folders(settings.model_copy(update={"flow_dir": tmp_path}))


def test_server_that_became_older_is_refused() -> None:
    """So does every question that it asks, which makes it unwell."""
    with servers_of(__version__) as settings:
        assert PrefectApi(settings).post("/deployments/filter", {}) == []
    with servers_of("0.0.1") as settings, pytest.raises(MlopsError, match="older than this one"):
        PrefectApi(settings).post("/deployments/filter", {})
