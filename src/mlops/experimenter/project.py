"""A new project from the template in `new_project/`: a git repository with DVC and MLflow."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError

TEMPLATE = Path(__file__).with_name("new_project")
# As the template writes them.
_NAME = "my-project"
_BUCKET = "my-bucket"
# The project's name is a folder, an MLflow experiment and a prefix in S3, and is typed in shells.
_GOOD_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
# Until its user has told git who they are: `dvc exp run` makes commits, and fails without.
_IDENTITY = {"user.name": "mlops", "user.email": "mlops@localhost"}


class NewProject(BaseModel):
    """What `create_project` made.

    Attributes:
        folder: The repository.
        name: Of the project and of its MLflow experiment.
        remote: Where `dvc push` puts the data, `s3://bucket/name`.
        identity_missing: Whether git did not know its user, so that a stand-in was set.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    name: str
    remote: str
    identity_missing: bool


def create_project(parent: Path, name: str, *, bucket: str) -> NewProject:
    """Make a project whose first pipeline runs as it is.

    It is made aside and renamed into place: all of it is there, or nothing. No server is asked.

    Args:
        parent: Where to make it.
        name: Of its folder, of its MLflow experiment, and of its folder in the bucket.
        bucket: Where DVC keeps the data of all projects.

    Raises:
        MlopsError: The name is not good, the folder is there, its parent is not, or git fails.
    """
    if not _GOOD_NAME.fullmatch(name):
        good = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:40].strip("._-") or "my-project"
        raise MlopsError(
            f"the name {name!r} has more than letters, digits, '.', '_' and '-', begins or ends "
            "with one of these three, or is longer than 63 characters",
            hint=f"a good name is {good}",
        )
    folder = parent.absolute() / name
    if os.path.lexists(folder):
        raise MlopsError(f"{folder}: is there already", hint="choose another name")
    if not folder.parent.is_dir():
        raise MlopsError(f"{folder.parent}: no such folder", hint="make it first")
    try:
        with tempfile.TemporaryDirectory(prefix=".mlops-new-", dir=folder.parent) as aside:
            made = Path(aside, name)
            for source in sorted(_files()):
                target = made / source.relative_to(TEMPLATE)
                target.parent.mkdir(parents=True, exist_ok=True)
                text = source.read_text(encoding="utf-8")
                text = text.replace(_NAME, name).replace(_BUCKET, bucket)
                target.write_text(text, encoding="utf-8")
            identity_missing = _start_repository(made)
            made.rename(folder)
    except OSError as error:
        raise MlopsError(f"{folder}: cannot be made: {error.strerror}") from error
    return NewProject(
        folder=folder,
        name=name,
        remote=f"s3://{bucket}/{name}",
        identity_missing=identity_missing,
    )


def _files() -> list[Path]:
    """Return the template's files; what running them here left behind is none of it."""
    return [
        path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


def _start_repository(folder: Path) -> bool:
    """Make the first commit, and return whether git did not know whose it is."""
    _git(folder, "init", "--quiet", "--initial-branch=main")
    missing = not (_knows(folder, "user.name") and _knows(folder, "user.email"))
    if missing:
        for key, value in _IDENTITY.items():
            _git(folder, "config", key, value)
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--no-verify", "--message", "Start from the template")
    return missing


def _knows(folder: Path, key: str) -> bool:
    done = subprocess.run(
        ["git", "config", "--get", key], cwd=folder, capture_output=True, check=False
    )
    return done.returncode == 0


def _git(folder: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise MlopsError("git is not installed", hint="install the package git") from None
    if done.returncode:
        raise MlopsError(f"git {arguments[0]}: {done.stderr.strip()}")
