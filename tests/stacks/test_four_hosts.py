"""Four stacks on four hosts: a network and volumes of their own, and the server's ports."""

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from stacks.fixtures import completed, wait_for, write_flow
from stacks.hosts import NAME, Joined, ServerHost, join, up_together
from stacks.platform import Servers
from stacks.projects import Project, docker, free_ports

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(900)]
LARGE_BYTES = 400 << 20

# Goes on when the test says so.
PATIENT = """\
import time
from pathlib import Path

import mlflow
from prefect import flow


@flow(name="patient")
def main():
    mlflow.set_experiment("patient")
    with mlflow.start_run():
        mlflow.log_metric("before", 1)
        while not Path("/tmp/go-on").exists():
            time.sleep(0.1)
        mlflow.log_metric("after", 2)
"""
# Logs through the server, as clients without a key for S3 do.
LARGE = f"""\
import hashlib
import random
from pathlib import Path

import mlflow
from prefect import flow


@flow(name="large")
def main():
    noise = random.Random(7).randbytes((1 << 20) - 4)
    digest = hashlib.sha256()
    with Path("large.bin").open("wb") as file:
        for number in range({LARGE_BYTES >> 20}):
            block = number.to_bytes(4, "big") + noise
            digest.update(block)
            file.write(block)
    place = mlflow.create_experiment("large", artifact_location="mlflow-artifacts:/large")
    with mlflow.start_run(experiment_id=place):
        mlflow.log_artifact("large.bin")
        mlflow.set_tag("sha256", digest.hexdigest())
"""
DOWNLOAD = """\
import hashlib, json, sys, tempfile, time
import mlflow
found = {}
for uri in sys.argv[1:]:
    with tempfile.TemporaryDirectory(dir="/workspace/dev-projects") as folder:
        started = time.monotonic()
        path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        print(uri, round(time.monotonic() - started, 1), "s", file=sys.stderr)
        with open(path, "rb") as file:
            found[uri] = hashlib.file_digest(file, "sha256").hexdigest()
print(json.dumps(found))
"""

# Asks MLflow, S3 and Prefect for what a run of the flow `named` has left there.
LOOK = """
import boto3, mlflow
from prefect.client.orchestration import get_client
print(mlflow.get_experiment_by_name("named").name)
objects = boto3.client("s3").list_objects_v2(Bucket="mlflow")["Contents"]
print(next(each["Key"].split("/")[-1] for each in objects if each["Key"].endswith(".png")))
with get_client(sync_client=True) as client:
    print(client.read_deployment_by_name("named/named").name)
"""


class FourHosts(NamedTuple):
    """The server's host and those that joined it."""

    server: ServerHost
    scheduler: Joined
    agent: Joined
    experimenter: Joined

    @property
    def servers(self) -> Servers:
        """The server stack, by its address."""
        return self.server.servers

    def write_flow(self, name: str, code: str = "") -> None:
        """Put a flow folder on the scheduler's host, and wait until it is registered."""
        made = self.scheduler.host.folder / "new" / name
        write_flow(made)
        if code:
            (made / "flow.py").write_text(code)
        made.rename(self.scheduler.host.folder / "flows" / name)
        wait_for(lambda: self.servers.deployment(f"{name}/{name}"), 60)


@pytest.fixture(scope="module")
def four(server_host: ServerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FourHosts]:
    """Scheduler, agent and experimenter, each on a host that has joined the server's."""
    folder = tmp_path_factory.mktemp("four-hosts")
    port = server_host.host.presets["JUPYTER_PORT"]
    joined = [
        join(server_host.host, folder / "scheduler", "scheduler"),
        join(server_host.host, folder / "agent", "agent", MLOPS_HOST_NAME="first"),
        join(server_host.host, folder / "experimenter", "experimenter", JUPYTER_PORT=port),
    ]
    write_flow(joined[0].host.folder / "flows" / "trained")
    try:
        up_together([each.project for each in joined])
        yield FourHosts(server_host, *joined)
    finally:
        for each in joined:
            each.host.remove()


def trained_by(servers: Servers, deployment: str = "trained/trained") -> str:
    """Run a deployment to its end, and return the host whose agent ran it."""
    run = servers.start_run(deployment)
    completed(servers, run)
    host: str = servers.run(run)["labels"]["mlops.agent_host"]
    return host


def metrics(servers: Servers, experiment: str) -> dict[str, float]:
    """Return the metrics of an experiment's newest run."""
    runs = servers.mlflow_runs(experiment)
    return {m["key"]: m["value"] for m in runs[0]["data"].get("metrics", [])} if runs else {}


def ties(project: Project) -> tuple[set[str], set[str]]:
    """Return the networks of a project's containers, and what they mount."""
    networks: set[str] = set()
    mounts: set[str] = set()
    for found in json.loads(docker("inspect", *project.containers())):
        networks |= found["NetworkSettings"]["Networks"].keys() - {"none"}
        mounts |= {mount["Source"] for mount in found["Mounts"]}
    return networks, mounts


def test_hosts_share_nothing(four: FourHosts) -> None:
    """The stacks have neither a network nor a mount in common, and a host has one `.env`."""
    seen: set[str] = set()
    for project in (four.server.project, *(each.project for each in four[1:])):
        networks, mounts = ties(project)
        assert len(networks) == 1
        assert not seen & (networks | mounts)
        seen |= networks | mounts
        assert list(project.folder.parent.rglob(".env")) == [project.folder / ".env"]


def test_flow_folder_becomes_a_model(four: FourHosts) -> None:
    """A folder on one host is run on another; metric and model reach the third."""
    wait_for(lambda: four.servers.deployment("trained/trained"), 60)
    assert trained_by(four.servers) == "first"
    assert metrics(four.servers, "trained") == {"score": 0.5}
    (key,) = [k for k in four.servers.keys("mlflow") if k.endswith("model/model.txt")]
    body = four.servers.s3.get_object(Bucket="mlflow", Key=key)["Body"]
    assert body.read() == b"the model's bytes"


@pytest.mark.parametrize("name", ["address", "host.docker.internal", socket.gethostname().lower()])
def test_every_ui_answers(four: FourHosts, name: str) -> None:
    """Each UI's page comes, and what the page sends is accepted, by address and by names."""
    env = four.servers.env
    name = four.server.address if name == "address" else name

    def ask(method: str, port: str, path: str, **options: Any) -> httpx.Response:
        at = f"{name}:{env[port]}"
        headers = {"Host": at, "Origin": f"http://{at}"}
        url = f"http://{four.server.address}:{env[port]}{path}"
        return httpx.request(method, url, headers=headers, trust_env=False, **options)

    for port, path in (("PREFECT_PORT", "/v2/"), ("MINIO_CONSOLE_PORT", "/")):
        page = ask("GET", port, path)
        assert page.status_code == 200
        assert "<html" in page.text.lower()
    prefect = (env["PREFECT_USERNAME"], env["PREFECT_PASSWORD"])
    # Where its pages find the API: relative, so that it is the address that a browser called.
    assert ask("GET", "PREFECT_PORT", "/ui-settings").json()["api_url"] == "/api"
    found = ask("POST", "PREFECT_PORT", "/api/deployments/filter", json={}, auth=prefect)
    assert found.status_code == 200
    mlflow = (env["MLFLOW_ADMIN_USERNAME"], env["MLFLOW_ADMIN_PASSWORD"])
    search = "/ajax-api/2.0/mlflow/experiments/search"
    assert "<html" in ask("GET", "MLFLOW_PORT", "/", auth=mlflow).text.lower()
    asked = ask("POST", "MLFLOW_PORT", search, json={"max_results": 5}, auth=mlflow)
    assert asked.status_code == 200
    assert "experiments" in asked.json()
    key = {"accessKey": env["MINIO_ROOT_USER"], "secretKey": env["MINIO_ROOT_PASSWORD"]}
    assert ask("POST", "MINIO_CONSOLE_PORT", "/api/v1/login", json=key).status_code == 204


@pytest.mark.parametrize("header", ["Host", "Origin"])
def test_mlflow_knows_its_names(four: FourHosts, header: str) -> None:
    """Another name, or a page of another server, is refused by MLflow."""
    value = {"Host": "other.example.org", "Origin": "http://other.example.org"}[header]
    answer = httpx.post(
        f"{four.servers.mlflow_url}/ajax-api/2.0/mlflow/experiments/search",
        headers={header: value},
        json={"max_results": 5},
        auth=four.servers.mlflow.auth,
        trust_env=False,
    )
    assert answer.status_code == 403


def test_large_artifact_reaches_another_host(four: FourHosts) -> None:
    """400 MB that went through MLflow come back whole, through it and from S3 itself."""
    four.write_flow("large", LARGE)
    assert trained_by(four.servers, "large/large") == "first"
    run = four.servers.mlflow_runs("large")[0]
    (key,) = four.servers.keys("mlflow", "large/")
    size = four.servers.s3.head_object(Bucket="mlflow", Key=key)["ContentLength"]
    assert size == LARGE_BYTES
    places = (f"{run['info']['artifact_uri']}/large.bin", f"s3://mlflow/{key}")
    assert places[0].startswith("mlflow-artifacts:/")
    text = four.experimenter.project.run(
        *("ml-experimenter", "python", "-W", "ignore", "-c", DOWNLOAD, *places), timeout=400
    )
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert json.loads(text.splitlines()[-1]) == dict.fromkeys(places, tags["sha256"])


def test_experimenter_has_its_tools_and_keys(four: FourHosts) -> None:
    """In a login shell DVC pushes, boto3 writes, and what is made belongs to the host's user."""
    experiment = """
        set -eu
        dvc --version
        mkdir first && cd first
        echo 'some data' >data.csv
        dvc init --quiet --no-scm
        dvc remote add --quiet --default platform s3://dvc/x
        dvc add --quiet data.csv
        dvc push --quiet
        python -c 'import boto3; boto3.client("s3").put_object(Bucket="dvc", Key="mine", Body=b"1")'
    """
    said = four.experimenter.project.run("ml-experimenter", "bash", "-lc", experiment)
    assert said.startswith("3.")
    (pushed,) = four.servers.keys("dvc", "x/")
    body = four.servers.s3.get_object(Bucket="dvc", Key=pushed)["Body"].read()
    assert body == b"some data\n"
    assert four.servers.keys("dvc", "mine") == ["mine"]
    made = (four.experimenter.host.folder / "dev-projects" / "first" / "data.csv").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


def test_run_outlives_the_other_stacks(four: FourHosts) -> None:
    """A run goes on while the server and the scheduler are away, and what it logs is kept."""
    agent = four.agent.project
    four.write_flow("patient", PATIENT)
    run = four.servers.start_run("patient/patient")
    wait_for(lambda: metrics(four.servers, "patient"), 120)
    four.scheduler.project.down()
    four.server.project.down()
    # A folder that appears meanwhile is registered as soon as somebody looks.
    write_flow(four.scheduler.host.folder / "flows" / "meanwhile")
    up_together([four.server.project, four.scheduler.project])
    assert four.servers.run(run)["state_type"] == "RUNNING"
    agent.run("flow-agent", "touch", "/tmp/go-on")  # noqa: S108  # in the container
    completed(four.servers, run)
    assert metrics(four.servers, "patient") == {"before": 1, "after": 2}
    assert metrics(four.servers, "trained") == {"score": 0.5}
    wait_for(lambda: four.servers.deployment("meanwhile/meanwhile"), 60)
    assert trained_by(four.servers, "meanwhile/meanwhile") == "first"


def test_second_agent_joins_later(four: FourHosts, tmp_path: Path) -> None:
    """Another host's agent serves the same pool, and alone when the first is stopped."""
    second = join(four.server.host, tmp_path / "second", "agent", MLOPS_HOST_NAME="second")
    try:
        second.project.up()
        four.agent.project.down()
        assert trained_by(four.servers) == "second"
    finally:
        second.host.remove()


def rename(server: ServerHost, name: str) -> None:
    """Have a server called by another name from now on, as `init` says how."""
    told = server.host.mlops("init", "server", "--host", name).stderr
    lines = dict(re.findall(r"(?m)^  ([A-Z_]+)=(.+)$", told))
    assert {"SERVER_IP", "MLOPS_ADDRESSES"} <= lines.keys()
    file = server.project.folder / ".env"
    for variable, value in lines.items():
        text = re.sub(rf"(?m)^{variable}=.*$", f"{variable}={value}", file.read_text())
        file.write_text(text)
    server.project.up()


def test_server_by_name(server_host: ServerHost, tmp_path: Path) -> None:
    """A server that is known by its name is joined and used in the same way, by every role.

    The name is one that Compose gives to containers; there is no other that all of them know.
    """
    server = server_host
    (port,) = map(str, free_ports(1))
    before = (server.project.folder / ".env").read_text()
    joined: list[Joined] = []
    try:
        rename(server, NAME)
        joined += [
            join(server.host, tmp_path / "scheduler", "scheduler"),
            join(server.host, tmp_path / "agent", "agent"),
            join(server.host, tmp_path / "experimenter", "experimenter", JUPYTER_PORT=port),
        ]
        scheduler, agent, experimenter = joined
        write_flow(scheduler.host.folder / "flows" / "named")
        assert agent.host.env("flow_agent")["SERVER_IP"] == NAME
        up_together([each.project for each in joined])
        wait_for(lambda: server.servers.deployment("named/named"), 60)
        trained_by(server.servers, "named/named")
        assert metrics(server.servers, "named") == {"score": 0.5}
        said = experimenter.project.run("ml-experimenter", "python", "-W", "ignore", "-c", LOOK)
        assert said.split() == ["named", "picture.png", "named"]
    finally:
        (server.project.folder / ".env").write_text(before)
        for each in joined:
            each.host.remove()
