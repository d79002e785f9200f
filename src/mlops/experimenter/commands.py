"""Commands for experiment projects: `mlops project …`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Experiment projects: git, DVC and MLflow.", no_args_is_help=True)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the folder and the MLflow experiment.")],
    parent: Annotated[
        Path | None,
        typer.Option("--in", help="Default: dev-projects/ of a checkout, else this folder."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--from", help="A project to copy: one beside the new one, or a path."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a project: a git repository with DVC, MLflow and a first pipeline that runs."""
    from mlops.experimenter.project import create_project, find_template
    from mlops.settings import CheckoutSettings, ProjectSettings

    checkout = CheckoutSettings.from_environment().mlops_checkout
    place = parent or (checkout / "dev-projects" if checkout else Path())
    made = create_project(
        place,
        name,
        bucket=ProjectSettings.from_environment().dvc_bucket_name,
        template=find_template(place, template) if template else None,
    )
    if as_json:
        print(json.dumps(made.model_dump(mode="json")))
        return
    print(f"{made.folder}: made; its data goes to {made.remote}")
    if made.renamed:
        print(f"its name was put into {', '.join(map(str, made.renamed))}")
    if made.data_remote:
        print("data of `dvc add` is still with the other project; to have it here, too:")
        print(f"  dvc pull --remote {made.data_remote} && dvc push")
    if made.identity_missing:
        print("git does not know who you are, and will sign commits here as mlops until you say:")
        print("  git config --global user.name NAME; git config --global user.email ADDRESS")
        print(f"  git -C {shlex.quote(str(made.folder))} config --remove-section user")
    print(f"next: cd {shlex.quote(str(made.folder))} && dvc repro && dvc push")


@app.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run_in_project(
    command: Annotated[list[str], typer.Argument(help="For example: dvc repro")],
) -> None:
    """Run a command with a project's packages and the platform's servers.

    The project is the one that this folder lies in. Where dvc is not installed, as on a checkout,
    the packages of requirements.txt are put into its .venv first.
    """
    from mlops.experimenter.packages import find_project, run

    raise typer.Exit(run(find_project(Path.cwd()), command))


@app.command("to-flow")
def to_flow(
    project: Annotated[
        Path | None, typer.Argument(help="Default: the one that this folder lies in.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the flow folder; default: the project's.")
    ] = None,
    flows: Annotated[
        Path | None, typer.Option("--in", help="Where to make it; default: FLOW_DIR.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="An output to pull instead of making it; default: the raw data."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a flow folder that runs a project's stages on an agent, with the same data."""
    from mlops.experimenter.packages import find_project
    from mlops.experimenter.to_flow import create_project_flow
    from mlops.settings import FlowDirSettings

    made = create_project_flow(
        find_project((project or Path()).absolute()),
        flows or FlowDirSettings.from_environment().flow_dir,
        name,
        data or [],
    )
    for warning in made.warnings:
        print(f"mlops: warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(made.model_dump(mode="json")))
        return
    print(f"{made.folder}: made; a run")
    for path, reference in made.data.items():
        print(f"  pulls {path} ({reference})")
    print(f"  runs {', '.join(made.stages)}")
    print(f"next: mlops flows register {shlex.quote(str(made.folder))}")
