"""A real S3 server of a test's own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlops.errors import MlopsError
from mlops.settings import S3Settings
from mlops.storage import ObjectStore

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret"


@contextmanager
def serve_s3(root: Path) -> Iterator[str]:
    """Serve the folders in a folder as buckets, and return the server's address.

    Args:
        root: The folder; a bucket `prefect` is made in it.
    """
    (root / "prefect").mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
    server = subprocess.Popen(
        [
            *(program, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}"),
            *("--vfs-cache-mode", "off", str(root)),
        ],
        env=os.environ | {"RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 15
    try:
        while not _answers(open_bucket(url)):
            assert time.monotonic() < deadline, "the S3 server does not answer"
        yield url
    finally:
        server.terminate()
        server.wait()


def open_bucket(url: str, bucket: str = "prefect", secret: str = SECRET_KEY) -> ObjectStore:
    """Return a bucket of a server that `serve_s3` started, or of a proxy before it."""
    settings = S3Settings.from_environment(
        aws_endpoint_url_s3=url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=secret
    )
    return ObjectStore(settings, bucket)


def _answers(bucket: ObjectStore) -> bool:
    try:
        list(bucket.objects("flows"))
    except MlopsError:
        return False
    return True
