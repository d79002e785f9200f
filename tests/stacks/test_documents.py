"""Every command in the documents about the stacks, run as it stands there.

A document is a script for hosts. Each block of commands runs on the document's own host, or on the
one that its first line names (`# on the other host`), and begins in the document's folder there;
in the checkout's folder where the document belongs to no stack, and on another's host.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from documents import Block, blocks, commands_in_text, is_among, languages
from stacks.fixtures import ports, write_flow
from stacks.platform import Servers
from stacks.projects import CHECKOUT, STACKS, UP_SECONDS, Host, bridge_address

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(1800)]

# Whose documents run in this order: what one has started the next finds running.
OWNERS = {
    "README.md": "the server's host",
    "docs/operations.md": "the server's host",
    "server/README.md": "the server's host",
    "flow_scheduler/README.md": "the scheduler's host",
    "flow_agent/README.md": "the other host",
    "ml_experimenter/README.md": "the experimenter's host",
    "docs/offline.md": "the building host",
}


class StandIn(NamedTuple):
    """What is run in place of a command, and why; `{name}` is the folder of a host."""

    reason: str
    command: str


GPU_CONFIG = "docker compose --profile gpu config --quiet"
PRUNE = "run --rm prune mlops flows prune --code --yes"
STAND_INS = {
    "git pull": StandIn("a copy of the checkout has no remote", "true"),
    "./mlops join agent | ssh gpu1 'cd mlops && ./mlops init agent --join -'": StandIn(
        "no other machine",
        "./mlops join agent | bash -c 'cd {the other host} && ./mlops init agent --join -'",
    ),
    "scp .env postgres.tar minio.tar ml2:mlops/server/": StandIn(
        "no other machine", "cp -p .env postgres.tar minio.tar {the new host}/server/"
    ),
    "ssh -N -L 8888:localhost:8888 gpu1": StandIn("no other machine", "true"),
    "docker compose run --rm flow-agent-gpu nvidia-smi": StandIn("needs a GPU", GPU_CONFIG),
    "docker compose run --rm ml-experimenter-gpu nvidia-smi": StandIn("needs a GPU", GPU_CONFIG),
    "COMPOSE_PROFILES=gpu": StandIn("needs a GPU", GPU_CONFIG),
    "TORCH_BACKEND=cpu": StandIn(
        "downloads another PyTorch", "TORCH_BACKEND=cpu docker compose config --quiet"
    ),
    "GOTOOLCHAIN=auto": StandIn("is for an older Go", "GOTOOLCHAIN=auto offline/build minio"),
    "ip address show docker0": StandIn("may be missing", "docker network inspect bridge"),
    "chmod 600": StandIn("a message names the file", "chmod 600 server/.env"),
    "./mlops init agent --join - --host NAME": StandIn(
        "each host joins once",
        "cd {a host behind a VPN} && ./mlops init agent --join - --host vpn.example.org",
    ),
    "dvc remote add platform s3://dvc/NAME": StandIn(
        "is for the container",
        "docker compose exec ml-experimenter bash -lc"
        " 'cd $(mktemp -d) && dvc init --no-scm && dvc remote add platform s3://dvc/NAME'",
    ),
    # What is to go must be an hour old, and a person is asked.
    "docker compose run --rm prune": StandIn("asks", f"docker compose {PRUNE}"),
    "cd server && docker compose run --rm prune": StandIn(
        "asks", f"cd server && docker compose {PRUNE}"
    ),
}


# Commands that another module of tests runs.
RUN_BY = {
    "./mlops test": "unit/development/test_checks.py",
    "./mlops test tests/unit -k schedule": "unit/development/test_checks.py",
    "./mlops lock": "unit/development/test_locks.py",
    "./mlops flows new NAME": "embedded/test_documented_flows.py",
    ".ci/run": "unit/test_ci.py",
    # It would replace the image that other tests have built on.
    "offline/build --force python": "stacks/test_offline_images.py",
    "pip install": "stacks/test_offline_images.py",
    "mc ready local": "stacks/test_offline_images.py",
}


def is_about_compose(document: str, block: Block) -> bool:
    """Return whether a block belongs here; the README's other ones are run without Docker."""
    return document != "README.md" or any("docker compose" in each for each in block.commands)


def in_blocks() -> set[str]:
    """Return what is run as it stands in the documents' blocks."""
    return {each for name in OWNERS for block in blocks(name) for each in block.commands}


class Hosts:
    """The hosts that documents speak of, made when they are first needed.

    Args:
        folder: Of their checkouts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = bridge_address()
        self.pasted = ""  # what `./mlops join` printed last
        self._hosts: dict[str, Host] = {}
        self._ports = ports()

    def __getitem__(self, name: str) -> Host:
        if name not in self._hosts:
            folder = self.folder / re.sub(r"\W+", "-", name)
            host = self._hosts[name] = Host(folder, self._ports | {"BIND_ADDRESS": self.address})
            if name == "the server's host":
                host.preset()
                # From which `--build` builds.
                for part in ("src", "requirements"):
                    shutil.copytree(CHECKOUT / part, folder / part)
                for part in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
                    shutil.copy(CHECKOUT / part, folder)
            elif name == "the building host":
                shutil.copytree(CHECKOUT / "offline", folder / "offline")
            elif name == "the scheduler's host":
                write_flow(folder / "flows" / "watched")
                write_flow(folder / "flow_scheduler" / "my-flow")
            elif name == "the experimenter's host":
                host.presets = {"JUPYTER_PORT": self._ports["JUPYTER_PORT"]}
                host.preset("ml_experimenter/.env")
        return self._hosts[name]

    def start_server(self) -> None:
        """Start the server stack, unless the documents have; where they have moved it to."""
        moved = self["the new host"]
        if moved.project("server").containers():
            self._hosts |= {"the server's host": moved, "the old host": self["the server's host"]}
        host = self["the server's host"]
        host.init("server")
        # A server that has moved has its old prefix in `.env`.
        host.project("server").up(VOLUME_PREFIX=host.mark)

    def run(self, document: str) -> None:
        """Run a document's commands, those in its text last; the first that fails ends it."""
        owner = OWNERS[document]
        stack = Path(document).parent.name
        here = self[owner].folder / (stack if stack in STACKS else "")
        for block in blocks(document):
            if is_about_compose(document, block):
                away = block.host not in {None, owner}
                host = self[block.host or owner]
                folder = host.folder if away else here
                for command in block.commands:
                    folder = self._run(command, host, folder, document)
        for command in commands_in_text(document):
            if command not in RUN_BY and not is_among(command, in_blocks()):
                self._run(command, self[owner], here, document)

    def remove(self) -> None:
        """End everything on all hosts."""
        for host in self._hosts.values():
            host.remove()

    def _run(self, command: str, host: Host, folder: Path, document: str) -> Path:
        """Run one command, and return the folder that its shell is in afterwards."""
        end = self.folder / "end"
        text = self._replaced(command, host)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"trap 'pwd >{end}' EXIT\n{text}"],
            cwd=folder,
            # What the compose files read may come from `.env` alone, except for the names that
            # keep this machine's own platform out of it.
            env={
                **{
                    name: os.environ[name]
                    for name in ("PATH", "HOME", "DOCKER_HOST", "PYTHONPATH", "UV_SYSTEM_CERTS")
                    if name in os.environ
                },
                "VOLUME_PREFIX": host.mark,
            },
            input=self.pasted if "--join -" in text else "",
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{document}: {command}\n{done.stdout}{done.stderr}"
        if re.fullmatch(r"\S*mlops join \w+", text):
            self.pasted = done.stdout
        return Path(end.read_text().strip())

    def _replaced(self, command: str, host: Host) -> str:
        """Return what is run for a command of a document."""
        if command in STAND_INS:
            name = re.compile(r"\{(.+?)\}")
            text = STAND_INS[command].command
            return name.sub(lambda found: str(self[found[1]].folder), text)
        placeholders = {
            "0.0.0.0": self.address,  # noqa: S104  # as written; not listened on
            "172.17.0.1": self.address,
            "ml.example.org": self.address,
            "mlops-postgres": f"{host.mark}-postgres",
            "mlops-minio": f"{host.mark}-minio",
        }
        for word, value in placeholders.items():
            command = command.replace(word, value)
        return command


@pytest.fixture(scope="module")
def hosts(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    _ = images
    found = Hosts(tmp_path_factory.mktemp("documents"))
    try:
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def server(hosts: Hosts) -> None:
    """Somewhere the server stack is up."""
    hosts.start_server()


# Code that nothing refers to.
LEFT_OVER = f"flows/left-over/{'0' * 64}/flow.py"


def test_platform_is_run_as_documented(hosts: Hosts) -> None:
    """From the first start to the move of the server, which takes everything along."""
    hosts.run("README.md")
    before = Servers(hosts["the server's host"].env(), hosts.address)
    before.prefect.post("/variables/", json={"name": "kept", "value": 1}).raise_for_status()
    before.s3.put_object(Bucket="dvc", Key="kept", Body=b"as it was")
    before.put_long_ago("prefect", LEFT_OVER, b"")
    hosts.run("docs/operations.md")
    moved = Servers(hosts["the new host"].env("server"), hosts.address)
    assert moved.prefect.get("/variables/name/kept").json()["value"] == 1
    assert moved.s3.get_object(Bucket="dvc", Key="kept")["Body"].read() == b"as it was"
    assert LEFT_OVER not in moved.keys("prefect")


@pytest.mark.parametrize("stack", STACKS)
def test_stack_is_run_as_its_readme_says(hosts: Hosts, server: None, stack: str) -> None:
    """Started, looked at and cleared away with the commands of its README."""
    _ = server
    document = f"{stack}/README.md"
    if stack != "server":
        # An agent that was started before may not have seen yet that the server is back.
        hosts[OWNERS[document]].project(stack).remove()
    hosts.run(document)


@pytest.mark.requires("go", "mmdebstrap")
def test_base_images_are_made_as_documented(hosts: Hosts) -> None:
    """What makes the base images runs as written, and leaves alone those that are there."""
    hosts.run("docs/offline.md")


def test_no_command_goes_unseen() -> None:
    """A command is run here, with something in its place for a reason, or by another module."""
    in_text = {command for name in OWNERS for command in commands_in_text(name)}
    seen = in_blocks() | in_text
    assert not (STAND_INS.keys() | RUN_BY.keys()) - seen
    assert all((CHECKOUT / "tests" / module).exists() for module in RUN_BY.values())
    for name in OWNERS:
        assert languages(name) <= {"mermaid", "sh", "yaml"}
        assert name == "README.md" or blocks(name)
