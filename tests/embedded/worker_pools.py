"""The same runs on two work pools: our agent's, and that of an unmodified Prefect worker."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for
from embedded.registered import deployments

FLOWS = Path(__file__).parent / "behaviours"
POOLS = {"ours": "ours", "stock": "stock"}
UNTOLD = {"Late", "Submitting"}
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
FLOW_YAML = """\
deployment:
  flow_py_name: flow.py
  flow_name: {function}
  deploy_name: {function}-{name}
  pool_name: {pool}
warm: [numpy]
"""
# The function of each run, in the order of their start; `main` does what the run's name asks for.
FUNCTIONS = {
    "stubborn": "main",
    "untidy": "main",
    "raises": "main",
    "parts": "parts",
    "cancelled": "main",
    "later": "later",
    "withdrawn": "main",
    "leaves": "main",
    "killed": "main",
    "slow": "slow",
    "seeded": "main",
    "exits": "main",
}
FIRST, LAST = "stubborn", "exits"
# An unmodified worker leaves a run in Cancelling for good that is cancelled before its flow began.
OURS_ALONE = {"withdrawn"}
PROBE = "probe"
# How our agent begins to say that a run is not forked, and why.
PLAINLY = "started in a new process"
# What some runs find set by their job variables.
VARIABLES = {
    "raises": {"ONLY_HERE": "yes", "TZ": "Asia/Taipei", "PREFECT_LOGGING_LEVEL": "DEBUG"},
    "seeded": {"PYTHONHASHSEED": "0"},
    "stubborn": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},  # the least that Prefect allows
}


class Runs:
    """One run of each on one work pool.

    Args:
        servers: The platform's.
        name: Of the work pool, in `POOLS`.
        folder: Where the runs write what they have to tell.
        log: The worker's own log.
    """

    def __init__(self, servers: Servers, name: str, folder: Path, log: Path) -> None:
        self._servers = servers
        self.name = name
        self.cases = [case for case in FUNCTIONS if name == "ours" or case not in OURS_ALONE]
        # Those that tell what they find.
        self.begun = [case for case in self.cases if case not in {*OURS_ALONE, "slow"}]
        self.folder = folder
        self._log = log
        self.ids: dict[str, str] = {}

    def start(self, *names: str) -> None:
        """Ask for runs."""
        for name in names:
            self.ids[name] = self._create(self._deployment(FUNCTIONS[name]), name)

    def start_later(self, name: str) -> None:
        """Ask for a run in an hour."""
        hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        self.ids[name] = self._create(self._deployment("main"), name, {"scheduled_time": hour})

    def _deployment(self, function: str) -> str:
        (deployment,) = deployments(self._servers, f"{function}-{self.name}")
        deployment_id: str = deployment["id"]
        return deployment_id

    def _create(self, deployment_id: str, name: str, details: dict[str, str] | None = None) -> str:
        response = self._servers.prefect.post(
            f"/deployments/{deployment_id}/create_flow_run",
            json={
                "name": name,
                "parameters": {"folder": str(self.folder)},
                "state": {"type": "SCHEDULED", "state_details": details or {}},
                "job_variables": {"env": VARIABLES.get(name, {})},
            },
        )
        response.raise_for_status()
        run_id: str = response.json()["id"]
        return run_id

    def cancel(self, name: str) -> None:
        """Do what the UI's button does."""
        self._servers.prefect.post(
            f"/flow_runs/{self.ids[name]}/set_state",
            json={"state": {"type": "CANCELLING", "name": "Cancelling"}},
        ).raise_for_status()

    def read(self, name: str) -> dict[str, Any]:
        """Return a run as it is now."""
        found: dict[str, Any] = self._servers.prefect.get(f"/flow_runs/{self.ids[name]}").json()
        return found

    def is_over(self, name: str) -> bool:
        """Return whether a run has ended."""
        return bool(self.read(name)["state_type"] in FINAL)

    def is_taken(self, name: str) -> bool:
        """Return whether the worker has begun with a run."""
        return bool(self.read(name)["state_type"] != "SCHEDULED")

    def is_ready(self, name: str) -> bool:
        """Return whether a run has said so."""
        return any("children" in line for line in self.told(name))

    def warm_up(self) -> None:
        """Run something until a run is forked."""

        def is_warm() -> bool:
            self.ids[PROBE] = self._create(self._deployment("main"), PROBE)
            self.ended(PROBE)
            return PLAINLY not in self.log(PROBE, f"{PROBE} prints")

        wait_for(is_warm, 120)

    def ended(self, name: str) -> dict[str, Any]:
        """Wait for a run's end and return it."""

        def read() -> dict[str, Any] | None:
            run = self.read(name)
            return run if run["state_type"] in FINAL else None

        return wait_for(read, 180) or {}

    def states(self, name: str) -> list[str]:
        """Wait for a run's end and return the names of its states in their order.

        Without how late it was, the worker's word for its own work before the process starts, and
        what only gave a state another message.
        """
        self.ended(name)
        found = self._servers.prefect.get(
            "/flow_run_states/", params={"flow_run_id": self.ids[name]}
        ).json()
        found.sort(key=lambda state: state["timestamp"])
        names = [state["name"] for state in found if state["name"] not in UNTOLD]
        return [name for name, _ in groupby(names)]

    def told(self, name: str) -> list[dict[str, Any]]:
        """Return what a run has written so far, line by line."""
        path = self.folder / self.ids[name]
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def fact(self, name: str, key: str) -> Any:
        """Wait for something that a run tells, and return it."""

        def read() -> list[Any]:
            return [line[key] for line in self.told(name) if key in line]

        return wait_for(read, 30)[0]

    def log(self, name: str, text: str) -> str:
        """Wait for a text in a run's Prefect log, and return the log."""

        def read() -> str:
            log = self._servers.log(self.ids[name])
            return log if text in log else ""

        return wait_for(read, 30)  # the last lines arrive after the final state

    def output(self, text: str) -> str:
        """Wait for a text in the worker's own log, and return the log."""

        def read() -> str:
            log = self._log.read_text(errors="replace")
            return log if text in log else ""

        return wait_for(read, 30)

    def left_processes(self, name: str) -> list[int]:
        """Return the processes that a run has told of, its own and its children's."""
        children = [pid for line in self.told(name) for pid in line.get("children", [])]
        return [self.fact(name, "process")["pid"], *children]

    def heartbeats(self, name: str) -> int:
        """Return how many events the server has of a run's being alive."""
        query = {
            "filter": {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{self.ids[name]}"]},
            }
        }
        response = self._servers.prefect.post("/events/filter", json=query)
        response.raise_for_status()
        total: int = response.json()["total"]
        return total

    def subordinates(self, name: str) -> list[tuple[str, str]]:
        """Return the names and states of a run's task runs; subflows are among them."""
        query = {"flow_runs": {"id": {"any_": [self.ids[name]]}}}
        response = self._servers.prefect.post("/task_runs/filter", json=query)
        response.raise_for_status()
        return [(run["name"].rpartition("-")[0], run["state_type"]) for run in response.json()]


def register(platform: Platform, folder: Path) -> None:
    """Register each function once on each pool."""
    for name, pool in POOLS.items():
        for function in set(FUNCTIONS.values()):
            path = folder / f"{function}-{name}"
            shutil.copytree(FLOWS, path, ignore=shutil.ignore_patterns("__pycache__"))
            (path / "flow.yaml").write_text(
                FLOW_YAML.format(function=function, name=name, pool=pool)
            )
    done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 0, done.stderr


def _heed_signals() -> None:
    """Undo what a shell in the background hands on, as the platform's supervisor does."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def stock_worker(platform: Platform, folder: Path) -> Iterator[Path]:
    """Run Prefect's own worker, as its makers ship it but for how often it asks; yield its log."""
    environment = platform.environment("agent") | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    command = ["worker", "start", "--pool", POOLS["stock"], "--type", "process", "--limit", "4"]
    with (folder / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_heed_signals,  # noqa: PLW1509  # nothing here has threads
        )
    try:
        yield folder / "log"
    finally:
        worker.terminate()
        worker.wait(60)


def drive(ours: Runs, stock: Runs) -> None:
    """Start all runs, cancel some, and start the last after `untidy` has ended.

    Most of ours wait until runs are forked, which is what they are to prove right.
    """
    stock.start(*(case for case in stock.cases if case != LAST))
    ours.start(FIRST)
    ours.warm_up()
    ours.start(*(case for case in ours.cases if case not in {FIRST, LAST}))
    waiting: list[tuple[Callable[[], bool], Callable[[], None]]] = []
    for runs in (ours, stock):
        waiting.append((partial(runs.is_over, "untidy"), partial(runs.start, LAST)))
        waiting += [
            (partial(runs.is_ready, case), partial(runs.cancel, case))
            for case in ("cancelled", "stubborn")
        ]
    waiting.append((partial(ours.is_taken, "withdrawn"), partial(ours.cancel, "withdrawn")))

    def proceed() -> bool:
        for step in list(waiting):
            is_due, act = step
            if is_due():
                act()
                waiting.remove(step)
        return not waiting

    # Soon enough to cancel a run before its flow begins.
    wait_for(proceed, 240, longest_pause_seconds=0.1)
