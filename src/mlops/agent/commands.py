"""`mlops agent …`: the process that runs flows, and how it is."""

import json
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
        int | None, typer.Option(min=1, help="Runs at a time; default: MLOPS_SLOTS, GPUs or cores.")
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


@app.command()
def status(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Show the agents of this host: runs, GPUs, warm environments, caches, last contact.

    The exit code is 1 when there is none, or one is not well.
    """
    from mlops.agent.inquiry import ask_agents
    from mlops.settings import AgentCacheSettings

    folder = AgentCacheSettings.from_environment().mlops_cache_dir
    reports = ask_agents(folder)
    if as_json:
        print(json.dumps({"agents": [report.model_dump(mode="json") for report in reports]}))
    else:
        from rich.console import Console

        from mlops.agent.status_table import render

        console = Console(highlight=False, soft_wrap=True)
        for report in reports:
            for part in render(report):
                console.print(part)
    if not reports:
        raise MlopsError(
            f"no agent runs here: {folder / 'agents'} names none",
            hint="start one: `./mlops local up`, or `docker compose up -d --wait` in flow_agent; "
            "MLOPS_CACHE_DIR names the cache of one that is elsewhere",
        )
    if unwell := [report for report in reports if not report.healthy]:
        raise MlopsError("\n  ".join(f"{report.name}: {report.problem}" for report in unwell))
