"""`mlops demo`: the main job from nothing to a trained model, with what to look at afterwards."""

import datetime as dt
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError

if TYPE_CHECKING:
    from mlops.local.startup import Started
    from mlops.prefect_api import PrefectApi

FLOW = Path("flows/digits")
COMPLETED = "Completed"


class DemoReport(BaseModel):
    """What the demo did; also what `--json` prints. Steps are in seconds."""

    model_config = ConfigDict(frozen=True)

    state: str
    message: str
    steps: dict[str, float]
    accuracy: float | None
    prefect_run: str
    mlflow_run: str | None
    model: str | None
    model_url: str | None
    artifacts: str | None
    code: str
    next_run: dt.datetime | None
    credentials_file: Path
    notes: list[str]


class Steps:
    """Shows one step after the other, live on a terminal and as lines elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console

        self._console = Console(stderr=quiet, highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time one step; gives a function that prints a line while it goes on."""
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        began = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(name)
            yield lambda line: progress.console.print(f"  {line}", style="dim", markup=False)
        self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Show a step that was timed elsewhere."""
        self.seconds[name] = seconds
        self._console.print(f"{name}: {seconds:.1f} s")


def demo(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False
) -> None:
    """Start everything, train `flows/digits`, and say where to look; leaves it running."""
    from mlops.local.home import client_environment
    from mlops.local.progress import Progress
    from mlops.local.startup import start_platform
    from mlops.settings import LocalSettings

    local = LocalSettings.from_environment()
    folder = (local.mlops_checkout or Path.cwd()) / FLOW
    if not folder.is_dir():
        raise MlopsError(f"{folder}: not here", hint="run the demo in a checkout of the project")
    with Progress(quiet=as_json) as progress:
        started = start_platform(local, progress.report)
    steps = Steps(quiet=as_json)
    steps.add("start the platform", progress.seconds)
    # Whatever platform the user's own environment names, the demo talks to this one.
    for role in ("experimenter", "scheduler"):
        os.environ.update(client_environment(local.mlops_home, role) or {})
    try:
        report = _train(folder, started, steps)
    except KeyboardInterrupt:
        print("mlops: the platform stays up; `./mlops local down` stops it", file=sys.stderr)
        raise
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        _print_report(report)
    raise typer.Exit(0 if report.state == COMPLETED else 1)


def _train(folder: Path, started: "Started", steps: Steps) -> DemoReport:
    """Register the flow, run it, follow it, and collect what came out."""
    from mlops import lineage
    from mlops.mlflow_api import MlflowApi
    from mlops.prefect_api import connect
    from mlops.runs import following
    from mlops.scheduler import runs
    from mlops.scheduler.listing import next_run
    from mlops.scheduler.printing import show_upload, warn
    from mlops.scheduler.register import Refusal, Registrar
    from mlops.settings import MlflowSettings, SchedulerSettings

    settings = SchedulerSettings.from_environment()
    with connect(settings) as api:
        with steps.step("register flows/digits"):
            with Registrar(settings, warn=warn, show_upload=show_upload) as registrar:
                (registration,) = registrar.register([folder])
            if isinstance(registration, Refusal):
                raise MlopsError(registration.message)
        flow_run = runs.start_run(api, registration.deployment_id, {})
        last = None
        with steps.step("run it on the agent") as show:
            for event in following.follow(api, flow_run.id):
                if isinstance(event, following.StateChange):
                    last = event
                    show(event.name)
                elif isinstance(event, following.LogLine):
                    show(str(event))
                else:
                    show(event.message)
        for name, seconds in _run_steps(api, flow_run.id).items():
            steps.add(f"  {name}", seconds)
        # The one that the server has scheduled, else the one that it will.
        due = next_run(api, registration.deployment_id) or registration.next_run
    tracked = MlflowApi(MlflowSettings.from_environment()).find_run(
        lineage.FLOW_RUN, str(flow_run.id)
    )
    home = started.situation.home
    return DemoReport(
        state=last.name if last else "unknown",
        message=last.message if last else "",
        steps={name.strip(): round(seconds, 1) for name, seconds in steps.seconds.items()},
        accuracy=tracked.metrics.get("accuracy") if tracked else None,
        prefect_run=settings.run_url(flow_run.id),
        mlflow_run=tracked.url if tracked else None,
        model=tracked.model if tracked else None,
        model_url=tracked.model_url if tracked else None,
        artifacts=tracked.artifact_uri if tracked else None,
        code=registration.code_uri,
        next_run=due,
        credentials_file=home.credentials_file,
        notes=started.notes,
    )


def _run_steps(api: "PrefectApi", flow_run_id: UUID) -> dict[str, float]:
    """Return the seconds until the flow began and those of each of its tasks, in their order."""
    run = api.send("GET", f"/flow_runs/{flow_run_id}")
    keys = ("created", "start_time")
    times = [dt.datetime.fromisoformat(run[key]) for key in keys if run[key]]
    waited = (times[-1] - times[0]).total_seconds() if times else 0
    query = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}}
    tasks = [task for task in api.post("/task_runs/filter", query) if task["start_time"]]
    return {"pick-up and environment": waited} | {
        task["name"].rpartition("-")[0] or task["name"]: task["total_run_time"]
        for task in sorted(tasks, key=lambda task: str(task["start_time"]))
    }


def _print_report(report: DemoReport) -> None:
    rows = {
        "state": report.state,
        "accuracy": f"{report.accuracy:.4f}" if report.accuracy is not None else "none was logged",
        "Prefect run": report.prefect_run,
        "MLflow run": report.mlflow_run or "none",
        "model": f"{report.model}  {report.model_url}" if report.model else "none",
        "artifacts": report.artifacts or "none",
        "code": report.code,
        "next run": f"{report.next_run:%Y-%m-%d %H:%M %Z}" if report.next_run else "none",
        "log in": "Prefect: admin:<PREFECT_PASSWORD> in its one field; "
        "MLflow: user admin, <MLFLOW_ADMIN_PASSWORD>",
        "passwords": str(report.credentials_file),
        "look": "./mlops local status, ./mlops local logs",
        "stop": "./mlops local down  (the data stays)",
    }
    print()
    for note in report.notes:
        print(f"note: {note}")
    for name, value in rows.items():
        print(f"{name:12} {value}")
    if report.state != COMPLETED:
        print(f"mlops: the run is {report.state}: {report.message}", file=sys.stderr)
