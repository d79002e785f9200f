"""A real S3 server for the tests of what reads and writes objects; no Prefect server."""

from collections.abc import Iterator

import pytest
from s3_server import open_bucket, serve_s3

from mlops.storage import ObjectStore


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server of its own; see `s3_server.open_bucket`."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="session")
def store(s3_url: str) -> ObjectStore:
    """A bucket on that server."""
    return open_bucket(s3_url)
