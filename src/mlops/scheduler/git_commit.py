"""The git commit that a flow folder's code is, if it lies in a repository.

Git is asked in an environment without our credentials: a repository's own configuration may name
programs that git then runs.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

TIMEOUT_SECONDS = 10.0
DIRTY = "-dirty"  # as `git describe` writes it
_OPTIONS = (
    # A folder that is mounted belongs to somebody else.
    *("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    "--no-optional-locks",
    "--literal-pathspecs",
)


def git_commit(folder: Path, files: Iterable[str]) -> str | None:
    """Return the commit that is checked out around a folder.

    Args:
        folder: The flow folder.
        files: The paths in it that are its code. If the commit does not have all of them as they
            are, `-dirty` is at the end.

    Returns:
        The commit's 40 digits; None: there is no repository or no commit, or git is not here or
        takes too long.
    """
    folder = Path(os.path.realpath(folder))
    git = shutil.which("git")
    if git is None or not any((each / ".git").exists() for each in (folder, *folder.parents)):
        return None
    try:
        commit = _ask(git, folder, "rev-parse", "--verify", "HEAD").strip()
        tracked = set(_ask(git, folder, "ls-files", "-z").split("\0"))
        changed = _ask(
            *(git, folder, "diff", "--name-only", "--no-ext-diff", "--no-textconv", "-z"),
            *("--relative", "HEAD", "--", "."),
        ).split("\0")
    except (OSError, subprocess.SubprocessError):
        return None
    code = set(files)
    return commit if code <= tracked and code.isdisjoint(changed) else f"{commit}{DIRTY}"


def _ask(git: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [git, *_OPTIONS, *arguments],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    return done.stdout.decode(errors="surrogateescape")
