"""git, as projects need it."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlops.errors import MlopsError


def run_git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run git in a folder, and return what it says.

    Args:
        folder: Where to run it.
        arguments: Without `git` itself.
        environment: Variables besides those of this process.

    Raises:
        MlopsError: It is not installed, or fails.
    """
    done = try_git(folder, *arguments, environment=environment)
    if done.returncode:
        raise MlopsError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def try_git(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, whatever its exit code.

    Raises:
        MlopsError: It is not installed.
    """
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise MlopsError("git is not installed", hint="install the package git") from None


def source_files(folder: Path) -> list[Path]:
    """Return the files of a folder that none of its .gitignore files lists, sorted.

    A repository around the folder is not asked: there may be none, as in the experimenter's
    container, and the answer is the same everywhere.

    Args:
        folder: A project; the paths are relative to it.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-git-") as repository:
        aside = {"GIT_DIR": repository, "GIT_WORK_TREE": str(folder)}
        run_git(folder, "init", "--quiet", environment=aside)
        listed = run_git(
            folder, "ls-files", "-z", "--others", "--exclude-standard", environment=aside
        )
    # A folder is listed, with a slash, where another repository begins.
    files = [Path(name) for name in listed.split("\0") if name and not name.endswith("/")]
    return sorted(path for path in files if not (folder / path).is_dir())
