"""A project's files as they are, or as they were at a revision in git."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mlops.data.dvc_files import LOCK_NAME, SUFFIX
from mlops.errors import MlopsError

_SKIPPED = {"__pycache__", "node_modules"}


class Tree(Protocol):
    """Where a project's files are read from; paths are relative to it, with forward slashes."""

    def sources(self) -> list[str]:
        """Return the paths of all `*.dvc` and `dvc.lock` files."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is none."""


class WorkingTree:
    """The files as they are.

    Args:
        root: The project's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def sources(self) -> list[str]:
        """Return the paths of all `*.dvc` and `dvc.lock` files."""
        return sorted(self._walk())

    def _walk(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root):
            # What is tracked itself may be large, and holds none of these files.
            tracked = {name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX)}
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and name not in _SKIPPED | tracked
            ]
            for name in files:
                if is_source(name):
                    yield Path(folder, name).relative_to(self._root).as_posix()

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is none."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None


class GitTree:
    """The files at a revision.

    Args:
        root: The project's folder, in a git repository.
        revision: A commit, branch or tag.

    Raises:
        MlopsError: There is no such revision, or no repository.
    """

    def __init__(self, root: Path, revision: str) -> None:
        self._root = root
        commit = self._git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", "--")
        if commit is None:
            if self._git("rev-parse", "--git-dir") is None:
                raise MlopsError(f"{root}: not in a git repository, so there is no {revision}")
            names = self._git("for-each-ref", "--format=%(refname:short)", "--count=20") or b""
            known = ", ".join(names.decode().split())
            raise MlopsError(
                f"{root}: git knows no revision {revision!r}",
                hint=f"`git fetch --tags` gets new ones; there are: {known or 'none'}",
            )
        self._commit = commit.decode().split()[0]

    def sources(self) -> list[str]:
        """Return the paths of all `*.dvc` and `dvc.lock` files."""
        listing = self._git("ls-tree", "-r", "-z", "--name-only", self._commit, ".") or b""
        paths = [os.fsdecode(path) for path in listing.split(b"\0") if path]
        return sorted(path for path in paths if is_source(path.rpartition("/")[2]))

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None if there is none."""
        return self._git("show", f"{self._commit}:./{path}")

    def _git(self, *arguments: str) -> bytes | None:
        """Return what git prints; None: it has failed."""
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=self._root, capture_output=True, check=False
            )
        except FileNotFoundError:
            raise MlopsError("git is not installed", hint="without it, leave --rev out") from None
        return None if done.returncode else done.stdout


def is_source(name: str) -> bool:
    """Return whether a file of this name says what DVC tracks."""
    return name == LOCK_NAME or (name.endswith(SUFFIX) and name != SUFFIX)
