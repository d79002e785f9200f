"""One embedded platform for all tests that need real servers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from mlops.credentials import Credentials, load_credentials
from mlops.identities import Addresses, ClientRole, role_environment

# What a developer's shell may hold and a test must not see.
FOREIGN_PREFIXES = ("AWS_", "MLFLOW_", "MLOPS_", "PREFECT_", "POOL_", "FLOW_DIR")
PREBUILT_VARIABLE = "MLOPS_PREBUILT_DIR"
# For the agents of all platforms, once it is there: nothing, or the variable and its value.
_prebuilt: dict[str, str] = {}


class Platform(NamedTuple):
    """A running platform, driven through the command line as a user would."""

    home: Path
    flow_dir: Path
    addresses: Addresses
    postgres_port: int
    credentials: Credentials

    def environment(self, role: ClientRole | None = None) -> dict[str, str]:
        """Return a shell's environment, with a role's variables or only `MLOPS_HOME`."""
        variables = role_environment(role, self.credentials, self.addresses) if role else {}
        return shell_environment(self.home, self.flow_dir) | variables

    def cli(
        self, *arguments: str, role: ClientRole | None = None, timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `mlops …` as a user of this platform would, whatever its exit code."""
        return run_cli(
            *arguments, environment=self.environment(role), timeout_seconds=timeout_seconds
        )


def shell_environment(home: Path, flow_dir: Path) -> dict[str, str]:
    """Return the environment of a user whose platform lives in `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN_PREFIXES)}
    return kept | _prebuilt | {"MLOPS_HOME": str(home), "FLOW_DIR": str(flow_dir)}


def run_cli(
    *arguments: str, environment: dict[str, str], timeout_seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `mlops …` in an environment of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mlops", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def start_platform(home: Path, flow_dir: Path) -> Platform:
    """Bring a platform up and return it."""
    result = run_cli(
        "local", "up", "--json", environment=shell_environment(home, flow_dir), timeout_seconds=240
    )
    assert result.returncode == 0, result.stderr
    return reported_platform(home, flow_dir, json.loads(result.stdout))


def reported_platform(home: Path, flow_dir: Path, report: dict[str, Any]) -> Platform:
    """Return the platform that `mlops local up --json` tells of."""
    *_, postgres_port = report["addresses"].pop("postgres").rpartition(":")
    return Platform(
        home=home,
        flow_dir=flow_dir,
        addresses=Addresses(**report["addresses"]),
        postgres_port=int(postgres_port),
        credentials=load_credentials(Path(report["credentials_file"])),
    )


def platform_processes(home: Path) -> list[psutil.Process]:
    """Return the processes that know this platform's home, found without the platform's code."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLOPS_HOME") == str(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users may pass: as root, PostgreSQL is one of them."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def platform(open_folder: Path, prebuilt: Path) -> Iterator[Platform]:
    """The session's platform; at the end it is taken down and must leave no process.

    Its agent, and all others from then on, find the environment of flows without requirements.
    """
    _prebuilt[PREBUILT_VARIABLE] = str(prebuilt)
    flow_dir = open_folder / "flows"
    flow_dir.mkdir()
    running = start_platform(open_folder / "home", flow_dir)
    yield running
    result = running.cli("local", "down")
    assert result.returncode == 0, result.stderr
    assert platform_processes(running.home) == []
