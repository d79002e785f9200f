"""`mlops flows …`: validate, register, watch and prune flow folders."""

import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops.errors import MlopsError
from mlops.scheduler import prune_commands, run_commands, watch_commands
from mlops.scheduler.printing import AsJson, print_json, show_upload, warn

if TYPE_CHECKING:
    from mlops.scheduler.flow_folder import ReadFlow
    from mlops.scheduler.register import Registration

app = typer.Typer(no_args_is_help=True, help="Flow folders: check, register, list, run.")

Paths = Annotated[
    list[Path] | None, typer.Argument(help="Flow folders, or folders of them; default: FLOW_DIR.")
]


def _folders(paths: list[Path] | None) -> list[Path]:
    from mlops.scheduler.spec import find_flow_folders
    from mlops.settings import FlowDirSettings

    if not paths:
        paths = [FlowDirSettings.from_environment().flow_dir]
    folders: list[Path] = []
    for path in paths:
        found = find_flow_folders(path)
        if not found:
            raise MlopsError(
                f"{path}: no flow here", hint="a flow folder holds flow.yaml or config/flow.yaml"
            )
        folders += found
    return folders


@app.command()
def check(paths: Paths = None, *, as_json: AsJson = False) -> None:
    """Validate flow folders without talking to any server."""
    from mlops.scheduler import flow_folder

    report: list[dict[str, Any]] = []
    failed = False
    places: dict[str, list[Path]] = defaultdict(list)
    for folder in _folders(paths):
        try:
            flow = flow_folder.read(folder)
            schema = flow_folder.check_parameters(flow)
        except MlopsError as error:
            failed = True
            report.append({"folder": folder, "mistakes": str(error).splitlines()})
            if not as_json:
                print(error, file=sys.stderr)
            continue
        name = flow.checked.name
        places[name].append(folder)
        warnings = _warnings(flow, schema)
        report.append({"folder": folder, "name": name, "warnings": warnings, "mistakes": []})
        if not as_json:
            for warning in warnings:
                warn(warning)
            print(f"{folder}: good ({name})")
    failed |= _tell_twins(places, report)
    if as_json:
        print_json(report)
    raise typer.Exit(1 if failed else 0)


def _tell_twins(places: Mapping[str, list[Path]], report: list[dict[str, Any]]) -> bool:
    """Tell of folders that are the same deployment, and return whether there are any."""
    found = False
    for name, twins in places.items():
        if len({folder.resolve() for folder in twins}) > 1:
            found = True
            mistake = f"{' and '.join(map(str, twins))} are both the deployment {name}"
            print(mistake, file=sys.stderr)
            for entry in report:
                if entry["folder"] in twins:
                    entry["mistakes"] = [mistake]
    return found


def _warnings(flow: "ReadFlow", schema: Mapping[str, Any]) -> list[str]:
    from mlops.scheduler import flow_folder

    files = flow.bundle.manifest.files
    return [
        *flow_folder.warnings(flow.checked),
        *flow_folder.unset_parameters(flow.checked, schema),
        *flow_folder.large_files(files, flow.bundle.folder),
    ]


@app.command()
def register(paths: Paths = None, *, as_json: AsJson = False) -> None:
    """Upload flow folders and create or update their deployments.

    A folder with mistakes is reported, and nothing of it is written; the others are registered.
    """
    from mlops.scheduler.register import Refusal, Registrar
    from mlops.settings import SchedulerSettings

    folders = _folders(paths)
    settings = SchedulerSettings.from_environment()
    report: list[dict[str, Any]] = []
    failed = False
    with Registrar(settings, warn=warn, show_upload=show_upload, show_parameters=True) as registrar:
        for outcome in registrar.register(folders):
            if isinstance(outcome, Refusal):
                failed = True
                print(outcome.message, file=sys.stderr)
                report.append({"action": "refused", **outcome.model_dump(mode="json")})
                continue
            report.append(outcome.model_dump(mode="json"))
            if not as_json:
                _print_registration(outcome)
    if as_json:
        print_json(report)
    raise typer.Exit(1 if failed else 0)


def _print_registration(done: "Registration") -> None:
    when = "no run ahead" if done.scheduled else "run by hand"
    if done.next_run:
        when = f"next run {done.next_run:%Y-%m-%d %H:%M %Z}"
    print(f"{done.name}: {done.action}; code {done.code_uri}; {when}", flush=True)


app.command("list")(run_commands.list_flows)
app.command("run")(run_commands.run)
app.command("prune")(prune_commands.prune)
app.command("watch")(watch_commands.watch)


@app.command()
def schema() -> None:
    """Print the JSON Schema of flow.yaml, by which editors check and complete it."""
    from mlops.scheduler.flow_yaml import json_schema

    print_json(json_schema())


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="Name of the flow in FLOW_DIR, or a path if it has a slash.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a flow folder that registers and runs, to change into your own."""
    from mlops.scheduler.template import create_flow
    from mlops.settings import FlowDirSettings

    parent, slash, last = name.rstrip("/").rpartition("/")
    folder = Path(parent or "/") if slash else FlowDirSettings.from_environment().flow_dir
    made = create_flow(folder, last)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    print(f"made {made.folder} ({', '.join(file.name for file in made.files)}); next:")
    print(f"  mlops flows register {shlex.quote(str(made.folder))}")
    print(f"  mlops flows run {shlex.quote(made.name)} --follow")
