"""A project's packages, and commands that are run with them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlops.errors import MlopsError
from mlops.experimenter.transfers import find_transfer, run_transfer
from mlops.uv_program import find_uv


def find_project(place: Path) -> Path:
    """Return the project that a folder lies in.

    Raises:
        MlopsError: It lies in none.
    """
    for folder in (place, *place.parents):
        if (folder / ".dvc" / "config").is_file():
            return folder
    raise MlopsError(
        f"{place}: not in a project", hint="go into one, or make it with `mlops project new NAME`"
    )


def run(project: Path, command: list[str]) -> int:
    """Run a command that finds the project's packages.

    This process becomes the command, unless that moves data: then there is more to say.

    Returns:
        The exit code of a command that moves data; others do not return.

    Args:
        project: The project's folder.
        command: The program and its arguments; it is run where this process is.

    Raises:
        MlopsError: The packages cannot be installed, or there is no such program.
    """
    environment = dict(os.environ)
    venv = project / ".venv"
    if venv.is_dir() or shutil.which("dvc") is None:
        _install(project, venv)
        environment["VIRTUAL_ENV"] = str(venv)
        environment["PATH"] = f"{venv / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
    sys.stdout.flush()
    try:
        if remote := find_transfer(project, command):
            return run_transfer(remote, command, environment)
        os.execvpe(command[0], command, environment)  # noqa: S606  # what the user asks for
    except OSError as error:
        raise MlopsError(f"{command[0]}: {error.strerror}") from None


def _install(project: Path, venv: Path) -> None:
    """Bring `.venv` up to requirements.txt; where nothing has changed this takes no time."""
    requirements = project / "requirements.txt"
    if not requirements.is_file():
        raise MlopsError(f"{requirements}: no such file", hint="list the project's packages in it")
    steps = [["pip", "install", "--quiet", "--python", str(venv), "-r", str(requirements)]]
    if not (venv / "pyvenv.cfg").is_file():
        print(f"installing the packages of {requirements}", file=sys.stderr)
        steps.insert(0, ["venv", "--quiet", "--clear", "--python", sys.executable, str(venv)])
    for step in steps:
        done = subprocess.run([find_uv(), *step], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MlopsError(f"{requirements}: cannot be installed:\n{done.stderr.strip()}")
