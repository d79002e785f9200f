"""The way from a flow run's page in Prefect to its MLflow runs."""

import re

from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun

from mlops.mlflow_api import LoggedRun

LINKS_KEY = "mlflow-runs"  # Prefect's artifacts are found by such keys
LINKED_RUNS = 50


def links_to_runs(flow_run: FlowRun, runs: list[LoggedRun]) -> ArtifactCreate:
    """Return the artifact by which a flow run's page in Prefect leads to its MLflow runs.

    Args:
        flow_run: The flow run.
        runs: Its MLflow runs. Of many that lie below others only the first are linked.
    """
    oldest_first = sorted(runs, key=lambda run: (run.parent_id is not None, run.start_time))
    shown = oldest_first[:LINKED_RUNS]
    lines = [
        "| MLflow run | status |",
        "| --- | --- |",
        *(f"| [{_in_table(run.name)}]({run.url}) | {run.status} |" for run in shown),
    ]
    if more := len(runs) - len(shown):
        lines += ["", f"and {more} more below them"]
    return ArtifactCreate(
        key=LINKS_KEY,
        type="markdown",
        description="What this run has logged to MLflow",
        data="\n".join(lines),
        flow_run_id=flow_run.id,
    )


def _in_table(name: str) -> str:
    return re.sub(r"([|\[\]\\`*_<])", r"\\\1", name)
