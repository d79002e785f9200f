"""The command line of the server stack."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The server stack: Prefect, MLflow, their set-up.")


@app.command()
def setup(
    *,
    s3_users: Annotated[
        bool,
        typer.Option(
            "--s3-users",
            help="MinIO's users and policies too; other S3 servers are given theirs at the start.",
        ),
    ] = False,
) -> None:
    """Create what the servers need, or set right what differs; safe to run again.

    Roles, databases and buckets. What lies inside Prefect and MLflow (the work pool, the users)
    these servers make themselves when they start.
    """
    from mlops.server.buckets import converge_buckets
    from mlops.server.databases import converge_databases
    from mlops.settings import S3UsersSettings, SetupSettings

    settings = SetupSettings.from_environment()
    users = S3UsersSettings.from_environment() if s3_users else None
    for line in converge_databases(settings) + converge_buckets(settings):
        print(line)
    if users:
        from mlops.server.s3_users import converge_s3_users

        for line in converge_s3_users(users):
            print(line)


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
