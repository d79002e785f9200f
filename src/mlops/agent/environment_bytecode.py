"""Bytecode that a new environment takes over from older ones of this host.

uv links the files of a package from its own cache, so that environments with the same version of it
share them, but not what Python has compiled of them: a first run would compile 3,000 modules anew,
which takes 4 s for Prefect, MLflow and pandas. Where a source file is the very same file in both
environments its bytecode is linked, too. Python itself looks whether bytecode fits its source, and
replaces files of bytecode and never writes into them, so that nothing of one environment can
change another.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_CACHE = "__pycache__"


def share_bytecode(target: Path, donors: Iterable[Path]) -> int:
    """Link the bytecode of files that other folders of packages have in common with this one.

    Args:
        target: Folder of an environment's packages, for one Python.
        donors: Those of others, for the same Python; the first has precedence.

    Returns:
        How many files were linked.
    """
    linked = 0
    for donor in donors:
        with contextlib.suppress(OSError):  # it is being removed, or lies on another disk
            linked += _share(str(target), str(donor))
    return linked


def _share(target: str, donor: str) -> int:
    linked = 0
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(donor + folder) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for name in folders:
            if name == _CACHE:
                linked += _share_folder(target + folder, donor + folder)
            elif not name.endswith(".dist-info") and os.path.isdir(f"{target}{folder}/{name}"):  # noqa: PTH112  # thousands
                pending.append(f"{folder}/{name}")
    return linked


def _share_folder(target: str, donor: str) -> int:
    """Link the bytecode of one folder's modules."""
    cache = f"{target}/{_CACHE}"
    linked = 0
    with os.scandir(target) as entries:
        inodes = {entry.name: entry.inode() for entry in entries if entry.name.endswith(".py")}
    with os.scandir(donor) as entries:
        same = {e.name[:-3] for e in entries if inodes.get(e.name) == e.inode()}
    if not same:
        return 0
    Path(cache).mkdir(exist_ok=True)
    with os.scandir(f"{donor}/{_CACHE}") as entries:
        for entry in entries:
            # Not the temporary files in which Python writes: `name.cpython-311.pyc.4711`.
            if entry.name.endswith(".pyc") and entry.name.partition(".")[0] in same:
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(entry.path, f"{cache}/{entry.name}")
                    linked += 1
    return linked
