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

import httpx
from measure import Findings, Measure, announce, compare, run_bench, timed_command
from platform_under_test import Platform, open_folder, own_platform

FLOW = Path(__file__).parents[1] / "flows" / "digits_torch"
EPOCHS = 40
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
        ways: dict[str, Callable[[Platform], None]] = {
            "on our agent": _train_on_agent,  # first: it makes the environment
            "by hand": _train_by_hand,
        }
        for number in range(rounds + 1):
            announce(f"round {number} of {rounds}" if number else "one run of each, not counted")
            for name, train in ways.items():
                train(platform)
                if number:
                    rates[name].append(_read_rate(platform))
    hand, agent = (
        Measure(what=f"images/s {name}", unit="1/s", values=tuple(values))
        for name, values in rates.items()
    )
    return [hand, agent], [compare(hand, agent, limit=1 / LEAST)]


def _train_on_agent(platform: Platform) -> None:
    platform.run("flows", "run", "digits-torch/train", "--follow", "--param", f"epochs={EPOCHS}")


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
    environment = platform.environment("agent")
    with httpx.Client(
        base_url=f"{environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow",
        auth=(environment["MLFLOW_TRACKING_USERNAME"], environment["MLFLOW_TRACKING_PASSWORD"]),
    ) as mlflow:
        experiment = mlflow.get(
            "/experiments/get-by-name", params={"experiment_name": "digits_torch"}
        ).json()["experiment"]
        search = {
            "experiment_ids": [experiment["experiment_id"]],
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        (run,) = mlflow.post("/runs/search", json=search).json()["runs"]
        history = mlflow.get(
            "/metrics/get-history",
            params={"run_id": run["info"]["run_id"], "metric_key": METRIC},
        ).json()["metrics"]
    if len(history) != EPOCHS:
        raise RuntimeError(f"{run['info']['run_name']}: {len(history)} of {EPOCHS} epochs")
    return statistics.median(float(point["value"]) for point in history)


if __name__ == "__main__":
    run_bench(bench, rounds=5)
