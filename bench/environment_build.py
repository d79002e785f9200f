"""From trigger to the first line of a flow's first run in an environment that is not there yet.

The requirements are those of flows/green_taxi, and the flow imports what that one imports. All
packages are in the caches of uv and pip: each way was gone once, uncounted. Ours is a run on our
agent, counted from the moment when it is asked for; the peers are shell commands that make an
environment of the same versions with `uv` or with `venv` and `pip` and start the same script in it,
without a server, a queue, or a check of anything. Ours is measured twice: while the host has
another environment with these packages, as after a changed line of requirements, and with none.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from measure import (
    Clock,
    Findings,
    announce,
    compare,
    hold_against,
    run_bench,
    timed_command,
    wait_until,
)
from platform_under_test import Platform, clean_environment, open_folder, own_platform
from uv import find_uv_bin

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

TAXI = Path(__file__).parents[1] / "flows" / "green_taxi" / "requirements.txt"
# As the taxi's flow imports them.
SCRIPT = """\
import sys
import time
from pathlib import Path

import mlflow
import optuna
import pandas as pd
from mlflow.models import infer_signature
from prefect import flow
from sklearn.metrics import root_mean_squared_error
from xgboost import XGBRegressor


@flow(name="{name}")
def first(path: str) -> None:
    Path(path).write_text(str(time.time()))


if __name__ == "__main__":
    print(time.time())
"""
FLOW_YAML = """\
deployment:
  flow_py_name: first.py
  flow_name: first
  deploy_name: {name}
  pool_name: default-agent-pool
"""
# Two flows whose environments differ in one small package.
FLOWS = {"changed": "six==1.17.0\n", "older": "six==1.16.0\n"}
OURS = "our agent, the host has another one with these packages"
OURS_ALONE = "our agent, the host has no other one"
UV = "uv venv, uv pip install, python"
PIP = "python -m venv, pip install, python"
LIMIT_SECONDS = 5.0
AGENT_LOOKS_SECONDS = 60.0  # after its start at the latest; `mlops.agent.prebuilding` says when


def bench(rounds: int) -> Findings:
    """Make the environment `rounds` times in each way.

    Args:
        rounds: How often.
    """
    clock = Clock()
    with open_folder() as folder, own_platform(folder) as platform:
        for name, line in FLOWS.items():
            _write_flow(platform.flow_dir / name, name, line)
        platform.run("local", "up")
        platform.run("flows", "register")
        announce("the agent looks once at all deployments, and builds ahead of time")
        time.sleep(AGENT_LOOKS_SECONDS)
        with _prefect(platform.environment("agent")) as client:
            for number in range(rounds + 1):
                announce(f"round {number} of {rounds}" if number else "once each, not counted")
                counted = clock if number else Clock()
                _forget(platform, *FLOWS)
                counted.add(OURS_ALONE, _first_run(client, folder, "changed"))
                _first_run(client, folder, "older")
                lock = _lock(platform, folder)
                _forget(platform, "changed")
                counted.add(OURS, _first_run(client, folder, "changed"))
                counted.time(UV, _with_uv, folder, lock)
                counted.time(PIP, _with_pip, folder, lock)
    measures = clock.measures()
    return list(measures.values()), [
        hold_against(measures[OURS], LIMIT_SECONDS),
        hold_against(measures[OURS_ALONE], None),
        *(compare(measures[ours], measures[UV]) for ours in (OURS, OURS_ALONE)),
        compare(measures[OURS], measures[PIP]),
    ]


def _write_flow(folder: Path, name: str, more: str) -> None:
    folder.mkdir()
    (folder / "flow.yaml").write_text(FLOW_YAML.format(name=name))
    (folder / "first.py").write_text(SCRIPT.format(name=name))
    (folder / "requirements.txt").write_text(TAXI.read_text() + more)


def _records(platform: Platform, name: str) -> list[Path]:
    """Return the records of a flow's environment; none while it is built."""
    root = platform.home.path / "agent" / "environments"
    pin = f"six-{FLOWS[name].strip().partition('==')[2]}.dist-info"
    return [
        root / f"{build.parents[3].name.partition('-')[0]}.json"
        for build in root.glob(f"builds/*/lib/python3*/site-packages/{pin}")
    ]


def _forget(platform: Platform, *names: str) -> None:
    """Let the agent know nothing of environments, once it is done with building them ahead."""
    root = platform.home.path / "agent" / "environments"
    wait_until(
        lambda: (
            len(list(root.glob("*.json"))) >= len(FLOWS)
            and len(list(root.glob("builds/*/mlops-proven"))) >= len(FLOWS)
        ),
        "the agent builds ahead of time",
        limit_seconds=600,
    )
    for record in {record for name in names for record in _records(platform, name)}:
        record.unlink(missing_ok=True)


def _lock(platform: Platform, folder: Path) -> Path:
    """Keep what our agent has resolved, so that the peers install the same; return the file."""
    root = platform.home.path / "agent" / "environments" / "builds"
    lock, *_ = root.glob("*/mlops-lock.txt")
    return Path(shutil.copy(lock, folder))  # the build goes with its environment


def _first_run(client: "SyncPrefectClient", folder: Path, name: str) -> float:
    """Run a flow; return the seconds from the trigger to its first line."""
    deployment = client.read_deployment_by_name(f"{name}/{name}")
    path = folder / "first-line"
    path.unlink(missing_ok=True)
    triggered = time.time()
    run = client.create_flow_run_from_deployment(deployment.id, parameters={"path": str(path)})

    def has_ended() -> bool:
        state = client.read_flow_run(run.id).state
        return bool(state and state.is_final())

    wait_until(has_ended, f"{name}: the run", poll_seconds=0.5, limit_seconds=300)
    return float(path.read_text()) - triggered


def _with_uv(folder: Path, lock: Path) -> None:
    place = _peer_folder(folder)
    uv = find_uv_bin()
    timed_command([uv, "venv", "--no-project", "--python", sys.executable, place], _environment())
    install: list[str | Path] = [
        uv,
        "pip",
        "install",
        "-r",
        place.parent / "requirements.txt",
        "-c",
        lock,
    ]
    timed_command([*install, "--python", place / "bin" / "python"], _environment())
    timed_command([place / "bin" / "python", place.parent / "first.py"], _environment())


def _with_pip(folder: Path, lock: Path) -> None:
    place = _peer_folder(folder)
    timed_command([sys.executable, "-m", "venv", place], _environment())
    install: list[str | Path] = [
        place / "bin" / "pip",
        "install",
        "-q",
        "-r",
        place.parent / "requirements.txt",
    ]
    timed_command([*install, "-c", lock], _environment())
    timed_command([place / "bin" / "python", place.parent / "first.py"], _environment())


def _peer_folder(folder: Path) -> Path:
    """Return where a peer makes its environment: nothing is there, beside it are its inputs."""
    place = folder / "peer"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "first.py").write_text(SCRIPT.format(name="peer"))
    supplied = "prefect\nprefect-aws\nboto3\nsetuptools\n"  # as our agent adds them
    (place / "requirements.txt").write_text(TAXI.read_text() + supplied)
    return place / "environment"


def _environment() -> dict[str, str]:
    # A developer's shell may forbid what every installation does.
    return {n: v for n, v in clean_environment().items() if n != "PYTHONDONTWRITEBYTECODE"}


def _prefect(environment: dict[str, str]) -> "SyncPrefectClient":
    # Prefect reads its settings when it is imported, which is why the import comes after.
    os.environ.update({k: v for k, v in environment.items() if k.startswith("PREFECT_API_")})
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    return get_client(sync_client=True)


if __name__ == "__main__":
    run_bench(bench, rounds=3)
