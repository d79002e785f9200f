"""What the tests with Docker share: a flow, and one host on which everything is up."""

import math
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from distribution import needs_docker
from stacks.platform import Servers
from stacks.projects import PORTS, Host, Project, free_ports

Answer = TypeVar("Answer")

# Trains nothing, but leaves what a training leaves: a metric, a picture and a model's bytes.
FLOW = """\
import mlflow
from prefect import flow


@flow(name="{name}", log_prints=True)
def main(metric: float = 0.5):
    mlflow.set_experiment("{name}")
    with mlflow.start_run():
        mlflow.log_metric("score", metric)
        mlflow.log_text("the model's bytes", "model/model.txt")
        mlflow.log_artifact("picture.png")
    print("trained by {name}")
"""
FLOW_YAML = """\
deployment:
  flow_py_name: flow.py
  flow_name: main
  deploy_name: {name}
  pool_name: default-agent-pool
  queue_name: ml
{more}
"""
EVERY_MINUTE = "scheduler:\n  method: cron\n  cron: '* * * * *'\n  timezone: UTC\n"
PICTURE_SIZE = (320, 200)


def picture() -> bytes:
    """Draw a falling curve, as a training would draw its loss: a PNG file in black and white."""
    width, height = PICTURE_SIZE
    white = "".join(
        "1" if abs(height * math.exp(-x / 90) - (height - y)) > 3 else "0"
        for y in range(height)
        for x in range(width)
    )
    rows = int(white, 2).to_bytes(width * height // 8)
    lines = (rows[start : start + width // 8] for start in range(0, len(rows), width // 8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def write_flow(folder: Path, *, more: str = "") -> Path:
    """Make a flow folder whose flow, deployment and experiment are named after it."""
    folder.mkdir(parents=True)
    (folder / "flow.yaml").write_text(FLOW_YAML.format(name=folder.name, more=more))
    (folder / "flow.py").write_text(FLOW.format(name=folder.name))
    (folder / "picture.png").write_bytes(picture())
    return folder


def wait_for(probe: Callable[[], Answer], limit_seconds: float) -> Answer:
    """Return the probe's first truthy answer, asked ever more rarely: answers take time too."""
    deadline = time.monotonic() + limit_seconds
    pause_seconds = 0.5
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {limit_seconds} s"
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.2, 2)
    return answer


def completed(servers: Servers, run_id: str, limit_seconds: float = 120) -> None:
    """Wait until a run has ended, and see that it completed."""
    final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
    wait_for(lambda: servers.run(run_id)["state_type"] in final, limit_seconds)
    run = servers.run(run_id)
    assert run["state_type"] == "COMPLETED", f"{run['state']}\n{servers.log(run_id)}"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the hosts after the last test that needs them: idle stacks take time from the others."""
    if needs_docker(item) and not (nextitem and needs_docker(nextitem)):
        for host in list(Host.living):
            host.remove()


class OneHost(NamedTuple):
    """A host on which the root's project is up, its servers and its project."""

    host: Host
    project: Project
    servers: Servers


def ports() -> dict[str, str]:
    """Return free ports for a server stack and a JupyterLab, by their names in `.env`."""
    return dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))


# As a person may choose them: each has what means something in an address or a file.
OWN_PASSWORDS = {
    name: f"p@ss/%41:w?#{{}}&%(x)s+{name}"
    for name in (
        *("POSTGRES_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD"),
        *("PREFECT_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_AGENT_PASSWORD"),
        *("MINIO_ROOT_PASSWORD", "MLFLOW_S3_SECRET_ACCESS_KEY", "AGENT_S3_SECRET_ACCESS_KEY"),
    )
}


@pytest.fixture(scope="session")
def one_host(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHost]:
    """Everything on one host, from an empty platform, with a flow that runs every minute.

    Its passwords are a person's own.
    """
    _ = images
    host = Host(tmp_path_factory.mktemp("one-host") / "host", ports() | OWN_PASSWORDS)
    write_flow(host.folder / "flows" / "stacked", more=EVERY_MINUTE)
    host.preset()
    host.init()
    project = host.project()
    try:
        project.up()
        yield OneHost(host, project, Servers(host.env()))
    finally:
        host.remove()
