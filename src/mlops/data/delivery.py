"""Delivering data: from its reference to files at a place, over the host's cache."""

import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mlops.data.cache import DataCache
from mlops.data.cache_limit import make_room
from mlops.data.content import DamagedDataError, DataFile, parse_list
from mlops.data.fetch import Fetch, Progress, unique
from mlops.data.parallel import aside
from mlops.data.placement import Bench, Place
from mlops.data.reference import Reference
from mlops.data.remote import LAYOUTS, Layout, Remote, find_remote
from mlops.errors import MlopsError, UsageError
from mlops.settings import DataSettings
from mlops.storage import ObjectNotFoundError, ObjectStore

_DISK_BLOCK = 4096  # what the smallest file takes
_NAMED = 3  # of many missing files


class Pulled(BaseModel):
    """What a pull did; what was in the cache already was not downloaded."""

    model_config = ConfigDict(frozen=True)

    reference: str
    path: Path
    files: int
    bytes: int
    downloaded_files: int
    downloaded_bytes: int
    seconds: float


class Options(NamedTuple):
    """How a pull is done.

    Attributes:
        force: Whether to replace what no pull has placed there.
        verify: Whether to read all that is in the cache again.
        layouts: Where in the remote the data may be, the likeliest first.
    """

    force: bool = False
    verify: bool = False
    layouts: tuple[Layout, ...] = LAYOUTS


class _Got(NamedTuple):
    files: int
    size: int


class _CacheChangedError(Exception):
    """A file has gone from the cache while it was held."""


def pull(
    reference: Reference,
    target: Path,
    settings: DataSettings,
    progress: Progress,
    options: Options = Options(),  # noqa: B008  # immutable
) -> Pulled:
    """Bring data to a place.

    Args:
        reference: What.
        target: Where to; a file, or a folder.
        settings: The object store and the cache.
        progress: Is told how it goes on.
        options: How.

    Raises:
        ObjectNotFoundError: It is not in the remote, or not all of it.
        DamagedDataError: The remote holds something else.
        MlopsError: The object store, the cache or the place cannot be used.
    """
    began = time.monotonic()
    target = target.absolute()
    cache = DataCache(settings.cache_dir, progress.note)
    _refuse_parents(target, cache)
    job = _Pull(reference, target, settings, cache=cache, progress=progress, options=options)
    try:
        files, size, got = job.run()
    except _CacheChangedError:  # somebody has tidied it by hand; by now they are done
        files, size, got = job.run()
    return Pulled(
        reference=str(reference),
        path=target,
        files=files,
        bytes=size,
        downloaded_files=got.files,
        downloaded_bytes=got.size,
        seconds=round(time.monotonic() - began, 3),
    )


def _refuse_parents(target: Path, cache: DataCache) -> None:
    """Refuse a place that others live in."""
    home = os.path.expanduser("~")  # noqa: PTH111  # Path's fails where there is none
    for lived_in in (Path.cwd(), Path(home), cache.root):
        if lived_in.resolve().is_relative_to(target.resolve()):
            raise UsageError(
                f"{target}: {lived_in} lies in it; data gets a place of its own",
                hint="name a new file or folder with --to",
            )


class _Pull:
    """One pull; see `pull`."""

    def __init__(
        self,
        reference: Reference,
        target: Path,
        settings: DataSettings,
        *,
        cache: DataCache,
        progress: Progress,
        options: Options,
    ) -> None:
        self._reference = reference
        self._target = target
        self._settings = settings
        self._cache = cache
        self._progress = progress
        self._options = options
        self._store = ObjectStore(settings, reference.bucket)
        self._remote: Remote | None = None

    def run(self) -> tuple[int, int, _Got]:
        """Return how many files and bytes there are, and what of them was downloaded."""
        with self._cache.in_use(self._reference.hash):
            files = self._files()
            if self._options.verify:
                self._verify(files)
            place = Place(self._target, files, self._cache)
            if place.is_right():
                return len(files), place.size, _Got(0, 0)
            if not self._options.force:
                place.refuse_foreign()
        got = _Got(0, 0)
        with place.prepare() as bench:
            with self._cache.in_use(self._reference.hash):
                missing = self._cache.missing(file.md5 for file in files)
                if not missing:
                    return len(files), self._place(bench, files), got
            sizes = self._ask_sizes(files, missing)
            self._make_room(files, sizes)
            # From here on nothing is removed; before it something may have been.
            with (
                self._cache.in_use(self._reference.hash),
                self._cache.fetching(self._reference.hash),
            ):
                missing = self._cache.missing(file.md5 for file in files)
                if any(each not in sizes for each in missing):
                    raise _CacheChangedError
                got = self._fetch(files, {each: sizes[each] for each in missing})
            with self._cache.in_use(self._reference.hash):
                if not self._options.force:  # somebody may have come to the place meanwhile
                    Place(self._target, files, self._cache).refuse_foreign()
                size = self._place(bench, files)
        self._make_room(files, {})
        return len(files), size, got

    def _files(self) -> tuple[DataFile, ...]:
        """Return what the data consists of, from the cache if it is known there."""
        data_hash = self._reference.hash
        if not self._reference.is_folder:
            return (DataFile("", data_hash),)
        body = self._cache.read(data_hash)
        if body is not None:
            try:
                return parse_list(body, self._reference)
            except DamagedDataError:
                self._cache.drop(data_hash, "was damaged")
        remote = self._find_remote()
        body = aside(lambda: remote.store.read(remote.key(data_hash)))
        files = parse_list(body, self._reference)
        self._cache.add(data_hash, body)
        return files

    def _find_remote(self) -> Remote:
        if self._remote is None:
            self._remote = aside(
                lambda: find_remote(self._store, self._reference, self._options.layouts)
            )
        return self._remote

    def _verify(self, files: Sequence[DataFile]) -> None:
        from mlops.data.verify import drop_damaged

        drop_damaged(self._cache, [file.md5 for file in files], self._options.layouts)

    def _ask_sizes(self, files: Sequence[DataFile], missing: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of what is to be downloaded.

        Raises:
            ObjectNotFoundError: Some of it is not in the remote.
        """
        remote = self._find_remote()
        sizes = remote.sizes(missing)
        lost = [each for each in missing if each not in sizes]
        if lost:
            names = [file.path or file.md5 for file in unique(files, lost[:_NAMED])]
            more = "" if len(lost) <= _NAMED else ", ..."
            raise ObjectNotFoundError(
                f"{self._reference}: {len(lost)} of {len(files)} files are not in the remote "
                f"({', '.join(names)}{more}); the first would be {remote.uri(lost[0])}",
                hint="was all of it pushed? `dvc push` where the data is",
            )
        return sizes

    def _make_room(self, files: Sequence[DataFile], sizes: dict[str, int]) -> None:
        """Have enough room in the cache.

        Raises:
            MlopsError: There is not, even without all that is old.
        """
        needed = sum(-(-size // _DISK_BLOCK) * _DISK_BLOCK for size in sizes.values())
        needed -= sum(
            self._cache.partial(each).stat().st_blocks * 512
            for each in sizes
            if self._cache.partial(each).exists()
        )
        limit = self._settings.mlops_data_cache_bytes
        kept = {self._reference.hash, *(file.md5 for file in files)}
        if not make_room(self._cache, kept, needed, limit) and sizes:
            self._progress.note(
                f"the cache will be larger than MLOPS_DATA_CACHE_BYTES={limit}: this data alone is"
            )
        _refuse_full(self._cache.root, needed, "let MLOPS_DATA_CACHE_DIR name another disk's")

    def _fetch(self, files: Sequence[DataFile], sizes: dict[str, int]) -> _Got:
        total = sum(sizes.values())
        if sizes:
            self._progress.begin(len(sizes), total)
            fetch = Fetch(self._find_remote(), self._cache, self._progress)
            fetch.run(unique(files, sizes), sizes)
        return _Got(len(sizes), total)

    def _place(self, bench: Bench, files: Iterable[DataFile]) -> int:
        """Put the data in its place, and return its bytes."""
        sizes = [self._cache.size(file.md5) for file in files]
        if None in sizes:
            raise _CacheChangedError
        total = sum(size or 0 for size in sizes)
        if bench.is_copying:
            _refuse_full(
                bench.folder,
                total,
                "choose a place on the cache's file system: there, links take none",
            )
        try:
            bench.place()
        except FileNotFoundError as error:
            raise _CacheChangedError from error
        return total


def _refuse_full(folder: Path, needed: int, hint: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MlopsError(
            f"{os.fspath(folder)}: not enough space: {needed:,} bytes are needed and {free:,} are "
            "free",
            hint=f"free space there, or {hint}",
        )
