import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow
from memory_cgroups import make_memory_cgroup

POOL = "endings-pool"
MARK = "mlops.attempt"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
FLOW = """\
import os, signal, subprocess, sys, time
from pathlib import Path
{imports}
import mlflow
from prefect import flow


@flow(name="{name}"{options})
def main():
    mlflow.set_experiment("endings")
    {body}
"""
OPEN = "mlflow.start_run(); "
SLEEP = "time.sleep(120)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILLED = "the flow's process was killed by SIGKILL; want of memory is the usual cause"
# A task and a subflow, whose log says that they are finished in the words of the flow's own.
PARTS = """\
from prefect import flow, task


@task
def step():
    pass


@flow
def subflow():
    pass
"""
# The process enters a memory cgroup of its own, with less room than it then asks for.
PREFECTS_WORDS = (
    "Process exited with status code",
    "Execution was aborted by Python system exit call.",
)
EXHAUST = "Path('{cgroup}/cgroup.procs').write_text(str(os.getpid())); hog = bytearray(2**30)"


class Case(NamedTuple):
    """A flow that ends badly, and what the servers must show: state type, name, message."""

    body: str
    type: str
    name: str
    message: str
    mlflow: list[str]
    options: str = ""
    imports: str = ""


CASES = {
    "returns": Case(  # MLflow's own exit hook ends the inner one only
        f"{OPEN}mlflow.start_run(nested=True)",
        *("COMPLETED", "Completed", ""),
        ["FINISHED", "FINISHED"],
    ),
    "raises": Case(  # after a run that ended well, in a run below another
        f"{OPEN}mlflow.end_run(); {OPEN}mlflow.start_run(nested=True); raise ValueError('bad')",
        *("FAILED", "Failed", "Flow run encountered an exception: ValueError: bad"),
        ["FAILED", "FAILED", "FINISHED"],
    ),
    "exits": Case(
        f"{OPEN}sys.exit(3)",
        *("CRASHED", "Crashed", "the flow called sys.exit(3)"),
        ["KILLED"],
    ),
    "leaves-with-3": Case(
        f"{OPEN}os._exit(3)",
        *("CRASHED", "Crashed", "the flow's process ended with exit code 3"),
        ["KILLED"],
    ),
    "leaves-with-0": Case(
        f"{OPEN}os._exit(0)",
        *("CRASHED", "Crashed", "the flow's process ended with exit code 0"),
        ["KILLED"],
    ),
    "leaves-early": Case(
        "pass",
        *("CRASHED", "Crashed", "the flow's process ended with exit code 0 before the flow began"),
        [],
        imports="os._exit(0)",
    ),
    "killed": Case(
        f"{OPEN}{KILL}",
        *("CRASHED", "Crashed", KILLED),
        ["KILLED"],
    ),
    "killed-before-a-child": Case(  # which keeps the output open, and is ended
        f"subprocess.Popen(['sleep', '600']); {OPEN}{KILL}",
        *("CRASHED", "Crashed", KILLED),
        ["KILLED"],
    ),
    "segfaults": Case(
        f"{OPEN}os.kill(os.getpid(), signal.SIGSEGV)",
        *("CRASHED", "Crashed", "the flow's process was killed by SIGSEGV"),
        ["KILLED"],
    ),
    "terminated": Case(
        f"{OPEN}os.kill(os.getpid(), signal.SIGTERM); {SLEEP}",
        *("CRASHED", "Crashed", "Execution was aborted by a termination signal."),
        ["KILLED"],
    ),
    "too-slow": Case(
        f"{OPEN}{SLEEP}",
        *("FAILED", "TimedOut", "Flow run exceeded timeout of 10.0 second(s)"),
        ["FAILED"],
        options=", timeout_seconds=10",
    ),
    "cancelled": Case(
        f"child = subprocess.Popen(['sleep', '123']); {OPEN}{SLEEP}",
        *("CANCELLED", "Cancelled", "Flow run was cancelled successfully."),
        ["KILLED"],
    ),
    "retried": Case(
        f"first = not Path('tried').exists(); Path('tried').touch(); "
        f"{OPEN}mlflow.end_run(); 1 / (not first)",
        *("COMPLETED", "Completed", ""),
        ["FINISHED", "FINISHED"],
        options=", retries=1",
    ),
}

ORPHANS = {
    name: Case(f"{OPEN}{body}", "", "", "", [])
    for name, body in {
        "orphan-gone": SLEEP,
        "orphan-cancelled": SLEEP,
        "orphan-alive": "[time.sleep(0.2) for _ in iter(Path('{folder}/go-on').exists, True)]",
        "mlflow-away": "os._exit(3)",
    }.items()
} | {
    "orphan-retrying": Case(  # which its own process would do, and nobody else
        f"{OPEN}raise ValueError('again')",
        *("", "", "", []),
        options=", retries=1, retry_delay_seconds=900",
    )
}


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


class Endings:
    """Runs of this module's flows, and what the servers say about them."""

    def __init__(self, platform: Platform, servers: Servers, folder: Path) -> None:
        self._platform = platform
        self._servers = servers
        self.folder = folder
        self.ids: dict[str, str] = {}
        self._attempts: dict[str, set[str | None]] = {}

    def register(self, cases: dict[str, Case]) -> None:
        """Write the flows' folders and register them."""
        for name, case in cases.items():
            path = write_flow(self.folder / name, "pass", pool=POOL)
            (path / "flow.py").write_text(
                FLOW.format(
                    name=name,
                    body=case.body.replace("{folder}", str(self.folder)),
                    options=case.options,
                    imports=case.imports,
                )
            )
        done = self._platform.cli("flows", "register", str(self.folder))
        assert done.returncode == 0, done.stderr

    def start(self, *names: str, **variables: str) -> None:
        """Ask for a run of each, with variables in its environment."""
        for name in names:
            response = self._servers.prefect.post(
                f"/deployments/{self._servers.deployment(name)['id']}/create_flow_run",
                json={"state": {"type": "SCHEDULED"}, "job_variables": {"env": variables}},
            )
            response.raise_for_status()
            self.ids[name] = response.json()["id"]

    def run(self, name: str) -> dict[str, Any]:
        """Return a run as it is now."""
        found: dict[str, Any] = self._servers.prefect.get(f"/flow_runs/{self.ids[name]}").json()
        return found

    def state(self, name: str) -> tuple[str, str, str]:
        """Wait for a run's end and return its state's type, name and message.

        The reason of a process's end takes the place of Prefect's words a moment later.
        """

        def ended() -> dict[str, Any] | None:
            state: dict[str, Any] = self.run(name)["state"]
            is_told = not (state["message"] or "").startswith(PREFECTS_WORDS)
            return state if state["type"] in FINAL and is_told else None

        state = wait_for(ended, 90) or {}
        return state["type"], state["name"], state["message"] or ""

    def cancel(self, name: str) -> None:
        """Do what the UI's button does."""
        response = self._servers.prefect.post(
            f"/flow_runs/{self.ids[name]}/set_state",
            json={"state": {"type": "CANCELLING", "name": "Cancelling"}},
        )
        response.raise_for_status()

    def mlflow_runs(self, name: str) -> list[dict[str, Any]]:
        """Return the MLflow runs of a run, by the tag that the documents name."""
        experiment = self._servers.mlflow.get(
            "/experiments/get-by-name", params={"experiment_name": "endings"}
        )
        if experiment.status_code == 404:
            return []
        found = self._servers.mlflow.post(
            "/runs/search",
            json={
                "experiment_ids": [experiment.json()["experiment"]["experiment_id"]],
                "filter": f"tags.`mlops.prefect_flow_run_id` = '{self.ids[name]}'",
            },
        )
        runs: list[dict[str, Any]] = found.json().get("runs", [])
        return runs

    def mlflow_ends(self, name: str, expected: list[str]) -> bool:
        """Return whether a run's MLflow runs have these statuses, and an end."""
        infos = [run["info"] for run in self.mlflow_runs(name)]
        assert len(infos) == len(expected), infos
        return sorted(info["status"] for info in infos) == expected and all(
            "end_time" in info for info in infos
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the processes of a run, children included; of a forked one only its mark shows."""
        response = self._servers.prefect.get(f"/flow_runs/{self.ids[name]}")
        if response.is_success:
            self._attempts.setdefault(name, set()).add(response.json()["labels"].get(MARK))
        marks = self._attempts.get(name, set()) - {None}
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if (
                    environment.get("PREFECT__FLOW_RUN_ID") == self.ids[name]
                    or environment.get("MLOPS_ATTEMPT") in marks
                ):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def log(self, name: str) -> str:
        """Return a run's Prefect log as it is now."""
        return self._servers.log(self.ids[name])

    def log_line(self, name: str, text: str) -> str:
        """Wait for a line with a text in a run's Prefect log."""
        return wait_for(lambda: text in self.log(name) and text, 30) or ""


@pytest.fixture(scope="module")
def endings(
    platform: Platform, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Endings:
    """Every flow of this module, registered."""
    endings = Endings(platform, servers, tmp_path_factory.mktemp("endings"))
    endings.register(CASES | ORPHANS)
    return endings


class Agents:
    """Starts agents of the module's pool, in the cache of the platform's own agent."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._environment = platform.environment("agent") | {
            "POOL_NAME": POOL,
            "MLOPS_CACHE_DIR": str(platform.home / "agent"),
            "PREFECT_HOME": str(folder / "prefect"),
        }
        self._log = folder / "log"
        self.tracking_uri = self._environment["MLFLOW_TRACKING_URI"]

    def is_warm(self) -> bool:
        """Return whether one of them has a process ready that runs are forked from."""
        done = run_cli("agent", "status", "--json", environment=self._environment)
        found = [each["status"] for each in json.loads(done.stdout)["agents"]]
        warm = [each["warm_environments"] for each in found if each and each["pool"] == POOL]
        return any(environment["state"] == "ready" for each in warm for environment in each)

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start one, with all the room that these runs need."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mlops", "agent", "start", "--limit", "20"],
                env=self._environment | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture(scope="module")
def agents(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Agents:
    return Agents(platform, tmp_path_factory.mktemp("agents"))


@pytest.fixture(scope="module")
def orphans(endings: Endings, agents: Agents) -> Iterator[Endings]:
    """Runs whose agent is killed; it cannot reach MLflow, though the flows can."""
    agent = agents.start(MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    try:
        # Alone at first: it compiles what all the others import.
        for names in (["mlflow-away"], [n for n in ORPHANS if n != "mlflow-away"]):
            endings.start(*names, MLFLOW_TRACKING_URI=agents.tracking_uri)
            wait_for(lambda names=names: endings.mlflow_runs(names[0]), 90)  # type: ignore[misc]
        endings.log_line("mlflow-away", "could not be ended and will be")
        for name in ("orphan-alive", "orphan-cancelled"):
            wait_for(lambda name=name: endings.mlflow_runs(name), 60)  # type: ignore[misc]
        wait_for(lambda: endings.run("orphan-retrying")["state_name"] == "AwaitingRetry", 60)
    finally:
        agent.kill()
        agent.wait()
    for name in ("orphan-gone", "orphan-retrying"):
        for process in endings.processes(name):
            process.kill()
    endings.cancel("orphan-cancelled")
    yield endings
    for process in endings.processes("orphan-alive"):  # whichever of the tests was run
        process.kill()


@pytest.fixture(scope="module")
def mended(orphans: Endings, agents: Agents) -> Iterator[Endings]:
    """These runs, with the agent that comes after the killed one."""
    agent = agents.start()
    yield orphans
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(60) == 0


@pytest.fixture(scope="module")
def ended(mended: Endings, agents: Agents) -> Endings:
    """The runs of all cases, started together: forked, as runs usually are."""
    wait_for(agents.is_warm, 60)
    mended.start(*CASES)
    wait_for(lambda: mended.mlflow_runs("cancelled"), 90)
    mended.cancel("cancelled")
    return mended


@pytest.mark.parametrize("name", CASES)
def test_end_is_told(ended: Endings, name: str) -> None:
    """Prefect has the right state and reason, and MLflow no run that is open or wrongly well."""
    case = CASES[name]
    assert ended.state(name) == (case.type, case.name, case.message)
    wait_for(lambda: ended.mlflow_ends(name, case.mlflow), 20)


def test_run_and_its_mlflow_run_know_each_other(platform: Platform, ended: Endings) -> None:
    """An MLflow run has the link to the flow run's page; both name the code and the host."""
    assert ended.state("killed")
    labels = ended.run("killed")["labels"]
    (run,) = ended.mlflow_runs("killed")
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    page = f"{platform.addresses.prefect}/v2/runs/flow-run/{ended.ids['killed']}"
    assert tags["mlops.prefect_flow_run_url"] == page
    assert len(labels["mlops.code_hash"]) == 64
    assert labels["mlops.code_uri"] == f"s3://prefect/flows/killed/{labels['mlops.code_hash']}/"
    assert labels["mlops.agent_host"] == os.uname().nodename
    for name in ("mlops.code_hash", "mlops.code_uri", "mlops.agent_host"):
        assert tags[name] == labels[name]


def test_ordinary_deployments_run_is_ended_too(
    servers: Servers, ended: Endings, tmp_path: Path
) -> None:
    """A run of a deployment that is not ours is told of, tagged and ended in the same way."""
    case = CASES["leaves-with-3"]
    (tmp_path / "plain.py").write_text(
        FLOW.format(name="plain-ending", body=case.body, options="", imports="")
    )
    flow = servers.prefect.post("/flows/", json={"name": "plain-ending"}).json()
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    deployment = {
        "name": "plain-ending",
        "flow_id": flow["id"],
        "entrypoint": "plain.py:main",
        "pull_steps": [step],
        "work_pool_name": POOL,
    }
    servers.prefect.post("/deployments/", json=deployment).raise_for_status()
    ended.start("plain-ending")
    assert ended.state("plain-ending") == (case.type, case.name, case.message)
    wait_for(lambda: ended.mlflow_ends("plain-ending", ["KILLED"]), 20)


@pytest.mark.parametrize(
    ("name", "expected", "mlflow"),
    [
        (
            "orphan-gone",
            (
                "CRASHED",
                "Crashed",
                "the flow's process is gone, and no agent saw how it ended",
            ),
            "KILLED",
        ),
        (
            "orphan-cancelled",
            ("CANCELLED", "Cancelled", "cancelled, and its process is gone"),
            "KILLED",
        ),
        ("orphan-alive", ("COMPLETED", "Completed", ""), "FINISHED"),
        (
            "mlflow-away",
            ("CRASHED", "Crashed", "the flow's process ended with exit code 3"),
            "KILLED",
        ),
    ],
)
def test_what_a_killed_agent_left_is_mended(
    mended: Endings, name: str, expected: tuple[str, str, str], mlflow: str
) -> None:
    """The next agent ends what lost its process or was cancelled, and leaves alone what lives."""
    if name == "orphan-alive":
        assert mended.state("orphan-gone")  # the next agent has looked
        assert mended.run(name)["state_type"] == "RUNNING"
        (mended.folder / "go-on").touch()
    assert mended.state(name) == expected
    wait_for(lambda: mended.mlflow_ends(name, [mlflow]), 40)
    wait_for(lambda: not mended.processes(name), 15)


def test_retry_that_a_killed_process_was_to_make_is_for_any_agent(mended: Endings) -> None:
    """It waits for its time as before, and the attempt's MLflow run is ended."""
    begun = mended.run("orphan-retrying")["state"]["state_details"]["scheduled_time"]

    def is_free() -> bool:
        return bool(mended.run("orphan-retrying")["empirical_policy"]["retry_type"] == "reschedule")

    wait_for(is_free, 60)
    run = mended.run("orphan-retrying")
    assert run["state_name"] == "AwaitingRetry"
    assert run["state"]["state_details"]["scheduled_time"] == begun
    wait_for(lambda: mended.mlflow_ends("orphan-retrying", ["KILLED"]), 40)


def test_mlflow_run_that_ended_before_a_kill_stays_as_it_is(ended: Endings) -> None:
    """The end of a task or of a subflow, which Prefect logs too, is not taken for the flow's."""
    wait = "[time.sleep(0.2) for _ in iter(Path('{folder}/logged').exists, True)]"
    body = f"subflow(); step(); {wait}; {OPEN}mlflow.end_run(); {OPEN}{KILL}"
    ended.register({"parts": Case(body, "", "", "", [], imports=PARTS)})
    ended.start("parts")
    wait_for(lambda: "Finished in state" in ended.log("parts"), 90)
    (ended.folder / "logged").touch()
    assert ended.state("parts") == ("CRASHED", "Crashed", KILLED)
    ended.log_line("parts", "MLflow runs that were open are KILLED now: 1")
    assert ended.mlflow_ends("parts", ["FINISHED", "KILLED"])


def test_run_that_logs_nothing_to_prefect_ends_right(ended: Endings) -> None:
    """Without a log to look into, the state's own time tells which MLflow runs were open."""
    body = f"{OPEN}mlflow.end_run(); {OPEN}sys.exit(3)"
    ended.register({"silent": Case(body, "", "", "", [])})
    ended.start("silent", PREFECT_LOGGING_TO_API_ENABLED="false")
    wait_for(lambda: ended.run("silent")["state_type"] == "CRASHED", 90)
    wait_for(lambda: ended.mlflow_ends("silent", ["FINISHED", "KILLED"]), 20)


def test_deleted_run_leaves_nothing_open(servers: Servers, ended: Endings) -> None:
    """A run that is gone from Prefect leaves no process, and no MLflow run open."""
    body = f"subprocess.Popen(['sleep', '600']); {OPEN}{SLEEP}"
    ended.register({"deleted": Case(body, "", "", "", [])})
    ended.start("deleted")
    wait_for(lambda: ended.mlflow_runs("deleted"), 90)
    assert ended.processes("deleted")
    servers.prefect.delete(f"/flow_runs/{ended.ids['deleted']}").raise_for_status()
    for process in ended.processes("deleted"):
        if process.name() != "sleep":
            process.kill()
    wait_for(lambda: not ended.processes("deleted"), 30)
    wait_for(lambda: ended.mlflow_ends("deleted", ["KILLED"]), 90)


def test_mlflow_runs_that_a_flow_creates_or_resumes_are_ended(
    servers: Servers, ended: Endings
) -> None:
    """Whatever way the flow opened them; those that others have open are left alone."""
    experiment = servers.mlflow.get(
        "/experiments/get-by-name", params={"experiment_name": "endings"}
    ).json()["experiment"]["experiment_id"]

    def create(**update: Any) -> str:
        """Create a run from outside, and update it."""
        run = servers.mlflow.post("/runs/create", json={"experiment_id": experiment}).json()["run"]
        run_id: str = run["info"]["run_id"]
        servers.mlflow.post("/runs/update", json={"run_id": run_id} | update).raise_for_status()
        return run_id

    def read(run_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return a run's facts and its tags."""
        run = servers.mlflow.get("/runs/get", params={"run_id": run_id}).json()["run"]
        return run["info"], {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}

    by_argument, by_variable = (create(status="FINISHED", end_time=1) for _ in range(2))
    open_before = create(status="RUNNING")
    body = (
        f"mlflow.MlflowClient().create_run({experiment!r}, tags={{'own': 'tag'}}); "
        f"mlflow.start_run({by_argument!r}); mlflow.start_run(nested=True); "
        f"mlflow.start_run({open_before!r}, nested=True); {KILL}"
    )
    ended.register({"resumes": Case(body, "", "", "", [])})
    ended.start("resumes", MLFLOW_RUN_ID=by_variable)
    assert ended.state("resumes") == ("CRASHED", "Crashed", KILLED)
    wait_for(lambda: ended.mlflow_ends("resumes", ["KILLED"]), 20)
    (created,) = ended.mlflow_runs("resumes")
    assert {"key": "own", "value": "tag"} in created["data"]["tags"]
    for run_id in (by_argument, by_variable):
        # One is ended after the other.
        wait_for(lambda run_id=run_id: read(run_id)[0]["status"] == "KILLED", 20)  # type: ignore[misc]
        info, tags = read(run_id)
        assert info["end_time"] > 1
        assert tags["mlops.attempt"] == ended.run("resumes")["labels"]["mlops.attempt"]
    info, tags = read(open_before)
    assert info["status"] == "RUNNING"
    assert "mlops.attempt" not in tags


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup with room for a flow and not much more."""
    group = make_memory_cgroup("mlops-test", limit_bytes=400 * 2**20)
    assert group is not None
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text(), 10)
    group.rmdir()


@pytest.mark.requires("memory-cgroup")
def test_out_of_memory_is_told(ended: Endings, small_cgroup: Path) -> None:
    """A flow that the kernel kills for its memory is Crashed, and the state says why."""
    assert ended.state("killed")  # not at the same time
    body = EXHAUST.format(cgroup=small_cgroup)
    ended.register({"hungry": Case(OPEN + body, "", "", "", [])})
    ended.start("hungry")
    reason = "out of memory: the kernel killed the flow's process"
    assert ended.state("hungry") == ("CRASHED", "Crashed", reason)
    wait_for(lambda: ended.mlflow_ends("hungry", ["KILLED"]), 20)
