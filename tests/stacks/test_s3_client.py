"""What lies in the object store, as a client sees it that knows nothing of the platform."""

import os
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from stacks.fixtures import OneHost, wait_for

pytestmark = [pytest.mark.requires("docker", "s3-client"), pytest.mark.timeout(900)]


def test_code_is_read_with_debians_client(one_host: OneHost, tmp_path: Path) -> None:
    """The owner finds a flow's code below its name and hash, as it lies in the flow's folder."""
    env = one_host.host.env()
    login = f"{quote(env['MINIO_ROOT_USER'])}:{quote(env['MINIO_ROOT_PASSWORD'])}"
    address = f"http://{login}@127.0.0.1:{env['S3_PORT']}"

    def client(*arguments: str) -> str:
        return subprocess.run(
            ["minio-client", "--config-dir", tmp_path, *arguments],
            env={"PATH": os.environ["PATH"], "MC_HOST_platform": address},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    wait_for(lambda: one_host.servers.deployment("stacked/stacked"), 60)
    (code,) = client("find", "platform/prefect/flows/stacked", "--name", "flow.py").split()
    assert client("cat", code) == (one_host.host.folder / "flows/stacked/flow.py").read_text()
