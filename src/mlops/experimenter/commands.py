"""Commands for experiment projects: `mlops project …`."""

import json
import shlex
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
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a project: a git repository with DVC, MLflow and a first pipeline that runs."""
    from mlops.experimenter.project import create_project
    from mlops.settings import CheckoutSettings, ProjectSettings

    checkout = CheckoutSettings.from_environment().mlops_checkout
    place = parent or (checkout / "dev-projects" if checkout else Path())
    made = create_project(place, name, bucket=ProjectSettings.from_environment().dvc_bucket_name)
    if as_json:
        print(json.dumps(made.model_dump(mode="json")))
        return
    print(f"{made.folder}: made; its data goes to {made.remote}")
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
    from mlops.experimenter.packages import find_project, replace_process

    replace_process(find_project(Path.cwd()), command)
