"""Images per second of flows/digits_torch: on our agent against the same script run by hand.

By hand is the same folder, in the environment that the agent has built and with the variables that
the agent has, started from a shell. Both log to the same MLflow. They run in turn; one run of
each, not counted, comes first, and makes the environment. A run's number is the median of its
epochs, so that the first ones, in which PyTorch warms up, do not count; the GPU is used if there
is one.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from measure import (
    Findings,
    Measure,
    Ratio,
    announce,
    run_bench,
    timed_command,
    wait_until,
)
from platform_under_test import Platform, open_folder, own_platform

FLOW = Path(__file__).parents[1] / "flows" / "digits_torch"
EPOCHS = 200
METRIC = "images_per_second"
LEAST = 0.97  # of the rate by hand


def bench(rounds: int) -> Findings:
    """Train `rounds` times in each way.

    Args:
        rounds: How often.
    """
    rates: dict[str, list[float]] = {"by hand": [], "on our agent": []}
    with open_folder() as folder, own_platform(folder) as platform:
        platform.run("local", "up")
        platform.run("flows", "register", str(FLOW))
        ways: list[tuple[str, Callable[[Platform], None]]] = [
            ("on our agent", _train_on_agent),  # first: it makes the environment
            ("by hand", _train_by_hand),
        ]
        for number in range(rounds + 1):
            announce(f"round {number} of {rounds}" if number else "one run of each, not counted")
            for name, train in ways:
                train(platform)
                if number:
                    rates[name].append(_read_rate(platform))
            if number:
                ways.reverse()
    hand, agent = (
        Measure(what=f"images/s {name}", unit="1/s", values=tuple(values))
        for name, values in rates.items()
    )
    return [hand, agent], [
        Ratio(what=agent.what, peer=hand.what, value=agent.median / hand.median, floor=LEAST)
    ]


def _train_on_agent(platform: Platform) -> None:
    before = len(_finished_runs(platform))
    # Not followed: whoever looks on takes from the same cores, which by hand nobody does.
    platform.run("flows", "run", "digits-torch/train", "--param", f"epochs={EPOCHS}")
    wait_until(
        lambda: len(_finished_runs(platform)) > before,
        "the run",
        limit_seconds=300,
        poll_seconds=1,
    )


def _train_by_hand(platform: Platform) -> None:
    builds = platform.home.path / "agent" / "environments" / "builds"
    (torch,) = builds.glob("*/lib/python3*/site-packages/torch")
    python = torch.parents[3] / "bin" / "python"
    train = f"import prefect_flow; prefect_flow.digits_torch(epochs={EPOCHS})"
    with open_folder() as folder:  # it writes its checkpoints to where it is
        environment = platform.environment("agent") | {"PYTHONPATH": str(FLOW)}
        timed_command([python, "-c", train], environment, folder)


def _read_rate(platform: Platform) -> float:
    """Return the images per second of the run that was the last to start."""
    run_id = _finished_runs(platform)[0]["info"]["run_id"]
    with _mlflow(platform) as mlflow:
        query = {"run_id": run_id, "metric_key": METRIC}
        history = mlflow.get("/metrics/get-history", params=query).json()["metrics"]
    if len(history) != EPOCHS:
        raise RuntimeError(f"{run_id}: {len(history)} of {EPOCHS} epochs")
    return statistics.median(float(point["value"]) for point in history)


def _finished_runs(platform: Platform) -> list[dict[str, Any]]:
    """Return the runs of the experiment, the newest first."""
    with _mlflow(platform) as mlflow:
        found = mlflow.get("/experiments/get-by-name", params={"experiment_name": "digits_torch"})
        if found.status_code == httpx.codes.NOT_FOUND:
            return []
        search = {
            "experiment_ids": [found.json()["experiment"]["experiment_id"]],
            "filter": "attributes.status = 'FINISHED'",
            "order_by": ["attributes.start_time DESC"],
        }
        runs: list[dict[str, Any]] = mlflow.post("/runs/search", json=search).json().get("runs", [])
        return runs


def _mlflow(platform: Platform) -> httpx.Client:
    environment = platform.environment("agent")
    return httpx.Client(
        base_url=f"{environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow",
        auth=(environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"]),
    )


if __name__ == "__main__":
    run_bench(bench, rounds=5)
