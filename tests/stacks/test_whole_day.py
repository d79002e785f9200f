"""A data scientist's day on four hosts: from a new project to a scheduled run, and back."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stacks.fixtures import completed, wait_for
from stacks.hosts import Joined, ServerHost, join, up_together
from stacks.platform import Servers

pytestmark = [pytest.mark.requires("docker", "package-index"), pytest.mark.timeout(1200)]
NAME = "new-idea"
RUN_SECONDS = 600  # the agent makes an environment of the project's requirements first

MORNING = f"""
    set -eu
    mlops project new {NAME}
    cd {NAME}
    dvc repro --quiet
    git add --all && git commit --quiet --message 'Train'
    dvc push --quiet
    jupyter nbconvert --to notebook --execute --stdout notebooks/explore.ipynb >/dev/null
"""
CLONE = f"""
    set -eu
    git clone --quiet {NAME} again
    cd again
    dvc pull --quiet
    diff --recursive data/prepared ../{NAME}/data/prepared
    diff --recursive models ../{NAME}/models
    mlops data pull data/prepared --to pulled
    diff --recursive data/prepared pulled
"""
TO_FLOW = f"""
    set -eu
    mkdir made
    cd {NAME}
    mlops project to-flow --in ../made --json
"""


class Day(NamedTuple):
    """Where it goes on: four hosts, of which the server's is shared with other tests."""

    servers: Servers
    scheduler: Joined
    agent: Joined
    experimenter: Joined

    @property
    def projects(self) -> Path:
        """The experimenter's folder of projects."""
        return self.experimenter.host.folder / "dev-projects"

    def shell(self, commands: str, limit_seconds: float = 300) -> str:
        """Run commands as in JupyterLab's terminal, and return what they print."""
        return self.experimenter.project.run(
            "ml-experimenter", "bash", "-lc", commands, timeout=limit_seconds
        )

    def metrics(self) -> dict[str, float]:
        """Return what `dvc repro` has measured."""
        found: dict[str, float] = json.loads((self.projects / NAME / "metrics.json").read_text())
        return found

    def logged(self, **tags: str) -> list[dict[str, float]]:
        """Return the metrics of MLflow runs with some tags; without, of those made by hand."""
        found = []
        for run in self.servers.mlflow_runs(NAME):
            has = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
            wanted = {f"mlops.{key}": value for key, value in tags.items()}
            if wanted.items() <= has.items() and (tags or "mlops.agent_host" not in has):
                found.append({m["key"]: m["value"] for m in run["data"].get("metrics", [])})
        return found


@pytest.fixture(scope="module")
def day(server_host: ServerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """A scheduler, an agent and an experimenter, each on a host that has joined the server's."""
    folder = tmp_path_factory.mktemp("whole-day")
    port = server_host.host.presets["JUPYTER_PORT"]
    joined = [
        join(server_host.host, folder / "scheduler", "scheduler"),
        join(server_host.host, folder / "agent", "agent", MLOPS_HOST_NAME="night-shift"),
        join(server_host.host, folder / "experimenter", "experimenter", JUPYTER_PORT=port),
    ]
    try:
        up_together([each.project for each in joined])
        yield Day(server_host.servers, *joined)
    finally:
        for each in joined:
            each.host.remove()


@pytest.fixture(scope="module")
def project(day: Day) -> Path:
    """A new project that was trained, committed and pushed: its folder on the host."""
    day.shell(MORNING)
    return day.projects / NAME


@pytest.fixture(scope="module")
def flow(day: Day, project: Path) -> dict[str, Any]:
    """The flow of the project, due in a minute or two: what the command said about it.

    The experimenter may not write code to S3: the folder goes to the scheduler's host.
    """
    _ = project
    made: dict[str, Any] = json.loads(day.shell(TO_FLOW))
    copy = day.scheduler.host.folder / "copied" / NAME
    shutil.copytree(day.projects / "made" / NAME, copy)
    due = datetime.now(UTC) + timedelta(seconds=90)
    with (copy / "flow.yaml").open("a") as file:
        cron = f"{due.minute} {due.hour} * * *"
        file.write(f"scheduler:\n  method: cron\n  timezone: UTC\n  cron: '{cron}'\n")
    copy.rename(day.scheduler.host.folder / "flows" / NAME)
    wait_for(lambda: day.servers.deployment(f"{NAME}/{NAME}"), 60)
    return made


@pytest.fixture(scope="module")
def scheduled(day: Day, flow: dict[str, Any]) -> str:
    """The flow's scheduled run, which has completed on the agent's host: its id."""
    _ = flow

    def begun() -> str:
        runs = day.servers.runs(f"{NAME}/{NAME}")
        return next((run["id"] for run in runs if run["start_time"]), "")

    run_id = wait_for(begun, RUN_SECONDS)
    completed(day.servers, run_id, RUN_SECONDS)
    return run_id


def test_experiment_is_in_mlflow(day: Day, project: Path) -> None:
    """What `dvc repro` trained is one run with its metrics, and the data is on the platform."""
    _ = project
    assert day.logged() == [day.metrics()]
    assert day.metrics()["rmse"] > 0
    assert day.servers.keys("dvc", f"{NAME}/files/md5/")


def test_clone_has_identical_bytes(day: Day, flow: dict[str, Any]) -> None:
    """Somebody else's clone pulls the same data and the same model."""
    _ = flow  # which becomes due meanwhile
    day.shell(CLONE)


def test_scheduled_run_measures_the_same(day: Day, scheduled: str) -> None:
    """On the agent's host, without the project's host, the same metrics come out."""
    run = day.servers.run(scheduled)
    assert run["auto_scheduled"]
    assert run["labels"]["mlops.agent_host"] == "night-shift"
    (logged,) = day.logged(prefect_flow_run_id=scheduled)
    assert logged == pytest.approx(day.metrics())


def test_run_leads_back_to_its_data(day: Day, flow: dict[str, Any], scheduled: str) -> None:
    """`mlops runs show` names the revision of the data that the project was trained on."""
    shown = day.shell(f"mlops runs show {scheduled}")
    assert flow["data"]
    assert all(reference in shown for reference in flow["data"].values())


def test_run_is_reproduced(day: Day, scheduled: str) -> None:
    """`mlops runs reproduce`, where the data scientist is, runs it again with the same metrics."""
    told = json.loads(day.shell(f"mlops runs reproduce {scheduled} --json", RUN_SECONDS))
    assert told["same"]
    assert told["repeated"] != scheduled
    assert {each["metric"] for each in told["metrics"]} >= day.metrics().keys()
    assert day.logged(prefect_flow_run_id=told["repeated"]) == day.logged(
        prefect_flow_run_id=scheduled
    )
