"""flows/green_taxi, on a tenth of the trips of two real months."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for

PROJECT = Path(__file__).parents[2]
FLOW = PROJECT / "flows" / "green_taxi"
MONTHS = sorted((PROJECT.parent / "shared" / "data").glob("green_tripdata_*.parquet"))
TRIALS = 3

pytestmark = [
    pytest.mark.requires("package-index", "taxi-months"),
    pytest.mark.timeout(600),
]


def put(servers: Servers, content: bytes, *, suffix: str = "") -> str:
    """Put an object where DVC would push it, and return its hash."""
    digits = hashlib.md5(content, usedforsecurity=False).hexdigest()
    key = f"green_taxi/files/md5/{digits[:2]}/{digits[2:]}{suffix}"
    servers.s3.put_object(Bucket="dvc", Key=key, Body=content)
    return digits + suffix


class TaxiRun:
    """A run of the flow with the data of flow.yaml, which are those months."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._servers = Servers(platform)
        files = [
            {"md5": put(self._servers, month.read_bytes()), "relpath": month.name}
            for month in MONTHS
        ]
        listing = json.dumps(files, sort_keys=True).encode()
        self.pushed = f"s3://dvc/green_taxi@{put(self._servers, listing, suffix='.dir')}"
        registered = platform.cli("flows", "register", str(FLOW))
        assert registered.returncode == 0, registered.stderr
        done = self.start(f"trials={TRIALS}", "sample=0.1")
        self.id: str = done["flow_run_id"]
        assert done["state"] == "Completed", done["message"]
        runs = self.tracked()
        (self.parent,) = (run for run in runs if "mlflow.parentRunId" not in self.tags(run))
        self.trials = [run for run in runs if run is not self.parent]

    def start(self, *parameters: str) -> dict[str, Any]:
        """Run the flow and return the report."""
        options = [option for parameter in parameters for option in ("--param", parameter)]
        done = self._platform.cli(
            *("flows", "run", "green-taxi/search", "--follow", "--json", *options),
            timeout_seconds=400,
        )
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def tracked(self) -> list[dict[str, Any]]:
        """Return the MLflow runs of the flow run as they are now."""
        return self._servers.mlflow_runs("green_taxi", self.id)

    @staticmethod
    def tags(run: dict[str, Any]) -> dict[str, str]:
        """Return an MLflow run's tags."""
        return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}

    @staticmethod
    def metrics(run: dict[str, Any]) -> dict[str, float]:
        """Return an MLflow run's metrics."""
        return {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}

    @staticmethod
    def parameters(run: dict[str, Any]) -> dict[str, str]:
        """Return an MLflow run's parameters."""
        return {parameter["key"]: parameter["value"] for parameter in run["data"]["params"]}


@pytest.fixture(scope="module")
def taxi(platform: Platform) -> TaxiRun:
    return TaxiRun(platform)


def test_data_of_flow_yaml_are_the_two_months(taxi: TaxiRun) -> None:
    """Who pushes January and February 2021 can run the flow as it is."""
    settings = yaml.safe_load((FLOW / "flow.yaml").read_text())
    assert settings["parameters"]["data"] == taxi.pushed
    assert taxi.parameters(taxi.parent)["data"] == taxi.pushed


def test_model_is_better_than_the_mean(taxi: TaxiRun) -> None:
    """The unseen month's error is measured, and at least 30 % below that of the mean."""
    metrics = taxi.metrics(taxi.parent)
    assert taxi.parent["info"]["status"] == "FINISHED"
    assert metrics["rmse"] <= 0.7 * metrics["rmse_of_mean"]
    assert metrics["better_than_mean"] == 1 - metrics["rmse"] / metrics["rmse_of_mean"]


def test_each_trial_is_a_run_below_the_flows(taxi: TaxiRun) -> None:
    """Trials have their settings and error; the best one's settings are the model's."""
    assert len(taxi.trials) == TRIALS
    parent_id = taxi.parent["info"]["run_id"]
    assert {taxi.tags(trial)["mlflow.parentRunId"] for trial in taxi.trials} == {parent_id}
    best = min(taxi.trials, key=lambda trial: taxi.metrics(trial)["search_rmse"])
    assert len(taxi.parameters(best)) == 5
    assert taxi.parameters(best).items() <= taxi.parameters(taxi.parent).items()


def test_all_runs_tell_which_data_they_come_from(taxi: TaxiRun) -> None:
    """The data's revision is a tag of the flow's MLflow run and of its trials."""
    tag = f"mlops.data.{taxi.pushed.partition('@')[2][:12]}"

    def told() -> bool:
        """The agent adds it to the run that was open already, when that has ended."""
        return [taxi.tags(run).get(tag) for run in taxi.tracked()] == [taxi.pushed] * (TRIALS + 1)

    wait_for(told, 60)


def test_best_model_is_registered_with_its_signature(platform: Platform, taxi: TaxiRun) -> None:
    """The registry has the model, and what it is to be given."""
    servers = Servers(platform)
    info = taxi.parent["info"]
    (version,) = servers.mlflow.get(
        "/model-versions/search", params={"filter": f"run_id = '{info['run_id']}'"}
    ).json()["model_versions"]
    assert version["name"] == "green_taxi"
    keys = servers.objects("mlflow", f"{info['experiment_id']}/models/")
    (description,) = (key for key in keys if key.endswith("/MLmodel"))
    signature = yaml.safe_load(servers.read("mlflow", description))["signature"]
    columns = [column["name"] for column in json.loads(signature["inputs"])]
    assert columns == ["miles", "pickup_zone", "dropoff_zone", "hour", "weekday"]


def test_same_data_and_parameters_give_the_same_metrics(platform: Platform, taxi: TaxiRun) -> None:
    """The run can be reproduced, trial by trial."""
    done = platform.cli("runs", "reproduce", taxi.id, timeout_seconds=400)
    assert done.returncode == 0, done.stdout + done.stderr


def test_data_that_nobody_pushed_is_named(taxi: TaxiRun) -> None:
    """Without its data the flow fails, and its message says which they are."""
    missing = f"s3://dvc/green_taxi@{'0' * 32}.dir"
    report = taxi.start(f"data={missing}")
    assert report["state"] == "Failed"
    assert "DataError" in report["message"]
    assert missing in report["message"]
