"""Experiment projects on the embedded platform, whose packages are installed once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from embedded.conftest import Platform

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = Path("dev-projects", "green_taxi")
NAME = "first-day"


class Projects(NamedTuple):
    """What is run in projects as their user would, with one environment for all of them.

    Attributes:
        platform: The servers.
        packages: An environment with the packages of every project here.
    """

    platform: Platform
    packages: Path

    def run(self, folder: Path, *command: str, **variables: str) -> str:
        """Run a command with the packages of the project in a folder; it must end well."""
        done = self.attempt(folder, *command, **variables)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def attempt(
        self, folder: Path, *command: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command likewise, whatever its exit code, with more variables set."""
        return subprocess.run(
            [sys.executable, "-m", "mlops", "project", "exec", *command],
            cwd=folder,
            env=self.platform.environment() | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def share(self, project: Path) -> None:
        """Give a project the packages that are there already."""
        (project / ".venv").symlink_to(self.packages)


@pytest.fixture(scope="session")
def projects(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Projects:
    """The example's packages, installed by `mlops project exec`; others need no more."""
    folder = tmp_path_factory.mktemp("packages")
    shutil.copy(CHECKOUT / EXAMPLE / "requirements.txt", folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("")
    found = Projects(platform, folder / ".venv")
    assert "dvc" in found.run(folder, "python", "-c", "import dvc; print(dvc)")
    return found


@pytest.fixture(scope="session")
def project(projects: Projects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project from the template whose pipeline ran, was committed and pushed.

    Several modules use it: each leaves its files as they were committed.
    """
    parent = tmp_path_factory.mktemp("projects")
    made = projects.platform.cli("project", "new", NAME, "--in", str(parent), "--json")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert report["remote"] == f"s3://dvc/{NAME}"
    folder = Path(report["folder"])
    projects.share(folder)
    projects.run(folder, "dvc", "repro")
    commit(folder, "Train")
    projects.run(folder, "dvc", "push")
    return folder


def restore(project: Path, projects: Projects) -> None:
    """Bring a project's files back to what was committed."""
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=project, check=True)
    projects.run(project, "dvc", "checkout")


def commit(folder: Path, message: str) -> None:
    """Commit all that git does not ignore."""
    for arguments in (["add", "--all"], ["commit", "--quiet", "--message", message]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


def clone(source: Path, target: Path) -> Path:
    """Clone a repository, with a name to commit under."""
    subprocess.run(["git", "clone", "--quiet", source, target], check=True)
    for key, value in (("user.name", "somebody"), ("user.email", "somebody@example.org")):
        subprocess.run(["git", "config", key, value], cwd=target, check=True)
    return target


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a folder's files by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
