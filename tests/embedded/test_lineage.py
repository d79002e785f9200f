import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow

BODY = """\
import mlflow
    mlflow.set_experiment("lineage")
    with mlflow.start_run():
        mlflow.log_metric("doubled", value * 2)
        mlflow.log_metric("chance", __import__("random").random())
    client = mlflow.MlflowClient()
    number = mlflow.get_experiment_by_name("lineage").experiment_id
    client.set_terminated(client.create_run(number).info.run_id)
    print("logged")\
"""
LATER = "2100-01-01T00:00:00Z"
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


def _commit(folder: Path) -> str:
    for arguments in (("add", "--all"), ("commit", "--quiet", "--message", "as it is")):
        subprocess.run([*GIT, *arguments], cwd=folder, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


class Traced:
    """A run of a registered flow that lies in a git repository."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform = platform
        self.servers = Servers(platform)
        self.folder = write_flow(folder, BODY, signature="value: int = 1")
        subprocess.run(["git", "init", "--quiet"], cwd=folder.parent, check=True)
        self.commit = _commit(folder)
        self.register()
        done = platform.cli(
            *("flows", "run", str(folder), "--follow", "--json", "--param", "value=21")
        )
        assert done.returncode == 0, done.stderr
        self.id: str = json.loads(done.stdout)["flow_run_id"]

    def register(self) -> None:
        done = self.platform.cli("flows", "register", str(self.folder))
        assert done.returncode == 0, done.stderr

    def labels(self, run_id: str) -> dict[str, Any]:
        labels: dict[str, Any] = self.servers.prefect.get(f"/flow_runs/{run_id}").json()["labels"]
        return labels

    def mlflow_runs(self, run_id: str) -> list[dict[str, Any]]:
        return self.servers.mlflow_runs("lineage", run_id)

    def reproduce(self, *options: str) -> tuple[int, dict[str, Any]]:
        done = self.platform.cli("runs", "reproduce", self.id, "--json", *options)
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, report


@pytest.fixture(scope="module")
def traced(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A run that has ended."""
    return Traced(platform, tmp_path_factory.mktemp("repository") / "traced")


def test_run_carries_where_it_comes_from(traced: Traced) -> None:
    """Prefect and MLflow tell the same of a run, however its MLflow runs were made."""
    labels = traced.labels(traced.id)
    assert labels["mlops.git_commit"] == traced.commit
    assert labels["mlops.entrypoint"] == "flow.py:main"
    assert labels["mlops.prefect_flow_run_id"] == traced.id
    assert labels["mlops.prefect_deployment"] == "traced"
    assert json.loads(labels["mlops.parameters"]) == {"value": 21}
    assert labels["mlops.agent_host"] == os.uname().nodename
    assert labels["mlops.python"].count(".") == 2
    assert len(labels["mlops.requirements_hash"]) == len(labels["mlops.packages_hash"]) == 64
    assert "mlops.gpu" in labels
    runs = traced.mlflow_runs(traced.id)
    assert len(runs) == 2
    ours = {name: value for name, value in labels.items() if name.startswith("mlops.")}
    for run in runs:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        assert ours.items() <= tags.items()


def test_flow_run_links_to_its_mlflow_runs(traced: Traced) -> None:
    """The flow run has an artifact in Prefect with a link to each of its MLflow runs."""
    query = {"artifacts": {"flow_run_id": {"any_": [traced.id]}}}
    (artifact,) = wait_for(
        lambda: traced.servers.prefect.post("/artifacts/filter", json=query).json(), 20
    )
    assert (artifact["key"], artifact["type"]) == ("mlflow-runs", "markdown")
    for run in traced.mlflow_runs(traced.id):
        info = run["info"]
        page = f"/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
        assert f"({traced.platform.addresses.mlflow}{page})" in artifact["data"]


def test_chain_is_shown(traced: Traced) -> None:
    """Code, commit, parameters and metrics are found by any of a run's names."""
    flow_run = traced.servers.prefect.get(f"/flow_runs/{traced.id}").json()
    mlflow_run = traced.mlflow_runs(traced.id)[0]["info"]["run_id"]
    shown = {
        name: traced.platform.cli("runs", "show", name)
        for name in (traced.id, flow_run["name"], mlflow_run)
    }
    texts = {done.stdout for done in shown.values()}
    assert len(texts) == 1, [done.stderr for done in shown.values()]
    (text,) = texts
    for part in (traced.id, traced.commit, '{"value": 21}', "doubled 42", mlflow_run):
        assert part in text


@pytest.mark.parametrize("run", ["no-such-run", "11111111111111111111111111111111"])
def test_unknown_run_is_named(platform: Platform, run: str) -> None:
    """A run that is nowhere is a mistake that says what may be given."""
    done = platform.cli("runs", "show", run)
    assert done.returncode == 1
    assert f"{run}: no such run" in done.stderr
    assert "the id of a run in MLflow" in done.stderr


def test_run_is_reproduced_after_its_code_has_changed(traced: Traced) -> None:
    """A run is done again as it was, with the same metric, while its deployment has moved on."""
    code, report = traced.reproduce("--metric", "doubled")
    assert (code, report["same"], report["differences"]) == (0, True, [])
    assert [each["repeated"] for each in report["metrics"]] == [42]
    flow = traced.folder / "flow.py"
    flow.write_text(flow.read_text().replace("value * 2", "value * 3"))
    traced.register()
    code, report = traced.reproduce("--metric", "doubled")
    assert (code, report["same"]) == (0, True), report
    assert [each["repeated"] for each in report["metrics"]] == [42]
    labels = traced.labels(report["repeated"])
    assert labels["mlops.reproduces"] == traced.id
    assert labels["mlops.git_commit"] == traced.commit
    assert labels["mlops.code_hash"] == traced.labels(traced.id)["mlops.code_hash"]
    deployment = traced.servers.deployment("traced")
    assert deployment["version"].endswith(f"{traced.commit}-dirty")
    pruned = traced.platform.cli("flows", "prune", "--code", "--days", "0", "--yes")
    assert pruned.returncode == 0, pruned.stderr
    code, report = traced.reproduce("--metric", "chance")
    assert (code, report["state"], report["same"]) == (1, "Completed", False)


def test_run_that_goes_on_is_not_reproduced(traced: Traced) -> None:
    """There is nothing to compare with before a run has ended."""
    deployment = traced.servers.deployment("traced")
    run = traced.servers.prefect.post(
        f"/deployments/{deployment['id']}/create_flow_run",
        json={
            "state": {
                "type": "SCHEDULED",
                "state_details": {"scheduled_time": LATER},
            }
        },
    ).json()
    done = traced.platform.cli("runs", "reproduce", run["id"])
    assert done.returncode == 1
    assert f"{run['name']}: is Scheduled" in done.stderr
