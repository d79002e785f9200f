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
    others = [str(donor) for donor in donors]
    pending = [str(target)]
    while pending:
        folder = pending.pop()
        inodes: dict[str, int] = {}  # of modules without bytecode
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    inodes[entry.name[:-3]] = entry.inode()
                elif entry.is_dir(follow_symlinks=False) and entry.name != _CACHE:
                    pending.append(entry.path)
        for other in others:
            if not inodes:
                break
            with contextlib.suppress(OSError):  # not there, being removed, or on another disk
                linked += _share_folder(folder, other + folder[len(str(target)) :], inodes)
    return linked


def _share_folder(target: str, donor: str, inodes: dict[str, int]) -> int:
    """Link the bytecode of one folder's modules, and take these out of `inodes`."""
    linked = 0
    with os.scandir(f"{donor}/{_CACHE}") as entries:
        for entry in entries:
            # Not the temporary files in which Python writes: `name.cpython-311.pyc.4711`.
            name = entry.name.partition(".")[0]
            if name not in inodes or not entry.name.endswith(".pyc"):
                continue
            if os.stat(f"{donor}/{name}.py").st_ino == inodes[name]:  # noqa: PTH116  # thousands
                if not linked:
                    Path(f"{target}/{_CACHE}").mkdir(exist_ok=True)
                os.link(entry.path, f"{target}/{_CACHE}/{entry.name}")
                del inodes[name]
                linked += 1
    return linked
