"""Code on this host: bundles by hash, verified once, read-only, shared by every run."""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from pydantic import ValidationError

from mlops.bundles import (
    MANIFEST_NAME,
    BundleError,
    Manifest,
    download,
    fetch_manifest,
    parse_prefix,
)
from mlops.errors import MlopsError
from mlops.file_lock import share_lock, try_lock
from mlops.storage import ObjectStore

ABANDONED_AFTER_SECONDS = 14 * 24 * 3600
# Between `ensure` and `lease` nobody holds a bundle; so long it is safe all the same.
GRACE_SECONDS = 60.0
# When verified files were changed last, in seconds since the epoch (2001): any later write is seen.
VERIFIED_STAMP = 1_000_000_000


@dataclass(frozen=True)
class CodeEntry:
    """A bundle as the cache's list shows it. `last_used` is in seconds since the epoch."""

    content_hash: str
    folder: Path
    size_bytes: int
    last_used: float
    in_use: bool


class CodeCache:
    """Bundles that were downloaded, one folder each.

    Several agents on a host may share one cache: a bundle is downloaded into a temporary folder
    and renamed into place, and whoever comes second finds it there.

    Args:
        root: Folder of the cache; made when missing.
        limit_bytes: Above this size the least recently used bundles go.

    Attributes:
        limit_bytes: As given.
        hits: How often a run's code was there, since this process began.
        misses: How often it was not.
    """

    def __init__(self, root: Path, *, limit_bytes: int) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self._bundles = root / "code"
        self._views = root / "runs"
        self._leases = root / "code-leases"

    def ensure(
        self, store: ObjectStore, prefix: str, *, is_for_run: bool = True
    ) -> tuple[Path, Manifest]:
        """Return a bundle's folder and manifest, downloading it the first time.

        Args:
            store: The bucket for code.
            prefix: The bundle's prefix in it.
            is_for_run: Whether a run asks for it, and it counts as used.

        Raises:
            BundleError: It is missing or damaged.
            MlopsError: The object store does not answer.
        """
        content_hash = parse_prefix(prefix)
        if content_hash is None:
            raise BundleError(f"{store.uri(prefix)}: is not a bundle of ours")
        folder = self._bundles / content_hash
        manifest = _read_cached(folder, content_hash)
        if is_for_run:
            self.hits += manifest is not None
            self.misses += manifest is None
        try:
            if manifest is not None:
                if is_for_run or not self._lease_file(folder).exists():
                    self._touch(folder)
                return folder, manifest
            manifest = fetch_manifest(store, prefix)
            for parent in (self._bundles, self._leases):
                parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._bundles, prefix=".tmp-") as temporary:
                target = Path(temporary) / "bundle"
                target.mkdir()
                download(store, prefix, manifest, target)
                (target / MANIFEST_NAME).write_bytes(manifest.to_bytes())
                _seal(target)
                self._touch(folder)  # before others see it: what was never used goes first
                _move(target, folder)
        except OSError as error:
            raise MlopsError(
                f"{self._bundles}: the code cannot be stored: {error.strerror}",
                hint="free space there, or point MLOPS_CACHE_DIR elsewhere",
            ) from error
        cached = _read_cached(folder, content_hash)
        if cached is None:
            raise MlopsError(f"{folder}: the code could not be put in place")
        self.shrink()
        return folder, cached

    @contextlib.contextmanager
    def lease(self, bundle: Path) -> Iterator[None]:
        """Keep a bundle from being removed.

        Args:
            bundle: The shared folder.

        Raises:
            MlopsError: It was removed since `ensure`.
        """
        with share_lock(self._lease_file(bundle), create=True):
            if not bundle.exists():
                raise MlopsError(f"{bundle}: was removed", hint="run the flow again")
            yield

    def entries(self) -> list[CodeEntry]:
        """List the bundles, the least recently used first."""
        entries = []
        for folder in self._bundles.glob("[0-9a-f]*"):
            with contextlib.suppress(FileNotFoundError, ValidationError):
                manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
                lease = self._lease_file(folder)
                with try_lock(lease, create=True) as is_free:
                    in_use = not is_free
                entries.append(
                    CodeEntry(
                        content_hash=folder.name,
                        folder=folder,
                        size_bytes=sum(file.size for file in manifest.files),
                        last_used=lease.stat().st_mtime,
                        in_use=in_use,
                    )
                )
        return sorted(entries, key=lambda entry: entry.last_used)

    def shrink(self) -> None:
        """Remove the least recently used bundles until the limit is met; none in use."""
        entries = self.entries()
        size_bytes = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if size_bytes <= self.limit_bytes:
                break
            if time.time() - entry.last_used > GRACE_SECONDS and self._remove(entry.folder):
                size_bytes -= entry.size_bytes

    def _remove(self, folder: Path) -> bool:
        """Remove a bundle unless somebody uses it."""
        lease = self._lease_file(folder)
        with try_lock(lease, create=True) as is_free:
            if is_free:
                gone = folder.with_name(f".tmp-{folder.name}")
                folder.rename(gone)  # at once: a bundle is whole, or not there
                shutil.rmtree(gone, ignore_errors=True)
            return is_free

    def _touch(self, folder: Path) -> None:
        self._leases.mkdir(parents=True, exist_ok=True)
        self._lease_file(folder).touch()

    def _lease_file(self, folder: Path) -> Path:
        return self._leases / f"{folder.name}.lock"

    def sweep(self) -> None:
        """Remove what agents left behind when they were killed: private views, half bundles.

        Only old ones: the run of a killed agent may go on in its view.
        """
        oldest = time.time() - ABANDONED_AFTER_SECONDS
        for left in (*self._views.glob("run-*"), *self._bundles.glob(".tmp-*")):
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < oldest:
                    shutil.rmtree(left, ignore_errors=True)
        for lease in self._leases.glob("*.lock"):
            with contextlib.suppress(FileNotFoundError):
                if lease.stat().st_mtime < oldest and not (self._bundles / lease.stem).exists():
                    lease.unlink()

    @asynccontextmanager
    async def private_view(self, bundle: Path, parent: Path | None = None) -> AsyncIterator[Path]:
        """Give a run a folder of its own with the bundle's files, which it may write to.

        It is made and removed in threads: a bundle may be large, and the agent has other runs.

        Args:
            bundle: The shared folder.
            parent: Where to make it; default: in the cache.

        Raises:
            MlopsError: There is no room for it, or no right to make it.
        """
        folder = await anyio.to_thread.run_sync(_copy, bundle, parent or self._views)
        try:
            yield folder / "code"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))


def _copy(bundle: Path, parent: Path) -> Path:
    """Return a new folder below `parent` with a writable copy of a bundle as `code`."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as on_failure:
            folder = Path(tempfile.mkdtemp(dir=parent, prefix="run-"))
            on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
            view = folder / "code"
            shutil.copytree(bundle, view, ignore=shutil.ignore_patterns(MANIFEST_NAME))
            _set_writable(view, writable=True)
            on_failure.pop_all()
    except OSError as error:
        # Of many files copytree tells everything; the first says enough.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise MlopsError(
            f"{parent}: the run's copy of the code cannot be made: {reason}",
            hint="give the agent room to write there",
        ) from error
    return folder


def _read_cached(folder: Path, content_hash: str) -> Manifest | None:
    """Return the manifest of a bundle that is here and as it was when it was verified."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        found = ((file, (folder / file.path).stat()) for file in manifest.files)
        whole = all(s.st_size == f.size and s.st_mtime == VERIFIED_STAMP for f, s in found)
    except (FileNotFoundError, NotADirectoryError):
        whole, manifest = not folder.exists(), None
    except ValidationError:
        whole, manifest = False, None
    if manifest is not None and whole and manifest.content_hash == content_hash:
        return manifest
    if folder.exists():  # somebody tampered with it: take it out of the way and load it again
        _set_writable(folder, writable=True)
        shutil.rmtree(folder)
    return None


def _move(source: Path, target: Path) -> None:
    """Put a folder in place; keep the one that another agent put there first."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _seal(folder: Path) -> None:
    """Mark a bundle's files as verified, and make them read-only.

    The files only: their owner can still remove the cache with `rm -r`.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode & ~0o222)
            os.utime(path, (VERIFIED_STAMP, VERIFIED_STAMP))


def _set_writable(folder: Path, *, writable: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)
