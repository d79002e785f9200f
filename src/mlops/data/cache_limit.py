"""Making room in the data cache: what was not used for longest goes first.

Runs are not disturbed: what was placed in their folders, as links or copies, stays there.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mlops.data.cache import DataCache
from mlops.data.content import parse_list
from mlops.data.reference import FOLDER_SUFFIX, Reference
from mlops.errors import MlopsError

_ABANDONED_SECONDS = 7 * 24 * 3600  # a large file whose fetch nobody has gone on with


class _File(NamedTuple):
    path: str
    hash: str
    size: int
    is_linked: bool  # into a run's folder: to remove it here gives the disk nothing back


def make_room(
    cache: DataCache, needed: Collection[str], needed_bytes: int, limit_bytes: int
) -> bool:
    """Remove leftovers of killed pulls, and old data until there is room.

    While another pull goes on nothing is removed: the next one does it.

    Args:
        cache: Where.
        needed: Hashes of what must stay.
        needed_bytes: How much is about to come.
        limit_bytes: How large the cache may become.

    Returns:
        Whether the cache is within its limit, as far as this could find out.
    """
    with cache.alone() as is_alone, cache.errors():
        if not is_alone:
            return True
        for leftover in os.scandir(cache.root / "incoming"):
            Path(leftover.path).unlink(missing_ok=True)
        files = [*_files(cache), *_partial_files(cache)]
        excess = sum(file.size for file in files) + needed_bytes - limit_bytes
        lack = needed_bytes - shutil.disk_usage(cache.root).free
        if excess <= 0 and lack <= 0:
            return True
        kept = set(needed)
        for file in _oldest_first(cache, files):
            if excess <= 0 and lack <= 0:
                break
            if file.hash not in kept:
                Path(file.path).unlink(missing_ok=True)
                excess -= file.size
                lack -= 0 if file.is_linked else file.size
        _forget_uses(cache)
        return excess <= 0


def _files(cache: DataCache) -> Iterator[_File]:
    for shard in os.scandir(cache.root / "files" / "md5"):
        for entry in os.scandir(shard.path):
            status = entry.stat(follow_symlinks=False)
            name = f"{shard.name}{entry.name}"
            yield _File(entry.path, name, status.st_size, is_linked=status.st_nlink > 1)


def _partial_files(cache: DataCache) -> Iterator[_File]:
    oldest = time.time() - _ABANDONED_SECONDS
    for entry in os.scandir(cache.root / "partial"):
        status = entry.stat(follow_symlinks=False)
        if status.st_mtime < oldest:
            Path(entry.path).unlink()
        else:
            yield _File(entry.path, entry.name, status.st_size, is_linked=False)


def _oldest_first(cache: DataCache, files: list[_File]) -> list[_File]:
    """Sort files by when data that holds them was last used; first those of none."""
    used: dict[str, float] = {}
    for entry in os.scandir(cache.root / "uses"):
        last = entry.stat().st_mtime
        for member in _members(cache, entry.name):
            used[member] = max(last, used.get(member, 0.0))
    return sorted(files, key=lambda file: used.get(file.hash, 0.0))


def _members(cache: DataCache, data_hash: str) -> list[str]:
    """Return the hashes that a use is of: a folder's list and its files."""
    if not data_hash.endswith(FOLDER_SUFFIX):
        return [data_hash]
    with contextlib.suppress(MlopsError):
        body = cache.read(data_hash)
        if body is not None:
            reference = Reference(bucket="cache", path="", hash=data_hash)
            return [data_hash, *(file.md5 for file in parse_list(body, reference))]
    return [data_hash]


def _forget_uses(cache: DataCache) -> None:
    """Remove the notes on data of which not even the file or the list is here."""
    for entry in os.scandir(cache.root / "uses"):
        partial = cache.partial(entry.name)
        if not Path(cache.path(entry.name)).exists() and not partial.exists():
            Path(entry.path).unlink(missing_ok=True)
