"""The command line of the server stack."""

from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The server stack: Prefect, MLflow, their set-up.")


class Stage(StrEnum):
    """A part of the set-up, by what must be running before it."""

    STORAGE = "storage"
    PREFECT = "prefect"
    MLFLOW = "mlflow"


@app.command()
def setup(
    stage: Annotated[
        Stage, typer.Option(help="storage: databases and buckets; the others: after that server.")
    ],
) -> None:
    """Create what the platform needs, or set right what differs; safe to run again.

    Stage `storage` needs PostgreSQL and the object store and goes before the servers: roles,
    databases, buckets. Stage `prefect` (the work pool) and stage `mlflow` (the users) need
    the server of that name.
    """
    for line in _converge(stage):
        print(line)


def _converge(stage: Stage) -> list[str]:
    from mlops.settings import MlflowSetupSettings, PrefectSetupSettings, StorageSetupSettings

    if stage is Stage.STORAGE:
        from mlops.server.buckets import converge_buckets
        from mlops.server.databases import converge_databases

        settings = StorageSetupSettings.from_environment()
        return converge_databases(settings) + converge_buckets(settings)
    if stage is Stage.PREFECT:
        from mlops.server.work_pools import converge_work_pool

        return converge_work_pool(PrefectSetupSettings.from_environment())
    from mlops.server.mlflow_users import converge_mlflow_users

    return converge_mlflow_users(MlflowSetupSettings.from_environment())


@app.command()
def prefect() -> None:
    """Run the Prefect server in this process."""
    from mlops.server.prefect import run_prefect
    from mlops.settings import PrefectServerSettings

    run_prefect(PrefectServerSettings.from_environment())


@app.command()
def mlflow() -> None:
    """Run the MLflow tracking server in this process."""
    from mlops.server.mlflow import run_mlflow
    from mlops.settings import MlflowServerSettings

    run_mlflow(MlflowServerSettings.from_environment())
