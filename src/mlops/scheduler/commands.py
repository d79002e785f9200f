"""`mlops flows …`: validate, register, list, run and watch flow folders."""

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from mlops.errors import MlopsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from mlops.scheduler.register import Registration
    from mlops.settings import SchedulerSettings
    from mlops.storage import ObjectStore

app = typer.Typer(no_args_is_help=True, help="Flow folders: check, register, list, run.")

Paths = Annotated[
    list[Path] | None, typer.Argument(help="Flow folders, or folders of them; default: FLOW_DIR.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_LEVEL_NAMES = {10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "CRITICAL"}


@contextmanager
def platform() -> Iterator[tuple["SchedulerSettings", "ObjectStore", "SyncPrefectClient"]]:
    """Open the servers that registration talks to."""
    from mlops.prefect_api import connect
    from mlops.settings import SchedulerSettings
    from mlops.storage import ObjectStore

    settings = SchedulerSettings.from_environment()
    with connect(settings) as client:
        yield settings, ObjectStore(settings, settings.prefect_bucket_name), client


def _folders(paths: list[Path] | None) -> list[Path]:
    from mlops.scheduler.spec import find_flow_folders
    from mlops.settings import FlowDirSettings

    if not paths:
        paths = [FlowDirSettings.from_environment().flow_dir]
    return [folder for path in paths for folder in find_flow_folders(path)]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _warn(message: str) -> None:
    print(f"mlops: warning: {message}", file=sys.stderr)


@app.command()
def check(paths: Paths = None, *, as_json: AsJson = False) -> None:
    """Validate flow folders without talking to any server."""
    from mlops.scheduler.register import check as check_folder
    from mlops.scheduler.register import refuse_twins

    report = []
    failed = False
    folders = _folders(paths)
    refuse_twins(folders)
    for folder in folders:
        try:
            checked = check_folder(folder)
        except MlopsError as error:
            failed = True
            mistakes = str(error).splitlines()
            report.append({"folder": folder, "mistakes": mistakes})
            if not as_json:
                print(error, file=sys.stderr)
            continue
        report.append(
            {
                "folder": folder,
                "name": checked.name,
                "warnings": checked.warnings,
                "mistakes": [],
            }
        )
        if not as_json:
            for warning in checked.warnings:
                _warn(warning)
            print(f"{folder}: good ({checked.name})")
    if as_json:
        _print_json(report)
    raise typer.Exit(1 if failed else 0)


@app.command()
def register(paths: Paths = None, *, as_json: AsJson = False) -> None:
    """Upload flow folders and create or update their deployments.

    A folder with mistakes is reported, and nothing of it is written; the others are registered.
    """
    from mlops.scheduler.register import refuse_twins
    from mlops.scheduler.register import register as register_folder
    from mlops.scheduler.spec import FlowYamlError

    folders = _folders(paths)
    refuse_twins(folders)
    done: list[Registration] = []
    failed = False
    progress = Console(stderr=True)
    with platform() as (_, store, client):
        for folder in folders:
            try:
                with progress.status(f"registering {folder}"):
                    done.append(register_folder(folder, store, client))
            except FlowYamlError as error:
                failed = True
                print(error, file=sys.stderr)
                continue
            for warning in done[-1].warnings:
                _warn(warning)
            if not as_json:
                _print_registration(done[-1])
    if as_json:
        _print_json([registration.model_dump(mode="json") for registration in done])
    raise typer.Exit(1 if failed else 0)


def _print_registration(done: "Registration") -> None:
    when = f"next run {done.next_run:%Y-%m-%d %H:%M %Z}" if done.next_run else "run by hand"
    print(f"{done.name}: {done.action}; code {done.code_uri}; {when}")


@app.command("list")
def list_flows(*, as_json: AsJson = False) -> None:
    """List the deployments with their schedule, next run and last state."""
    from mlops.scheduler.listing import deployments

    with platform() as (_, _store, client):
        rows = deployments(client)
    if as_json:
        _print_json([row.model_dump(mode="json") for row in rows])
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


@app.command()
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
    from mlops.scheduler import runs

    with platform() as (settings, _, client):
        deployment = runs.find_deployment(client, target)
        parameters = runs.parse_parameters(param or [], deployment.parameter_openapi_schema or {})
        flow_run = runs.start_run(client, deployment, parameters)
        url = settings.run_url(flow_run.id)
        report = {"flow_run_id": flow_run.id, "name": flow_run.name, "url": url}
        if not as_json:
            print(f"run {flow_run.name}: {url}")
        if not follow:
            if as_json:
                _print_json(report)
            return
        out = sys.stderr if as_json else sys.stdout
        state = None
        try:
            for event in runs.follow(client, flow_run.id):
                if isinstance(event, runs.LogLine):
                    level = _LEVEL_NAMES.get(event.level, str(event.level))
                    print(
                        f"{event.timestamp.astimezone():%H:%M:%S} {level:5} {event}",
                        file=out,
                    )
                elif isinstance(event, runs.StateChange):
                    state = event
                    print(f"{event.timestamp.astimezone():%H:%M:%S} ----- {event.name}", file=out)
                else:
                    _warn(event.message)
                out.flush()
        except KeyboardInterrupt:
            print(f"mlops: the run goes on: {url}", file=sys.stderr)
            raise
    completed = state is not None and state.name == "Completed"
    if as_json:
        message = state.message if state else ""
        _print_json({**report, "state": state.name if state else None, "message": message})
    elif state is not None and not completed:
        print(f"mlops: {flow_run.name}: {state.name}: {state.message}", file=sys.stderr)
    raise typer.Exit(0 if completed else 1)


@app.command()
def watch(
    path: Annotated[Path | None, typer.Argument(help="Default: FLOW_DIR.")] = None,
) -> None:
    """Register the flow folders below a path now and whenever they change (the scheduler)."""
    from mlops.prefect_api import connect
    from mlops.scheduler.register import register as register_folder
    from mlops.scheduler.watch import watch_folders
    from mlops.settings import SchedulerSettings
    from mlops.storage import ObjectStore

    settings = SchedulerSettings.from_environment(flow_dir=path)
    if not settings.flow_dir.is_dir():
        raise MlopsError(f"{settings.flow_dir}: no such folder", hint="check FLOW_DIR")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)

    def register_one(folder: Path) -> "Registration":
        with connect(settings) as client:
            store = ObjectStore(settings, settings.prefect_bucket_name)
            return register_folder(folder, store, client)

    watch_folders(settings.flow_dir, register_one)


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)
