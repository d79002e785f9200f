"""`mlops flows list` and `run`: what is registered, and a run now."""

import sys
from typing import Annotated

import typer

from mlops.scheduler.printing import AsJson, print_json


def list_flows(*, as_json: AsJson = False) -> None:
    """List the deployments with their schedule, next run and last state."""
    from rich.console import Console
    from rich.table import Table

    from mlops.prefect_api import PrefectApi
    from mlops.scheduler.listing import deployments
    from mlops.settings import SchedulerSettings

    rows = deployments(PrefectApi(SchedulerSettings.from_environment()))
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    # Never shortened in a pipe, where the console takes 80 columns for granted.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = Table("deployment", box=None, pad_edge=False)
    for column in ("pool/queue", "schedule", "next run", "last run", "code"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.work_pool}/{row.work_queue}",
            "paused" if row.paused else row.schedule,
            f"{row.next_run:%Y-%m-%d %H:%M %Z}" if row.next_run else "",
            row.last_state or "",
            row.version or "",
        )
    console.print(table if rows else "no flow is registered")


def run(
    target: Annotated[str, typer.Argument(help="A flow folder, flow/deployment, or its name.")],
    *,
    follow: Annotated[bool, typer.Option(help="Show states and log lines until it ends.")] = False,
    param: Annotated[
        list[str] | None, typer.Option(help="name=value; the value is JSON or text. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run now; with --follow the exit code says whether it completed."""
    from mlops.prefect_api import connect
    from mlops.runs import following
    from mlops.runs.printing import show_events
    from mlops.scheduler import runs
    from mlops.settings import SchedulerSettings

    settings = SchedulerSettings.from_environment()
    with connect(settings) as api:
        deployment = runs.find_deployment(api, target)
        parameters = runs.parse_parameters(param or [], deployment.parameter_openapi_schema or {})
        flow_run = runs.start_run(api, deployment.id, parameters)
        url = settings.run_url(flow_run.id)
        report = {"flow_run_id": flow_run.id, "name": flow_run.name, "url": url}
        if not as_json:
            print(f"run {flow_run.name}: {url}")
        if not follow:
            if as_json:
                print_json(report)
            return
        state = show_events(following.follow(api, flow_run.id), url=url, to_stderr=as_json)
    completed = state is not None and state.name == "Completed"
    if as_json:
        message = state.message if state else ""
        print_json({**report, "state": state.name if state else None, "message": message})
    elif state is not None and not completed:
        print(f"mlops: {flow_run.name}: {state.name}: {state.message}", file=sys.stderr)
    raise typer.Exit(0 if completed else 1)
