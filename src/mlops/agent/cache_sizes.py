"""How large the caches of this host are, asked for every few seconds.

To look at every file each time would keep a core busy. A folder whose time of change stays the
same has the same entries, and files in these caches never change their size: so one that was
looked at is asked for nothing but its time of change. Measured with 50,000 files of data: 0.6 s the
first time, then less than 0.01 s.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlops.agent.environment_store import EnvironmentStore, measure

# A file system's clock is coarse: what changed just now may change again at the same time.
_SETTLED_SECONDS = 2.0


class Size(NamedTuple):
    """How much lies in a folder."""

    entries: int
    size_bytes: int


class CacheSizes:
    """The sizes of the three caches.

    Args:
        environments: The folder of environments.
        code: The folder of bundles, one folder each.
        data: The folder of files by hash, in one folder for each first two digits.
    """

    def __init__(self, *, environments: Path, code: Path, data: Path) -> None:
        self._environments = EnvironmentStore(environments)
        self._code = code
        self._data = data
        self._known: dict[str, tuple[int, Size]] = {}

    def environments(self) -> Size:
        """Return how many environments there are, and how large they were when built."""
        found = [
            record
            for path in self._environments.root.glob("*.json")
            if (record := self._environments.read(path.stem))
        ]
        return Size(len(found), sum(record.size_bytes for record in found))

    def code(self) -> Size:
        """Return how many bundles there are, and how large they are."""
        return self._sum(self._code, _bundle_size)

    def data(self) -> Size:
        """Return how many files of data there are, and how large they are."""
        return self._sum(self._data, _files_size)

    def _sum(self, root: Path, measure_folder: Callable[[str], Size]) -> Size:
        sizes = []
        for path in _folders(root):
            try:
                changed = os.stat(path).st_mtime_ns  # noqa: PTH116  # pathlib takes time
                known = self._known.get(path)
                if known is None or known[0] != changed:
                    known = changed, measure_folder(path)
                    if time.time() - changed / 1e9 > _SETTLED_SECONDS:
                        self._known[path] = known
            except FileNotFoundError:  # removed meanwhile
                continue
            sizes.append(known[1])
        return Size(sum(size.entries for size in sizes), sum(size.size_bytes for size in sizes))


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as found:
            return [each.path for each in found if each.is_dir() and each.name[0] != "."]
    except FileNotFoundError:
        return []


def _bundle_size(folder: str) -> Size:
    return Size(1, measure(Path(folder))[1])


def _files_size(folder: str) -> Size:
    with os.scandir(folder) as found:
        sizes = [each.stat(follow_symlinks=False).st_size for each in found if each.is_file()]
    return Size(len(sizes), sum(sizes))
