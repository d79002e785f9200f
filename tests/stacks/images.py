"""The images under test. Docker's cache decides what is built anew."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlops

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Image:
    """One of our images.

    Attributes:
        folder: The stack's folder, which holds the Dockerfile.
        name: What it is called, without the tag.
        limit_bytes: What it may weigh; None: no limit of its own (torch with CUDA).
        arguments: The build's.
        variant: Stands in the tag after the version.
    """

    folder: str
    name: str
    limit_bytes: int | None = None
    arguments: tuple[str, ...] = ()
    variant: str = ""

    @property
    def tag(self) -> str:
        return f"{self.name}:{mlops.__version__}{self.variant}"

    def build(self) -> None:
        arguments = [part for argument in self.arguments for part in ("--build-arg", argument)]
        done = subprocess.run(
            [
                *("docker", "build", "--quiet", "--tag", self.tag, *arguments),
                *("--file", PROJECT / self.folder / "Dockerfile", PROJECT),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]

    def inspect(self) -> dict[str, Any]:
        text = subprocess.check_output(["docker", "image", "inspect", self.tag])
        found: dict[str, Any] = json.loads(text)[0]
        return found

    def run(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a command in a container as any user may: on a read-only root; return its output."""
        done = subprocess.run(
            [
                *("docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp"),  # noqa: S108
                *(*options, self.tag, *command),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


SERVER = Image("server", "mlops-server", limit_bytes=800 * 10**6)
SCHEDULER = Image("flow_scheduler", "mlops-flow-scheduler", limit_bytes=600 * 10**6)
AGENT = Image("flow_agent", "mlops-flow-agent", limit_bytes=900 * 10**6)
AGENT_GPU = Image("flow_agent", "mlops-flow-agent-gpu", arguments=("VARIANT=gpu",))
# As `./mlops init` and the stack's compose file build it: for the user of this host.
EXPERIMENTER = Image(
    "ml_experimenter",
    "mlops-ml-experimenter",
    arguments=(f"HOST_UID={os.getuid()}", f"HOST_GID={os.getgid()}"),
    variant=f"-{os.getuid()}",
)
IMAGES = (SERVER, SCHEDULER, AGENT, AGENT_GPU, EXPERIMENTER)
