"""The images under test, built as the compose files say. Docker's cache decides what is new."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from stacks.projects import CHECKOUT, Host, docker

import mlops

BUILD_SECONDS = 1800

Build = Callable[..., None]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds services' images from this checkout; variables win over those of `.env`."""
    host = Host(tmp_path_factory.mktemp("build") / "host")
    host.init()
    env = str(host.folder / ".env")

    def build(*services: str, **variables: str) -> None:
        done = subprocess.run(
            ["docker", "compose", "--env-file", env, "build", "--quiet", *services],
            cwd=CHECKOUT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]

    return build


@pytest.fixture(scope="session")
def images(build: Build) -> None:
    """The images of all four stacks."""
    build()


@dataclass(frozen=True)
class Image:
    """One of our images.

    Attributes:
        name: What it is called, without the tag.
        limit_bytes: What it may weigh; None: no limit of its own (torch with CUDA).
        variant: Stands in the tag after the version.
    """

    name: str
    limit_bytes: int | None = None
    variant: str = ""

    @property
    def tag(self) -> str:
        return f"{self.name}:{mlops.__version__}{self.variant}"

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("image", "inspect", self.tag))[0]
        return found

    def run(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a command in a container as any user may: on a read-only root; return its output."""
        usual = ("--rm", "--read-only", "--tmpfs", "/tmp")  # noqa: S108  # in the container
        return docker("run", *usual, *options, self.tag, *command, timeout=600)


SERVER = Image("mlops-server", limit_bytes=800 * 10**6)
SCHEDULER = Image("mlops-flow-scheduler", limit_bytes=600 * 10**6)
AGENT = Image("mlops-flow-agent", limit_bytes=900 * 10**6)
AGENT_GPU = Image("mlops-flow-agent-gpu")
# As `./mlops init` asks for it: for the user of this host.
EXPERIMENTER = Image("mlops-ml-experimenter", variant=f"-{os.getuid()}")
IMAGES = (SERVER, SCHEDULER, AGENT, AGENT_GPU, EXPERIMENTER)
