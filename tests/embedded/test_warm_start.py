"""Runs that are forked from a process which has imported their packages already."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for
from embedded.own_agent import own_agent
from tcp_proxy import TcpProxy

FLOW_YAML = """\
deployment:
  flow_py_name: flow.py
  flow_name: main
  deploy_name: {name}
  pool_name: {pool}
{more}
"""
FLOW = '''\
import json
import os
import sys
import time
from pathlib import Path

from prefect import flow

ahead = {module!r} in sys.modules  # before this file imports it
import {module}


@flow(name="{name}")
def main(report: str, until: str = ""):
    """Write down what this process is, and stay until a file is there."""
    about = {{
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "ahead": ahead,
        "file": {module}.__file__,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }}
    Path(report).write_text(json.dumps(about))
    while until and not Path(until).exists():
        time.sleep(0.05)
'''
POOL = "warm-pool"
PLAIN = "started in a new process"


class WarmFlow:
    """A registered flow, started as a user would, whose process tells about itself."""

    def __init__(self, platform: Platform, servers: Servers, folder: Path, name: str) -> None:
        self._platform = platform
        self._servers = servers
        self._folder = folder
        self.name = name
        self._count = 0

    def write(
        self, *, module: str = "boto3", more: str = "", files: dict[str, str] | None = None
    ) -> "WarmFlow":
        """Make its folder and register it."""
        folder = self._folder / self.name
        folder.mkdir(parents=True)
        (folder / "flow.yaml").write_text(FLOW_YAML.format(name=self.name, pool=POOL, more=more))
        (folder / "flow.py").write_text(FLOW.format(name=self.name, module=module))
        for path, text in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        result = self._platform.cli("flows", "register", str(folder))
        assert result.returncode == 0, result.stderr
        return self

    def start(self, *, until: str = "", env: dict[str, str] | None = None) -> "Started":
        """Start a run."""
        self._count += 1
        report = self._folder / f"{self.name}-{self._count}.json"
        deployment = self._servers.deployment(self.name)["id"]
        response = self._servers.prefect.post(
            f"/deployments/{deployment}/create_flow_run",
            json={
                "parameters": {"report": str(report), "until": until},
                "state": {"type": "SCHEDULED"},
                "job_variables": {"env": env} if env else {},
            },
        )
        response.raise_for_status()
        return Started(self._servers, response.json()["id"], report)

    def run(self, **options: Any) -> "Started":
        """Run to the end."""
        started = self.start(**options)
        started.completed()
        return started

    def run_warm(self) -> "Started":
        """Run until a run was forked, which is the second one, or one soon after it."""

        def forked() -> "Started | None":
            run = self.run()
            return None if PLAIN in run.log else run

        run = wait_for(forked, 240)
        assert run
        return run

    def beside(self, name: str) -> "WarmFlow":
        """Return another flow."""
        return WarmFlow(self._platform, self._servers, self._folder, name)


class Started:
    """A run that was started."""

    def __init__(self, servers: Servers, number: str, report: Path) -> None:
        self._servers = servers
        self._number = number
        self._report = report

    @property
    def state(self) -> dict[str, Any]:
        """Its state in Prefect."""
        state: dict[str, Any] = self._servers.prefect.get(f"/flow_runs/{self._number}").json()[
            "state"
        ]
        return state

    @property
    def log(self) -> str:
        """Its log in Prefect, with the line of its end."""
        return wait_for(self._finished_log, 30)

    def says(self, text: str) -> bool:
        """Whether its log says something; the agent's lines arrive later than the flow's."""
        return wait_for(lambda: text in self._servers.log(self._number), 30)

    def _finished_log(self) -> str:
        log = self._servers.log(self._number)
        is_whole = "Finished in state" in log and "submitted to infrastructure" in log
        return log if is_whole else ""

    def about(self) -> dict[str, Any]:
        """What its process wrote down."""
        text = wait_for(lambda: self._report.exists() and self._report.read_text(), 60)
        about: dict[str, Any] = json.loads(str(text))
        return about

    def completed(self) -> None:
        """Wait for its end, which must be a good one."""
        state = wait_for(self._ended, 180)
        assert state
        assert state["type"] == "COMPLETED", state

    def _ended(self) -> dict[str, Any] | None:
        state = self.state
        is_final = state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        return state if is_final else None


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


@pytest.fixture(scope="module")
def proxy(platform: Platform) -> Iterator[TcpProxy]:
    """The agent's way to the Prefect server."""
    with TcpProxy(platform.addresses.prefect) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def log(
    platform: Platform, proxy: TcpProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The log of an agent of its own, with the environments of the platform's."""
    folder = tmp_path_factory.mktemp("agent")
    more = {"PREFECT_API_URL": f"{proxy.address}/api", "MLOPS_SLOTS": "4"}
    with own_agent(platform, POOL, folder, **more) as log:
        yield log


@pytest.fixture(scope="module")
def flow(
    platform: Platform,
    servers: Servers,
    log: Path,  # of the agent that runs it
    tmp_path_factory: pytest.TempPathFactory,
) -> WarmFlow:
    """A flow without requirements that imports boto3; its first run has taught the agent that."""
    assert log.exists()
    return WarmFlow(platform, servers, tmp_path_factory.mktemp("flows"), "warm").write()


def test_the_second_run_is_forked_with_what_the_first_imported(flow: WarmFlow) -> None:
    """Its parent is a fork server; the modules are there, and the process is its own leader."""
    first = flow.run()
    assert PLAIN in first.log
    about = wait_for(lambda: (found := flow.run_warm().about())["ahead"] and found, 90)
    assert "fork_server.py" in " ".join(psutil.Process(about["parent"]).cmdline())
    assert about["session"] == about["pid"]


def test_runs_in_flight_outlive_their_fork_server(flow: WarmFlow, tmp_path: Path) -> None:
    """It is killed: none of its runs is lost, and the next starts in another way and says so."""
    warm = flow.run_warm().about()
    end = tmp_path / "end"
    flights = [flow.start(until=str(end)) for _ in range(2)]
    parents = {flight.about()["parent"] for flight in flights}
    assert parents == {warm["parent"]}
    os.kill(warm["parent"], signal.SIGKILL)
    after = flow.run()
    assert PLAIN in after.log
    assert {flight.state["type"] for flight in flights} == {"RUNNING"}
    end.touch()
    for flight in flights:
        flight.completed()
    assert flow.run_warm().about()["parent"] != warm["parent"]


def test_a_fork_server_that_hangs_delays_a_run_and_loses_none(flow: WarmFlow) -> None:
    """The run starts in a new process, once, and its log names the reason in one line."""
    warm = flow.run_warm().about()
    os.kill(warm["parent"], signal.SIGSTOP)
    run = flow.run()
    assert run.log.count(f"{PLAIN}: it does not start runs") == 1
    assert not psutil.pid_exists(warm["parent"])


def test_what_a_started_process_cannot_heed_starts_a_new_one(flow: WarmFlow) -> None:
    """A variable that libraries read when they are loaded, and a file that hides a package."""
    flow.run_warm()
    run = flow.run(env={"OMP_NUM_THREADS": "3"})
    assert run.about()["threads"] == "3"
    assert run.says(f"{PLAIN}: OMP_NUM_THREADS is its own")

    hiding = flow.beside("hiding").write(files={"boto3.py": "VALUE = 1\n"})
    run = hiding.run()
    assert run.says(f"{PLAIN}: its own boto3.py hides a package")
    assert "site-packages" not in run.about()["file"]


def test_modules_that_start_threads_are_kept_out(flow: WarmFlow, log: Path) -> None:
    """What flow.yaml declares is there in the first forked run; the status tells what is not."""
    packages = {
        "requirements.txt": "./package\n",
        "package/pyproject.toml": (
            '[project]\nname = "busy"\nversion = "1"\n[build-system]\nrequires = ["setuptools"]\n'
            '[tool.setuptools]\npy-modules = ["quiet", "busy"]\n'
        ),
        "package/quiet.py": "",
        "package/busy.py": (
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
        ),
    }
    declaring = flow.beside("declaring").write(
        module="quiet", more="warm: [busy, quiet]", files=packages
    )
    run = declaring.run_warm()
    assert run.about()["ahead"]
    assert "busy is not imported ahead: starts threads" in log.read_text()


def test_a_lost_event_stream_costs_no_run(flow: WarmFlow, proxy: TcpProxy, log: Path) -> None:
    """It is noticed and told, a run that comes meanwhile is found, and the stream comes back."""
    flow.run()
    proxy.cut()
    wait_for(lambda: "the event stream is lost" in log.read_text(), 30)
    run = flow.start()
    proxy.mend()
    run.completed()
    wait_for(lambda: "the server's event stream is back" in log.read_text(), 60)
    flow.run()
