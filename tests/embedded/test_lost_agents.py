"""Agents that are killed, cut off or stopped, a server that restarts, and runs that come late.

A second Prefect server on the platform's database is this module's own: it may be killed, and has
less patience with runs.
"""

import datetime as dt
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import anyio
import httpx
import psutil
import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow
from prefect.client.orchestration import PrefectClient

from mlops.server import lost_agents

POOL, FROZEN_POOL, DRAINED_POOL, STARVED_POOL, LATE_POOL = (
    f"{name}-pool" for name in ("lost", "frozen", "drained", "starved", "late")
)
SILENCE_SECONDS = 15
STOP_SECONDS = 10
# Every flow waits for a file; what is printed tells the server that the run lives.
WAIT = "[print('waiting') or time.sleep(1) for _ in iter(Path({gate!r}).exists, True)]"
FLOW = """\
import time
from pathlib import Path
{start}
from prefect import flow


@flow(name="{name}", retries={retries}, log_prints=True)
def main():
    {body}
"""


class Case(NamedTuple):
    """A flow, by where it waits and how often it is retried."""

    retries: int = 0
    in_import: bool = False
    pool: str = POOL


CASES = {
    "plain": Case(),
    "retried": Case(retries=1),
    "unbegun": Case(in_import=True),
    "frozen": Case(retries=1, pool=FROZEN_POOL),
    "short": Case(pool=DRAINED_POOL),
    "long": Case(retries=1, pool=DRAINED_POOL),
    "starved": Case(pool=STARVED_POOL),
}
POLICIES = ("run_all", "run_latest", "skip")


class Started(NamedTuple):
    """A run, and the file that lets it end."""

    id: str
    gate: Path


class World:
    """This module's server, flows and agents."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._platform = platform
        self.folder = folder
        self.servers = Servers(platform)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/api"
        credentials = platform.credentials
        self.auth = (credentials.prefect_username, credentials.prefect_password)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._runs: list[str] = []
        self.server = self.start_server()

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start the module's server and wait until it answers."""
        credentials = self._platform.credentials
        environment = self._platform.environment() | {
            "LISTEN_PORT": str(self._port),
            "POSTGRES_PORT": str(self._platform.postgres_port),
            "PREFECT_DB_PASSWORD": credentials.prefect_db_password,
            "PREFECT_USERNAME": credentials.prefect_username,
            "PREFECT_PASSWORD": credentials.prefect_password,
            "MLOPS_RUNTIME_DIR": str(self.folder / "server"),
            "MLOPS_WATCH_SECONDS": "1",
            "MLOPS_RUN_SILENCE_SECONDS": str(SILENCE_SECONDS),
        }
        self.server = self._start("server", "prefect", environment=environment)

        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/ready", auth=self.auth).is_success
            return False

        wait_for(answers, 60)
        return self.server

    def start_agent(self, host: str, pool: str = POOL, **more: str) -> subprocess.Popen[bytes]:
        """Start an agent whose cache no other host has; environments they share, to save time.

        For the same reason most have no process from which more runs could be forked.
        """
        cache = self.folder / host
        cache.mkdir(exist_ok=True)
        shared = self._platform.home / "agent" / "environments"
        shared.mkdir(parents=True, exist_ok=True)
        if not (cache / "environments").exists():
            (cache / "environments").symlink_to(shared)
        environment = self._platform.environment("agent") | {
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "1",
            "POOL_NAME": pool,
            "MLOPS_CACHE_DIR": str(cache),
            "MLOPS_STOP_SECONDS": str(STOP_SECONDS),
            "MLOPS_WARM_ENVIRONMENTS": "0",
            "PREFECT_HOME": str(cache / "prefect"),
        }
        name = ("--name", host, "--limit", "20")
        return self._start("agent", "start", *name, environment=environment | more)

    def _start(self, *arguments: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlops", *arguments],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def end(self) -> None:
        """End all of them, frozen ones and what runs are left included."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        for left in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if left.environ().get("PREFECT_API_URL") == self.url:
                    left.kill()

    def register(self, *folders: Path) -> None:
        """Register flow folders."""
        done = self._platform.cli("flows", "register", *map(str, folders))
        assert done.returncode == 0, done.stderr

    def start(self, name: str) -> Started:
        """Start a run of a flow, with a gate of its own."""
        gate = self.folder / f"gate-{len(self._runs)}"
        deployment = self.servers.deployment(f"lost-{name}")
        response = self.servers.prefect.post(
            f"/deployments/{deployment['id']}/create_flow_run",
            json={
                "state": {"type": "SCHEDULED"},
                "job_variables": {"env": {"GATE": str(gate)}},
            },
        )
        response.raise_for_status()
        self._runs.append(response.json()["id"])
        return Started(self._runs[-1], gate)

    def run(self, started: Started) -> dict[str, Any]:
        """Return a run as it is now."""
        found: dict[str, Any] = self.servers.prefect.get(f"/flow_runs/{started.id}").json()
        return found

    def wait(self, started: Started, *types: str) -> dict[str, Any]:
        """Wait until a run is in a state of one of these types, and return the run."""

        def found() -> dict[str, Any] | None:
            run = self.run(started)
            return run if run["state_type"] in types else None

        return wait_for(found, 90) or {}

    def states(self, started: Started) -> list[tuple[str, str]]:
        """Return the types and messages of a run's states, the first one first."""
        states = self.servers.prefect.get(
            "/flow_run_states/", params={"flow_run_id": started.id}
        ).json()
        return [(state["type"], state["message"] or "") for state in states]

    def processes(self, started: Started) -> list[psutil.Process]:
        """Return the processes of a run's present attempt."""
        attempt = self.run(started)["labels"].get("mlops.attempt")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if attempt and process.environ().get("MLOPS_ATTEMPT") == attempt:
                    found.append(process)
        return found

    def cut_power(self, agent: subprocess.Popen[bytes], *runs: Started) -> None:
        """Kill an agent and its runs, as a power cut does."""
        agent.kill()
        agent.wait()
        for started in runs:
            for process in self.processes(started):
                process.kill()


@pytest.fixture(scope="module")
def world(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(platform, tmp_path_factory.mktemp("world"))
    try:
        wait = "import os; " + WAIT.format(gate="GATE").replace("'GATE'", "os.environ['GATE']")
        for name, case in CASES.items():
            path = write_flow(world.folder / "flows" / f"lost-{name}", "pass", pool=case.pool)
            start, body = (wait, "pass") if case.in_import else ("", wait)
            text = FLOW.format(name=f"lost-{name}", retries=case.retries, start=start, body=body)
            (path / "flow.py").write_text(text)
        first, *others = (
            f"{dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds):%Y%m%dT%H%M%S}"
            for seconds in (60, 70, 80)
        )
        rule = f"DTSTART:{first}\\nRRULE:FREQ=DAILY;COUNT=1\\nRDATE:{','.join(others)}"
        for policy in POLICIES:
            more = f'scheduler: {{method: rrule, rrule: "{rule}"}}\nlate: {policy}'
            write_flow(world.folder / "flows" / f"late-{policy}", "pass", more=more, pool=LATE_POOL)
        world.register(world.folder / "flows")
        yield world
    finally:
        world.end()


class Frozen(NamedTuple):
    """An agent that stands still with its run, as when its machine sleeps."""

    agent: subprocess.Popen[bytes]
    run: Started
    process: psutil.Process


@pytest.fixture(scope="module")
def frozen(world: World) -> Frozen:
    """The first agent of the module; it stands still until the last test."""
    agent = world.start_agent("frozen", FROZEN_POOL)
    run = world.start("frozen")
    world.wait(run, "RUNNING")
    (process,) = world.processes(run)
    agent.send_signal(signal.SIGSTOP)
    process.suspend()
    return Frozen(agent, run, process)


class Lost(NamedTuple):
    """Runs whose agent was killed."""

    plain: Started
    retried: Started
    unbegun: Started


def start_and_lose(world: World, host: str, *more: Started, heartbeat: str = "1") -> Lost:
    """Start runs on a host of their own, which then loses its power.

    The server gives the host up after four of its agent's heartbeats, in seconds.
    """
    agent = world.start_agent(host, PREFECT_WORKER_HEARTBEAT_SECONDS=heartbeat)
    lost = Lost(*map(world.start, Lost._fields))
    for started in (lost.plain, lost.retried, *more):
        world.wait(started, "RUNNING")
    wait_for(lambda: world.processes(lost.unbegun), 60)
    world.cut_power(agent, *lost)
    return lost


@pytest.fixture(scope="module")
def returned(world: World, frozen: Frozen) -> tuple[Lost, subprocess.Popen[bytes]]:
    """Runs whose host lost its power, and the agent that is started there again."""
    del frozen
    lost = start_and_lose(world, "host", heartbeat="30")
    host = {"MLOPS_CACHE_DIR": str(world.folder / "host"), "MLOPS_WARM_ENVIRONMENTS": "1"}
    return lost, world.start_agent("host-again", **host)


def assert_right_ends(world: World, lost: Lost, reason: str) -> None:
    """Make sure that what had begun crashed, and was retried if it may, and what had not begins."""
    crashed = world.wait(lost.plain, "CRASHED")["state"]["message"]
    assert crashed.startswith(reason)
    assert not crashed.endswith("began")
    for started in (lost.retried, lost.unbegun):
        wait_for(lambda started=started: world.processes(started), 90)  # type: ignore[misc]
        started.gate.touch()
        world.wait(started, "COMPLETED")
    types = [kind for kind, _ in world.states(lost.retried)]
    again = ["CRASHED", "SCHEDULED", "PENDING", "RUNNING", "COMPLETED"]
    assert types[types.index("CRASHED") :] == again
    assert world.run(lost.retried)["run_count"] == 2
    states = world.states(lost.unbegun)
    assert "CRASHED" not in dict(states)
    assert any(m.startswith(reason) and "it starts again" in m for _, m in states)
    assert world.run(lost.unbegun)["run_count"] == 1


def test_runs_of_an_agent_that_returns(
    world: World, returned: tuple[Lost, subprocess.Popen[bytes]]
) -> None:
    """The agent that comes back ends what it lost; retries start, and what had not begun begins."""
    lost, _ = returned
    assert_right_ends(world, lost, "the flow's process is gone, and no agent saw how it ended")


def test_runs_of_an_agent_that_never_returns(
    world: World, returned: tuple[Lost, subprocess.Popen[bytes]]
) -> None:
    """The server does the same, and cancels what was to be; a run that still speaks goes on."""
    _, other = returned
    other.send_signal(signal.SIGSTOP)  # it shall take none of them yet
    speaking, cancelled = world.start("plain"), world.start("plain")
    lost = start_and_lose(world, "gone", speaking, cancelled)
    for process in world.processes(cancelled):
        process.kill()
    world.servers.prefect.post(
        f"/flow_runs/{cancelled.id}/set_state",
        json={"state": {"type": "CANCELLING", "name": "Cancelling"}},
    ).raise_for_status()
    other.send_signal(signal.SIGCONT)
    assert_right_ends(world, lost, "the agent gone was last seen at ")
    world.wait(cancelled, "CANCELLED")
    assert "the agent gone was last seen at " in world.servers.log(lost.plain.id)
    assert world.run(speaking)["state_type"] == "RUNNING"
    speaking.gate.touch()
    world.wait(speaking, "COMPLETED")
    assert world.run(speaking)["run_count"] == 1


def test_server_that_restarts_during_a_run(
    world: World, returned: tuple[Lost, subprocess.Popen[bytes]]
) -> None:
    """The run goes on, and its end, which came while the server was away, is reported late."""
    del returned
    started = world.start("plain")
    world.wait(started, "RUNNING")
    world.server.kill()
    world.server.wait()
    started.gate.touch()
    world.start_server()
    world.wait(started, "COMPLETED")
    assert [kind for kind, _ in world.states(started)].count("RUNNING") == 1


def test_stopped_agent_drains(world: World) -> None:
    """It takes no more runs; what ends in time ends well, the rest crashes and is retried."""
    agent = world.start_agent("drained", DRAINED_POOL)
    short, long = world.start("short"), world.start("long")
    world.wait(short, "RUNNING")
    world.wait(long, "RUNNING")
    agent.send_signal(signal.SIGTERM)
    later = world.start("short")
    short.gate.touch()
    world.wait(short, "COMPLETED")
    assert agent.poll() is None
    assert agent.wait(60) == 0
    assert ("CRASHED", "the agent was stopped") in world.states(long)
    assert world.run(long)["state_name"] == "AwaitingRetry"
    assert {kind for kind, _ in world.states(later)} == {"SCHEDULED"}


def test_run_without_an_object_store_fails_with_the_reason(world: World) -> None:
    """It does not wait for ever for its code, and its message says what did not answer."""
    started = world.start("starved")
    agent = world.start_agent("starved", STARVED_POOL, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    failed = world.wait(started, "FAILED")
    assert "http://127.0.0.1:9 does not answer" in failed["state"]["message"]
    agent.kill()


def test_late_runs_follow_the_policy(world: World) -> None:
    """Of the runs that waited for an agent all are made, or the latest, as flow.yaml says."""

    def runs(policy: str) -> list[dict[str, Any]]:
        found = world.servers.flow_runs(world.servers.deployment(f"late-{policy}")["id"])
        assert len(found) == 3
        return found

    for policy in POLICIES:
        late = lambda policy=policy: all(r["state_name"] == "Late" for r in runs(policy))  # noqa: E731
        wait_for(late, 120)
    agents = [world.start_agent(host, LATE_POOL) for host in ("late", "later")]

    def ends(policy: str) -> list[str] | None:
        found = runs(policy)
        is_over = all(run["state_type"] in {"COMPLETED", "CANCELLED"} for run in found)
        return [run["state_name"] for run in found] if is_over else None

    assert wait_for(lambda: ends("run_all"), 120) == ["Completed"] * 3
    assert wait_for(lambda: ends("run_latest"), 120) == ["Skipped", "Skipped", "Completed"]
    skipped = wait_for(lambda: ends("skip"), 120) or []
    assert skipped[:2] == ["Skipped", "Skipped"]  # the last one is so only after five minutes
    for policy in ("run_latest", "skip"):
        message = runs(policy)[0]["state"]["message"]
        assert message.startswith("a later run was due at ")
        assert message.endswith(f"(late: {policy})")
    for agent in agents:
        agent.kill()


def test_silent_run_is_known_by_its_heartbeat(
    world: World, returned: tuple[Lost, subprocess.Popen[bytes]]
) -> None:
    """The server hears a run that lives, whether it logs or not, and no other."""
    del returned  # an agent
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)

    async def is_heard(run_id: str) -> bool:
        name, password = world.auth
        async with PrefectClient(world.url, auth_string=f"{name}:{password}") as client:
            run = await client.read_flow_run(UUID(run_id))
            return await lost_agents.has_heartbeat(client, run, hour_ago)

    started, waiting = world.start("plain"), world.start("short")
    world.wait(started, "RUNNING")
    wait_for(lambda: anyio.run(is_heard, started.id), 60)
    started.gate.touch()
    assert not anyio.run(is_heard, waiting.id)


def test_agent_that_was_given_up_ends_its_old_process(world: World, frozen: Frozen) -> None:
    """When its machine wakes up the run is another agent's, and neither is disturbed."""
    world.start_agent("heir", FROZEN_POOL)
    world.wait(frozen.run, "RUNNING")
    (new,) = world.processes(frozen.run)
    assert new != frozen.process
    frozen.process.resume()
    frozen.agent.send_signal(signal.SIGCONT)
    wait_for(lambda: not frozen.process.is_running(), 90)
    wait_for(lambda: "its old process here is ended" in world.servers.log(frozen.run.id), 30)
    assert world.run(frozen.run)["state_type"] == "RUNNING"
    assert new.is_running()
    frozen.run.gate.touch()
    world.wait(frozen.run, "COMPLETED")
    assert world.run(frozen.run)["run_count"] == 2
    assert [kind for kind, _ in world.states(frozen.run)].count("CRASHED") == 1
