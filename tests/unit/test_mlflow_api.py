import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mlops.errors import MlopsError
from mlops.mlflow_api import MlflowApi
from mlops.settings import MlflowSettings


class Page(BaseHTTPRequestHandler):
    """What a proxy shows in place of a server that is away."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Be back soon</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_page_in_place_of_an_answer_is_told(page: str) -> None:
    """What answers well without being MLflow is named, as an error that callers expect."""
    api = MlflowApi(MlflowSettings(mlflow_tracking_uri=page))
    with pytest.raises(MlopsError, match="is no answer of MLflow: '<html>Be back soon"):
        api.check()
