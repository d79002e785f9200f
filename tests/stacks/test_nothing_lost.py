"""What the volumes hold outlives every way to end, move and start the stacks."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from stacks.fixtures import OneHost, completed, ports, wait_for, write_flow
from stacks.images import SERVER
from stacks.platform import Servers
from stacks.projects import Host, Project, docker

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(900)]
PUSH = """
    set -eu
    cd "$(mktemp -d)"
    echo 'some data' >data.csv
    dvc init --quiet --no-scm
    dvc remote add --quiet --default platform s3://dvc/kept
    dvc add --quiet data.csv
    dvc push --quiet
"""
SERVERS = ("postgres", "minio", "prefect", "mlflow")
IN_USE = "is in use by another project"


class Platform:
    """A host's platform, as the root's project or as the stack's own.

    Args:
        host: On which one of the two is up.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.root = host.project()
        self.server = host.project("server")
        self.servers = Servers(host.env())
        self.server_anew = f"{host.mark}:anew"  # other projects go on with the shipped image
        self.run_id = ""

    def use(self, project: Project) -> None:
        """Have this project up, and no other one."""
        for other in (self.root, self.server):
            if other is not project:
                other.down()
        project.up()

    def fill(self) -> None:
        """Leave a run, a registered model and a file of DVC's."""
        wait_for(lambda: self.servers.deployment("kept/kept"), 60)
        self.run_id = self.servers.start_run("kept/kept")
        completed(self.servers, self.run_id)
        (run,) = self.servers.mlflow_runs("kept")
        source = f"{run['info']['artifact_uri']}/model"
        self._tell("registered-models/create", name="kept")
        self._tell(
            "model-versions/create", name="kept", source=source, run_id=run["info"]["run_id"]
        )
        self.root.run("ml-experimenter", "bash", "-c", PUSH)

    def check(self) -> None:
        """Ask the servers for all of it."""
        run = self.servers.run(self.run_id)
        assert run["state_type"] == "COMPLETED"
        assert "trained by kept" in self.servers.log(self.run_id)
        (tracked,) = self.servers.mlflow_runs("kept")
        assert tracked["data"]["metrics"][0]["value"] == 0.5
        version = {"name": "kept", "version": "1"}
        place = self.servers.mlflow.get("/model-versions/get-download-uri", params=version)
        model = place.json()["artifact_uri"].removeprefix("s3://mlflow/")
        assert self.read("mlflow", f"{model}/model.txt") == b"the model's bytes"
        (pushed,) = self.servers.keys("dvc", "kept/")
        assert self.read("dvc", pushed) == b"some data\n"

    def read(self, bucket: str, key: str) -> bytes:
        """Return an object's bytes."""
        body: bytes = self.servers.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def _tell(self, path: str, **body: str) -> None:
        self.servers.mlflow.post(f"/{path}", json=body).raise_for_status()


@pytest.fixture(scope="module")
def platform(one_host: OneHost) -> Iterator[Platform]:
    """A platform with something in it, at first as the root's project: nobody else's any more."""
    write_flow(one_host.host.folder / "flows" / "kept")
    found = Platform(one_host.host)
    found.fill()
    yield found
    found.host.remove()
    docker("image", "rm", found.server_anew, check=False)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Host]:
    """A host with every `.env`, on which nothing was started."""
    host = Host(tmp_path / "host", ports())
    host.preset()
    host.init()
    try:
        yield host
    finally:
        host.remove()


def start(project: Project, service: str) -> int:
    """Ask for one service and what it needs, and return Compose's exit status."""
    return project.compose("up", "--detach", "--wait", service).returncode


def test_own_project_has_the_same_volumes(platform: Platform) -> None:
    """The server stack in its own folder goes on with what the root's project left."""
    platform.check()
    platform.use(platform.server)
    platform.check()


def test_down_and_up(platform: Platform, tmp_path: Path) -> None:
    """`down` keeps the data; the next `up`, with an image that was built anew, finds it."""
    platform.use(platform.server)
    before = platform.server.containers()
    (tmp_path / "Dockerfile").write_text(f"FROM {SERVER.tag}\nLABEL built=anew\n")
    anew = platform.server_anew
    docker("build", "--quiet", "--tag", anew, str(tmp_path))
    own = {"services": {name: {"image": anew} for name in ("setup", "prefect", "mlflow")}}
    override = platform.server.folder / "compose.override.yaml"
    override.write_text(yaml.safe_dump(own))
    try:
        platform.server.down()
        platform.server.up()
        assert not set(before) & set(platform.server.containers())
        assert {platform.server.services()[name]["Image"] for name in own["services"]} == {anew}
        platform.check()
    finally:
        override.unlink()


def test_another_password(platform: Platform) -> None:
    """A password that is not the volume's is refused with what it must be."""
    platform.root.down()
    env = platform.host.folder / "server" / ".env"
    right = env.read_text()
    password = platform.host.env("server")["POSTGRES_PASSWORD"]
    try:
        env.write_text(right.replace(f"POSTGRES_PASSWORD={password}", "POSTGRES_PASSWORD=other"))
        done = platform.server.compose("up", "--detach", "--wait", timeout=240)
        assert done.returncode != 0
        told = platform.server.compose("logs", "setup").stdout
        assert "password authentication failed" in told
        assert "POSTGRES_PASSWORD the one it was first started with?" in told
    finally:
        env.write_text(right)
    platform.server.up()
    platform.check()


def test_second_project_is_refused(platform: Platform) -> None:
    """While one project runs, the other is told who is in the way, and nothing happens to it."""
    platform.use(platform.server)
    before = platform.server.containers()
    done = platform.root.compose("up", "--detach", "--wait", timeout=240)
    try:
        assert done.returncode != 0
        told = platform.root.compose("logs", "postgres-volume").stdout
        assert f"the volume {platform.host.mark}-postgres {IN_USE}, {platform.server.name}" in told
        # The database, and what comes after it, was not started.
        states = {name: each["State"] for name, each in platform.root.services().items()}
        assert states.pop("postgres-volume") == "exited"
        assert set(states.values()) <= {"created"}
    finally:
        platform.root.down()
    assert platform.server.containers() == before
    platform.check()


def test_started_together(lone: Host) -> None:
    """Of two on an empty volume exactly one gets the database, and keeps it to itself."""
    projects = (lone.project(), lone.project("server"))
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(start, projects, ("postgres", "postgres")))
    assert sorted(map(bool, codes)) == [False, True]
    refused = projects[codes.index(max(codes))]
    # It may have seen that at once, or when it wanted the lock itself.
    assert IN_USE in refused.logs("postgres-volume", "postgres")
    # The one that made the database still holds the lock.
    refused.down()
    assert start(refused, "postgres") != 0
    assert IN_USE in refused.logs("postgres-volume")


def test_refused_project_does_not_lie_in_wait(lone: Host) -> None:
    """A database that is killed comes back by itself, though another project wanted its volume."""
    holder, refused = lone.project("server"), lone.project()
    assert start(holder, "postgres") == 0
    assert start(refused, "postgres") != 0
    database = holder.services()["postgres"]["ID"]
    # At once and without a word to Docker, as after a crash.
    holder.run("postgres", "pg_ctl", "stop", "--mode=immediate", "--no-wait")

    def is_back() -> bool:
        restarts = docker("inspect", "--format", "{{.RestartCount}}", database).strip()
        return restarts == "1" and holder.services()["postgres"]["Health"] == "healthy"

    wait_for(is_back, 60)


@pytest.mark.parametrize("victims", [("postgres",), SERVERS], ids=["postgres", "all"])
def test_killed(platform: Platform, victims: tuple[str, ...]) -> None:
    """What was confirmed before kill -9 is there, and no lock keeps the other project out."""
    platform.use(platform.server)
    confirmed: list[str] = []
    enough = threading.Event()

    def write() -> None:
        try:
            for number in range(100_000):
                name = f"{'-'.join(victims)}-{number}"
                value = {"name": name, "value": number}
                platform.servers.prefect.post("/variables/", json=value).raise_for_status()
                confirmed.append(name)
                if number == 20:
                    enough.set()
        except httpx.HTTPError:
            pass  # killed

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(60)
    platform.server.compose("kill", "--signal", "KILL", *victims)
    writer.join()
    if victims == SERVERS:
        platform.root.up("prefect", "mlflow")
    else:
        platform.server.up()
    kept = variables(platform.servers)
    assert not set(confirmed) - kept
    platform.check()


def variables(servers: Servers) -> set[str]:
    """Return the names of all variables in Prefect."""
    names: set[str] = set()
    while True:
        query = {"limit": 200, "offset": len(names)}
        page: list[dict[str, Any]] = servers.prefect.post("/variables/filter", json=query).json()
        names |= {each["name"] for each in page}
        if not page:
            return names


# A folder of another version cannot be had without its images; what tells it is this file.
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("mkdir -m 700 /v/cluster && echo 16 >/v/cluster/PG_VERSION", "database of PostgreSQL 16"),
        ("echo 17 >/v/PG_VERSION", "the database of something else than this platform"),
    ],
    ids=["version", "platform"],
)
def test_foreign_volume(lone: Host, made: str, message: str) -> None:
    """A volume with somebody else's database is left alone, and the way out is named."""
    volume = f"{lone.mark}-postgres"
    create = ["run", "--rm", "--volume", f"{volume}:/v", "--entrypoint", "bash"]
    docker(*create, "postgres:17.11-trixie", "-c", f"{made} && chown -R postgres /v")
    done = lone.project("server").compose("run", "--rm", "--no-TTY", "postgres-volume")
    assert done.returncode == 1
    assert message in done.stderr + done.stdout
    assert "VOLUME_PREFIX" in done.stderr + done.stdout


def test_compose_answers_at_any_time(lone: Host) -> None:
    """`ps`, `logs` and `down` work while a stack starts and when a part of it was removed."""
    project = lone.project("server")
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(project.compose, "up", "--detach", timeout=240)
        wait_for(project.containers, 60)
        answers = [project.compose("ps", "--all"), project.compose("logs")]
        assert not starting.done()
        answers.append(project.compose("down"))
        starting.result()
        project.compose("down")  # what the other one had made since
    assert [each.returncode for each in answers] == [0, 0, 0], answers
    assert project.containers() == []

    start(project, "minio")
    docker("rm", "--force", project.services()["postgres"]["ID"])
    answers = [project.compose(*command) for command in (("ps", "--all"), ("logs",), ("down",))]
    assert [each.returncode for each in answers] == [0, 0, 0], answers
    assert project.containers() == []
