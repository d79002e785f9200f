"""A real S3 server of a test's own."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
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
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
    with tempfile.NamedTemporaryFile() as log:
        server = subprocess.Popen(
            [
                # It takes a free port, and says which.
                *(program, "serve", "s3", "--config", "", "--addr", "127.0.0.1:0"),
                *("--vfs-cache-mode", "off", "--log-file", log.name, str(root)),
            ],
            env=os.environ | {"RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'},
        )
        try:
            deadline = time.monotonic() + 15
            while not ((url := _address(Path(log.name))) and _answers(open_bucket(url))):
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)
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


def _address(log: Path) -> str:
    said = re.search(r"s3 server on \[(http://.+)/\]", log.read_text())
    return said[1] if said else ""


def _answers(bucket: ObjectStore) -> bool:
    try:
        list(bucket.objects("flows"))
    except MlopsError:
        return False
    return True
