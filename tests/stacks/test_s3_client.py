"""What lies in the object store, as a client sees it that knows nothing of the platform."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from stacks.fixtures import OneHost, wait_for

pytestmark = [pytest.mark.requires("docker", "s3-client"), pytest.mark.timeout(900)]


def test_code_is_read_with_debians_client(one_host: OneHost, tmp_path: Path) -> None:
    """The owner finds a flow's code below its name and hash, as it lies in the flow's folder."""
    env = one_host.host.env()
    platform = {
        "url": f"http://127.0.0.1:{env['S3_PORT']}",
        "accessKey": env["MINIO_ROOT_USER"],
        "secretKey": env["MINIO_ROOT_PASSWORD"],
        "api": "S3v4",
        "path": "auto",
    }
    # Not as an argument, which all can read, nor in an address, into which not every password fits.
    settings = {"version": "10", "aliases": {"platform": platform}}
    (tmp_path / "config.json").write_text(json.dumps(settings))

    def client(*arguments: str) -> str:
        return subprocess.run(
            ["minio-client", "--config-dir", tmp_path, *arguments],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    wait_for(lambda: one_host.servers.deployment("stacked/stacked"), 60)
    (code,) = client("find", "platform/prefect/flows/stacked", "--name", "flow.py").split()
    assert client("cat", code) == (one_host.host.folder / "flows/stacked/flow.py").read_text()
