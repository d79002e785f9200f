"""`mlops agent …`: the process that runs flows."""

import os
import sys
import tempfile
from typing import Annotated

import typer

from mlops.errors import MlopsError

app = typer.Typer(no_args_is_help=True, help="The agent: runs flows on this host.")


@app.command()
def start(
    *,
    name: Annotated[
        str | None, typer.Option(help="Name of the worker in Prefect; default: agent-<host>-<pid>.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: cores.")
    ] = None,
) -> None:
    """Serve POOL_NAME/QUEUE_NAME until stopped; both are created when missing."""
    from mlops.settings import AgentSettings

    settings = AgentSettings.from_environment()
    temporary = settings.mlops_cache_dir / "tmp"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MlopsError(
            f"{settings.mlops_cache_dir}: cannot be made: {error.strerror}",
            hint="point MLOPS_CACHE_DIR to a folder that the agent may write to",
        ) from error
    # Prefect keeps /tmp/runner_storage, which would be shared with agents of other users.
    tempfile.tempdir = str(temporary)
    # Read by Prefect when it is imported, which is why the import comes after.
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "1.5")
    from mlops.agent.service import serve

    serve(
        settings,
        name=name,
        limit=limit,
        printer=lambda line: print(line, file=sys.stdout, flush=True),
    )
