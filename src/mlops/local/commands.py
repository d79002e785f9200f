"""The command line of the embedded way."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The whole platform on this machine, in processes.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def up(as_json: Json = False) -> None:
    """Start what is not running and wait until everything is healthy."""
    from mlops.local.progress import Progress
    from mlops.local.startup import start_platform
    from mlops.settings import LocalSettings

    with Progress(quiet=as_json) as progress:
        started = start_platform(LocalSettings.from_environment(), progress.report)
    home, state, credentials = started.situation
    from mlops.local.home import HOST, addresses

    urls = addresses(state.ports).model_dump() | {"postgres": f"{HOST}:{state.ports.postgres}"}
    if as_json:
        print(
            json.dumps(
                {
                    "home": str(home.path),
                    "addresses": urls,
                    "credentials_file": str(home.credentials_file),
                    "flow_dir": state.flow_dir,
                    "seconds": {name: round(s, 2) for name, s in started.seconds.items()},
                    "total_seconds": round(progress.seconds, 2),
                    "notes": started.notes,
                }
            )
        )
        return
    for note in started.notes:
        print(f"note: {note}")
    what = "everything was up already" if not started.seconds else "up"
    print(f"{what}, {progress.seconds:.1f} s")
    print(
        f"  Prefect  {urls['prefect']}  user:password {credentials.prefect_username}:"
        "PREFECT_PASSWORD"
    )
    print(
        f"  MLflow   {urls['mlflow']}  user {credentials.mlflow_admin_username}, "
        "MLFLOW_ADMIN_PASSWORD"
    )
    print(f"  S3       {urls['s3']}  MINIO_ROOT_USER, MINIO_ROOT_PASSWORD")
    print(f"  Postgres {urls['postgres']}  user postgres, POSTGRES_PASSWORD")
    print(f"The values of these names are in {home.credentials_file}.")


@app.command()
def down(as_json: Json = False) -> None:
    """Stop everything; the data stays."""
    from mlops.local.shutdown import stop_platform
    from mlops.settings import LocalSettings

    home = LocalSettings.from_environment().mlops_home
    stopped = stop_platform(
        home, (lambda _name: None) if as_json else (lambda name: print(f"{name} stopped"))
    )
    if as_json:
        print(json.dumps({"home": str(home), "stopped": stopped}))
    else:
        print("down; the data is kept" if stopped else f"nothing of {home} was running")


@app.command()
def status(as_json: Json = False) -> None:
    """Show each service: its state, address, memory and health."""
    from mlops.local.status import read_status
    from mlops.settings import LocalSettings

    platform = read_status(LocalSettings.from_environment().mlops_home)
    if as_json:
        print(platform.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column, justify in (
        ("service", "left"),
        ("state", "left"),
        ("address", "left"),
        ("pid", "right"),
        ("memory", "right"),
        ("up", "right"),
        ("health", "left"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for service in platform.services:
        table.add_row(
            service.name,
            service.state,
            service.address or "",
            str(service.pid or ""),
            f"{service.memory_bytes / 1e6:.0f} MB" if service.memory_bytes else "",
            _duration(service.uptime_seconds),
            "healthy" if service.healthy else service.problem or "",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{platform.state}, {platform.memory_bytes / 1e6:.0f} MB, {platform.home}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def logs(
    service: Annotated[
        str | None, typer.Argument(help="One of `mlops local status`, or `supervisor`.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many, each.")] = 50,
) -> None:
    """Print the last lines of the logs."""
    from mlops.local.home import Home
    from mlops.local.logs import follow_logs, last_lines, log_files
    from mlops.settings import LocalSettings

    files = log_files(Home(LocalSettings.from_environment().mlops_home), service)
    for name, path in files.items():
        for line in last_lines(path, lines):
            print(line if service else f"{name:14} {line}")
    if follow:
        sys.stdout.flush()
        for name, line in follow_logs(files):
            print(line if service else f"{name:14} {line}", flush=True)


@app.command("service", hidden=True)
def run_service(name: str) -> None:
    """Become one service; what the supervisor runs."""
    from mlops.local.home import Home
    from mlops.local.services import become
    from mlops.settings import LocalSettings

    become(name, Home(Path(LocalSettings.from_environment().mlops_home)))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
