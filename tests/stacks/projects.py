"""Hosts and their Compose projects, as the tests start them: with the shipped files, unchanged.

A host is a copy of what lies in a checkout, with `.env` files of its own. Its projects, volumes
and ports have names of their own, so that a platform of this machine's is never touched.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, ClassVar

CHECKOUT = Path(__file__).resolve().parents[2]
STACKS = ("server", "flow_scheduler", "flow_agent", "ml_experimenter")
PORTS = ("S3_PORT", "MINIO_CONSOLE_PORT", "MLFLOW_PORT", "PREFECT_PORT", "JUPYTER_PORT")
UP_SECONDS = 420
# The address of the host on Docker's own bridge: not loopback, and reached by this host alone.
BRIDGE_FORMAT = "{{(index .IPAM.Config 0).Gateway}}"
COLOURS = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


def docker(*arguments: str, timeout: float = 120, check: bool = True) -> str:
    """Run `docker …` and return its standard output."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def container_log(container: str) -> str:
    """Return all that a container has printed, on either stream."""
    return subprocess.run(
        ["docker", "logs", container],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    ).stdout


def bridge_address() -> str:
    """Return the host's address on Docker's bridge."""
    return docker("network", "inspect", "bridge", "--format", BRIDGE_FORMAT).strip()


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


class Host:
    """A machine with a checkout.

    Args:
        folder: Where the checkout's copy goes.
        presets: Lines of `.env` that are there before `init`.
    """

    living: ClassVar[list["Host"]] = []

    def __init__(self, folder: Path, presets: dict[str, str] | None = None) -> None:
        self.living.append(self)
        self.folder = folder
        self.mark = f"mlops-test-{uuid.uuid4().hex[:8]}"
        self.presets = {"VOLUME_PREFIX": self.mark} | (presets or {})
        folder.mkdir(parents=True)
        for name in STACKS:
            shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns(".env"))
        shutil.copy(CHECKOUT / "compose.yaml", folder)
        for name in ("flows", "dev-projects"):
            (folder / name).mkdir()
        # In place of the bootstrap, which would make an environment of its own first.
        script = folder / "mlops"
        python = shlex.quote(sys.executable)
        script.write_text(
            f'#!/bin/sh\nMLOPS_CHECKOUT={shlex.quote(str(folder))} exec {python} -P -m mlops "$@"\n'
        )
        script.chmod(0o755)

    def preset(self, *files: str) -> None:
        """Write names, ports and the like to `.env` files, as a user may before `init`."""
        for file in files or (".env",):
            path = self.folder / file
            path.touch(mode=0o600)
            path.write_text("".join(f"{n}={v}\n" for n, v in self.presets.items()))

    def mlops(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `./mlops …` of this checkout."""
        return subprocess.run(
            ["./mlops", *arguments],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def init(self, *arguments: str, stdin: str = "") -> str:
        """Run `./mlops init …`, which must succeed."""
        done = self.mlops("init", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def env(self, stack: str = "") -> dict[str, str]:
        """Return what a stack's `.env` holds, or the root's."""
        lines = (self.folder / stack / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def project(self, stack: str = "") -> "Project":
        """Return a stack's Compose project, or that of all of them."""
        name = f"{self.mark}-{stack}" if stack else self.mark
        return Project(self.folder / stack, name.replace("_", "-"), self.mark)

    def remove(self) -> None:
        """End every project of this host, with its volumes."""
        if self in self.living:
            self.living.remove(self)
        for stack in ("", *STACKS):
            self.project(stack).remove()
        volumes = docker("volume", "ls", "--quiet", "--filter", f"name={self.mark}").split()
        if volumes:
            docker("volume", "rm", *volumes, check=False)


class Project:
    """One Compose project.

    Args:
        folder: Where its compose.yaml lies.
        name: Of the project.
        prefix: Of that name, and of its volumes.
    """

    def __init__(self, folder: Path, name: str, prefix: str) -> None:
        self.folder = folder
        self.name = name
        self.prefix = prefix

    def compose(
        self, *arguments: str, timeout: float = 120, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker compose …` in the project's folder."""
        return subprocess.run(
            ["docker", "compose", "--ansi", "never", *arguments],
            cwd=self.folder,
            env={
                **{n: os.environ[n] for n in ("PATH", "HOME", "DOCKER_HOST") if n in os.environ},
                "VOLUME_PREFIX": self.prefix,
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def up(self, *arguments: str, **variables: str) -> None:
        """Run `docker compose up -d --wait`; what failed has its log in the message."""
        done = self.compose(
            *("up", "--detach", "--wait", *arguments), timeout=UP_SECONDS, **variables
        )
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}"

    def down(self, *arguments: str) -> None:
        """Run `docker compose down`."""
        self.keep_logs()
        done = self.compose("--profile", "*", "down", *arguments)
        assert done.returncode == 0, done.stderr

    def logs(self, *services: str) -> str:
        """Return the last lines of the services' logs."""
        return self.compose(
            "--profile", "*", "logs", "--no-color", "--tail", "60", *services
        ).stdout

    def keep_logs(self) -> None:
        """Add to CI's output what the containers have said, a file for each service."""
        if "MLOPS_TEST_OUTPUT" not in os.environ:
            return
        folder = Path(os.environ["MLOPS_TEST_OUTPUT"], "containers")
        folder.mkdir(exist_ok=True)
        columns = '{{.ID}} {{.Label "com.docker.compose.service"}}'
        for line in docker("ps", "--all", *self._mine, "--format", columns).splitlines():
            container, service = line.split()
            with (folder / f"{self.name}.{service}.log").open("a") as file:
                file.write(COLOURS.sub("", container_log(container)))

    def services(self) -> dict[str, dict[str, Any]]:
        """Return what `docker compose ps` says of each service's first container."""
        lines = self.compose("ps", "--all", "--format", "json").stdout.splitlines()
        return {found["Service"]: found for found in map(json.loads, lines)}

    def containers(self) -> list[str]:
        """Return the ids of all containers."""
        return sorted(self.compose("ps", "--all", "--quiet").stdout.split())

    def run(self, service: str, *command: str, timeout: float = 120) -> str:
        """Run a command in a service's container, which must succeed."""
        done = self.compose("exec", "--no-TTY", service, *command, timeout=timeout)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    @property
    def _mine(self) -> tuple[str, str]:
        """What Docker lists of this project, by name: also without its `.env`."""
        return "--filter", f"label=com.docker.compose.project={self.name}"

    def remove(self) -> None:
        """End the project and its volumes."""
        self.keep_logs()
        for kind, options in (("container", ["--force", "--volumes"]), ("network", [])):
            listing = ["ls", "--quiet", *self._mine]
            found = docker(kind, *listing, *(["--all"] if kind == "container" else [])).split()
            if found:
                docker(kind, "rm", *options, *found, check=False)
