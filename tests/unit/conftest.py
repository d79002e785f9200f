"""A real S3 server for the tests of what reads and writes objects; no Prefect server."""

import os
from collections.abc import Iterator

import pytest
from s3_server import open_bucket, serve_s3

from mlops.storage import ObjectStore

# Prefect's client would start a server of its own for whatever a test logs or emits.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server of its own; see `s3_server.open_bucket`."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="session")
def store(s3_url: str) -> ObjectStore:
    """A bucket on that server."""
    return open_bucket(s3_url)
