"""flows/digits_torch with the real PyTorch: one environment, for two runs.

The one is left alone; the other, of the same code with faults, raises an exception, is killed and
is retried as by the button in Prefect's UI.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for

FLOW = Path(__file__).parents[2] / "flows" / "digits_torch"
EPOCHS = 6
# For 5 GB of packages, when they are not in uv's cache.
ENVIRONMENT_SECONDS = 1500
# What is put behind the flow's own code. Each fault happens once: after a checkpoint, before its
# metrics; and after an epoch of training, before its checkpoint.
FAULTS = """

import os
import signal

FOLDER = Path({folder!r})
log_metrics, train = mlflow.log_metrics, Training.train


def is_first(fault):
    marker = FOLDER / fault
    was_there = marker.exists()
    marker.touch()
    return not was_there


def log_metrics_or_fail(metrics, step):
    if step == 2 and is_first("failed"):
        raise ValueError("no metrics for once")
    log_metrics(metrics, step=step)


def train_or_die(training, *arguments):
    train(training, *arguments)
    with (FOLDER / "trained").open("a") as file:
        print(training.epochs, file=file)
    if training.epochs == 4 and is_first("killed"):
        os.kill(os.getpid(), signal.SIGKILL)


mlflow.log_metrics, Training.train = log_metrics_or_fail, train_or_die
"""

pytestmark = [
    pytest.mark.requires("package-index"),
    pytest.mark.timeout(ENVIRONMENT_SECONDS + 300),
]


class FlowRun:
    """A run of a deployment of the flow, on one thread of the CPU."""

    def __init__(self, servers: Servers, deployment: str) -> None:
        self._servers = servers
        found = servers.prefect.get(f"/deployments/name/digits-torch/{deployment}").json()
        response = servers.prefect.post(
            f"/deployments/{found['id']}/create_flow_run",
            json={
                "state": {"type": "SCHEDULED"},
                "parameters": {"epochs": EPOCHS},
                "job_variables": {"env": {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}},
            },
        )
        response.raise_for_status()
        self.id = response.json()["id"]

    def end(self, name: str, limit_seconds: float = 120) -> dict[str, Any]:
        """Wait until the run is in a state, and return it."""

        def read() -> dict[str, Any] | None:
            run: dict[str, Any] = self._servers.prefect.get(f"/flow_runs/{self.id}").json()
            return run if run["state_name"] == name else None

        return wait_for(read, limit_seconds) or {}

    def click_retry(self) -> None:
        """Do what the button in the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        self._servers.prefect.post(
            f"/flow_runs/{self.id}/set_state", json={"state": state, "force": True}
        ).raise_for_status()

    def tracked(self) -> dict[str, Any]:
        """Return its MLflow run, of which there must be one."""
        (run,) = self._servers.mlflow_runs("digits_torch", self.id)
        return run

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return the steps and values of a metric, in the order of their logging."""
        found = self._servers.mlflow.get(
            "/metrics/get-history",
            params={"run_id": self.tracked()["info"]["run_id"], "metric_key": metric},
        ).json()["metrics"]
        return [(point["step"], point["value"]) for point in found]


class Runs(NamedTuple):
    """A run without a fault, and one with all of them; `trained` are the latter's epochs."""

    whole: FlowRun
    broken: FlowRun
    trained: list[int]


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


@pytest.fixture(scope="module")
def runs(platform: Platform, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("torch")
    faulty = shutil.copytree(FLOW, root / "faulty")
    code, settings = faulty / "prefect_flow.py", faulty / "flow.yaml"
    code.write_text(code.read_text() + FAULTS.format(folder=str(root)))
    settings.write_text(settings.read_text().replace("deploy_name: train", "deploy_name: faulty"))
    for folder in (FLOW, faulty):
        registered = platform.cli("flows", "register", str(folder))
        assert registered.returncode == 0, registered.stderr
    whole = FlowRun(servers, "train")
    whole.end("Completed", ENVIRONMENT_SECONDS)
    broken = FlowRun(servers, "faulty")
    # Prefect's own words come first, the agent's when it has done with the process.
    wait_for(lambda: "killed by SIGKILL" in broken.end("Crashed")["state"]["message"], 90)

    def has_completed() -> bool:
        # A click before the worker has said its last word is undone by it: a person clicks again.
        state = servers.prefect.get(f"/flow_runs/{broken.id}").json()["state_type"]
        if state == "CRASHED":
            broken.click_retry()
        return bool(state == "COMPLETED")

    wait_for(has_completed, 120)
    return Runs(whole, broken, [int(line) for line in (root / "trained").read_text().split()])


def test_whole_run_learns(runs: Runs) -> None:
    """The flow reads most digits, and tells its device, speed and learning curve."""
    run = runs.whole.tracked()
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert run["info"]["status"] == "FINISHED"
    assert tags["device"] == "CPU, 1 threads"
    assert metrics["accuracy"] >= 0.9
    assert metrics["images_per_second"] > 0
    steps, losses = zip(*runs.whole.curve("train_loss"), strict=True)
    assert list(steps) == list(range(1, EPOCHS + 1))
    assert losses[-1] < losses[0]


def test_broken_run_trains_no_epoch_again(runs: Runs) -> None:
    """What a checkpoint holds is not trained again, after an exception as after a kill."""
    assert runs.trained == [1, 2, 3, 4, 4, 5, 6]


def test_broken_run_has_one_learning_curve(servers: Servers, runs: Runs) -> None:
    """One MLflow run has each epoch once, also the one whose metrics the exception kept back."""
    for metric in ("accuracy", "train_loss", "images_per_second"):
        steps = [step for step, _ in runs.broken.curve(metric)]
        assert steps == list(range(1, EPOCHS + 1)), metric
    # The killed process has taken its last lines with it.
    assert "goes on after epoch 3 of 6" in servers.log(runs.broken.id)


def test_broken_run_ends_as_if_nothing_had_been(runs: Runs) -> None:
    """The network of a run that was resumed twice is that of the run that was left alone."""
    for metric in ("accuracy", "train_loss"):
        assert runs.broken.curve(metric) == runs.whole.curve(metric)
    assert runs.broken.tracked()["info"]["status"] == "FINISHED"


def test_run_keeps_one_checkpoint_and_a_registered_model(servers: Servers, runs: Runs) -> None:
    """A checkpoint takes the place of the one before; the model goes to the registry."""
    for run in (runs.whole, runs.broken):
        info = run.tracked()["info"]
        bucket, _, prefix = info["artifact_uri"].removeprefix("s3://").partition("/")
        files = [key.removeprefix(f"{prefix}/") for key in servers.objects(bucket, prefix)]
        assert files == ["checkpoint.pt"]
        (version,) = servers.mlflow.get(
            "/model-versions/search", params={"filter": f"run_id = '{info['run_id']}'"}
        ).json()["model_versions"]
        assert version["name"] == "digits_torch"
