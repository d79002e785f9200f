"""A flow that `mlops project to-flow` makes, run by the platform's agent."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from embedded.conftest import Platform
from embedded.flow_folders import Servers
from embedded.projects import NAME, Projects, restore

pytestmark = [pytest.mark.requires("package-index"), pytest.mark.timeout(900)]
RUN_SECONDS = 600  # the first run builds the environment of the project's packages


@pytest.fixture(scope="module")
def flow(project: Path, platform: Platform) -> dict[str, Any]:
    """The flow that became of it, registered."""
    made = platform.cli("project", "to-flow", str(project), "--json")
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    report: dict[str, Any] = json.loads(made.stdout)
    assert Path(report["folder"]) == platform.flow_dir / NAME
    for command in ("check", "register"):
        done = platform.cli("flows", command, report["folder"])
        assert done.returncode == 0, done.stderr
    return report


def run(platform: Platform, folder: str, *parameters: str) -> dict[str, Any]:
    """Run the flow to its end."""
    options = [option for each in parameters for option in ("--param", each)]
    done = platform.cli(
        *("flows", "run", folder, "--follow", "--json", *options), timeout_seconds=RUN_SECONDS
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "said": done.stderr}


def mlflow_runs(servers: Servers, flow_run_id: str) -> list[dict[str, Any]]:
    """Return the MLflow runs that belong to a flow run."""
    found = servers.mlflow.get("/experiments/get-by-name", params={"experiment_name": NAME})
    query = {
        "experiment_ids": [found.json()["experiment"]["experiment_id"]],
        "filter": f"tags.`mlops.prefect_flow_run_id` = '{flow_run_id}'",
    }
    runs: list[dict[str, Any]] = servers.mlflow.post("/runs/search", json=query).json()["runs"]
    return runs


def metrics_of(run: dict[str, Any]) -> dict[str, float]:
    return {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}


def test_agent_gets_the_metrics_of_the_project(
    project: Path, flow: dict[str, Any], platform: Platform
) -> None:
    """Same data, same parameters, same metrics; the training is a run of the same experiment,
    which carries the flow run's tags and the data's reference."""
    report = run(platform, flow["folder"])
    assert report["state"] == "Completed", report["said"]
    servers = Servers(platform)
    (training,) = mlflow_runs(servers, report["flow_run_id"])
    assert metrics_of(training) == pytest.approx(json.loads((project / "metrics.json").read_text()))
    tags = {tag["key"]: tag["value"] for tag in training["data"]["tags"]}
    (reference,) = flow["data"].values()
    assert reference in tags.values()
    assert training["info"]["status"] == "FINISHED"
    # The stages are tasks, in order.
    query = {
        "flow_runs": {"id": {"any_": [report["flow_run_id"]]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    tasks = servers.prefect.post("/task_runs/filter", json=query).json()
    assert [task["name"] for task in tasks] == ["pull data/prepared", "train", "evaluate"]


def test_run_s_own_parameters_count(
    project: Path, flow: dict[str, Any], platform: Platform, projects: Projects
) -> None:
    """A run with another value gets the metrics that the project gets with it."""
    # With a value that an experiment has had (test_projects.py), DVC need not train again.
    projects.run(project, "dvc", "exp", "run", "--quiet", "--set-param", "train.depth=6")
    expected = json.loads((project / "metrics.json").read_text())
    restore(project, projects)
    report = run(platform, flow["folder"], "train_depth=6")
    assert report["state"] == "Completed", report["said"]
    (training,) = mlflow_runs(Servers(platform), report["flow_run_id"])
    assert metrics_of(training) == pytest.approx(expected)
    assert expected != json.loads((project / "metrics.json").read_text())


def test_stage_that_fails_ends_the_run(flow: dict[str, Any], platform: Platform) -> None:
    """The run fails with the stage's name and exit code; what it printed is in the log."""
    report = run(platform, flow["folder"], "train_trees=-1")
    assert report["state"] == "Failed"
    assert "stage train ended with exit code 1: python src/train.py" in report["message"]
    log = Servers(platform).log(report["flow_run_id"])
    assert "The 'n_estimators' parameter of RandomForestRegressor must be" in log
    (training,) = mlflow_runs(Servers(platform), report["flow_run_id"])
    assert training["info"]["status"] == "FAILED"


def test_unpushed_data_is_refused(project: Path, platform: Platform, projects: Projects) -> None:
    """Data of another revision has to be pushed first; then the flow names it."""
    projects.run(
        project, "dvc", "exp", "run", "--quiet", "--set-param", "prepare.seed=7", "prepare"
    )
    refused = platform.cli("project", "to-flow", str(project), "--name", "later")
    assert refused.returncode == 1
    assert "data/prepared: its data is not in s3://dvc/first-day yet\n  dvc push" in refused.stderr
    assert not (platform.flow_dir / "later").exists()
    projects.run(project, "dvc", "push")
    made = platform.cli("project", "to-flow", str(project), "--name", "later")
    assert made.returncode == 0, made.stderr
    assert "changes that are not committed" in made.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "mlops", "data", "show", "data/prepared"],
        cwd=project,
        env=platform.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    content = yaml.safe_load((platform.flow_dir / "later" / "flow.yaml").read_text())
    assert content["parameters"]["data"] in shown.stdout
    restore(project, projects)
