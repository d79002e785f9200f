"""What lies on the disk: the environments of this host, who uses them, what was left behind.

Layout of the cache's folder:

    <key>.json               says which build is the environment; replaced atomically, last
    <key>.lock               held by the one process that builds the key
    <key>.progress           what that one says, for those who wait for it
    <key>.untold             the same of a build ahead of time, for the first run
    builds/<key>-<random>/   a virtual environment; without a `.json` that names it: unfinished,
                             or replaced. `mlops-proven` in it: Prefect has started there
    leases/<build>.lock      locked exclusively while the build is made or removed, shared by the
                             runs that use it; its modification time is the last use

A build never moves (the scripts in `bin/` hold its path) and is never written to by a second
builder, so whatever a killed builder leaves is only in the way of the disk, until it is swept.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.errors import MlopsError
from mlops.file_lock import share_lock, try_lock

_PROVEN = "mlops-proven"


class EnvironmentGoneError(MlopsError):
    """An environment was removed between `ensure` and `lease`; `ensure` makes it again."""


@dataclass(frozen=True)
class CacheEntry:
    """An environment as the cache's list shows it. `last_used` is in seconds since the epoch."""

    key: str
    folder: Path
    requirements: str
    python_version: str
    size_bytes: int
    last_used: float
    in_use: bool


class EnvironmentRecord(BaseModel):
    """The content of `<key>.json`. `files` and `size_bytes` leave out compiled bytecode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    build: str
    requirements: str
    python_version: str
    files: int
    size_bytes: int


class EnvironmentStore:
    """The cache's folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.builds = root / "builds"
        self._leases = root / "leases"

    def create(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.builds, self._leases):
            folder.mkdir(parents=True, exist_ok=True)

    def entries(self) -> list[CacheEntry]:
        """List the environments, the least recently used first."""
        entries = []
        for path in self.root.glob("*.json"):
            record = self.read(path.stem)
            if record is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                last_used = self.lease_file(record.build).stat().st_mtime
                with try_lock(self.lease_file(record.build)) as is_free:
                    in_use = not is_free
                entries.append(
                    CacheEntry(
                        key=path.stem,
                        folder=self.builds / record.build,
                        requirements=record.requirements,
                        python_version=record.python_version,
                        size_bytes=record.size_bytes,
                        last_used=last_used,
                        in_use=in_use,
                    )
                )
        return sorted(entries, key=lambda entry: entry.last_used)

    def sweep(self) -> None:
        """Remove what killed builders left, and builds that were replaced."""
        for folder in self.builds.glob("*"):
            key = folder.name.partition("-")[0]
            with (
                contextlib.suppress(FileNotFoundError),
                try_lock(self.lease_file(folder.name)) as is_free,
            ):
                record = self.read(key)
                if is_free and (record is None or record.build != folder.name):
                    self._remove_build(folder)
            if not self.lease_file(folder.name).exists():
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lease(self, folder: Path) -> Iterator[int]:
        """Keep an environment from being removed.

        Yields the descriptor of the lock. A process that inherits it (`pass_fds`) keeps the
        lease for as long as it lives, even when this one is killed.

        Raises:
            EnvironmentGoneError: It was removed before.
        """
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(share_lock(self.lease_file(folder.name)))
            except FileNotFoundError:
                raise EnvironmentGoneError(f"{folder}: was removed") from None
            if not (folder / "bin" / "python").exists():
                raise EnvironmentGoneError(f"{folder}: was removed")
            os.utime(descriptor)
            yield descriptor
            os.utime(descriptor)

    @contextlib.contextmanager
    def new_build(self, key: str) -> Iterator[tuple[Path, int]]:
        """Make a folder for a build, and remove it when that fails.

        Yields the empty folder, and the descriptor of its lock: a process that inherits this
        keeps a sweep away from the folder for as long as it lives.
        """
        folder = self.builds / f"{key}-{secrets.token_hex(4)}"
        descriptor = os.open(self.lease_file(folder.name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Before the folder is there, or a sweep could take it for one that was left behind.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            folder.mkdir()
            yield folder, descriptor
        except BaseException:
            self._remove_build(folder)
            raise
        finally:
            os.close(descriptor)

    def building(self, key: str) -> filelock.BaseFileLock:
        """Return the lock of whoever builds a key."""
        return filelock.FileLock(self.root / f"{key}.lock", is_singleton=False)

    def progress(self, key: str) -> Path:
        """Return the file in which whoever builds a key says what happens."""
        return self.root / f"{key}.progress"

    def remove(self, entry: CacheEntry) -> bool:
        """Remove an environment unless somebody uses or builds it."""
        try:
            with (
                self.building(entry.key).acquire(timeout=0),
                try_lock(self.lease_file(entry.folder.name)) as is_free,
            ):
                record = self.read(entry.key)
                if not is_free or record is None or record.build != entry.folder.name:
                    return False
                (self.root / f"{entry.key}.json").unlink()
                self.progress(entry.key).unlink(missing_ok=True)
                self.take_untold(entry.key)
                self._remove_build(entry.folder)
        except (filelock.Timeout, FileNotFoundError):
            return False
        return True

    def discard(self, folder: Path) -> None:
        """Take a build for no environment any more; what uses it may go on."""
        key = folder.name.partition("-")[0]
        with contextlib.suppress(filelock.Timeout), self.building(key).acquire(timeout=0):
            record = self.read(key)
            if record and record.build == folder.name:
                (self.root / f"{key}.json").unlink()

    def is_proven(self, folder: Path) -> bool:
        """Return whether Prefect is known to start in a build."""
        return (folder / _PROVEN).exists()

    def prove(self, folder: Path) -> None:
        """Note that Prefect has started in a build."""
        with contextlib.suppress(OSError):  # a note: it is removed just now, or the disk is full
            (folder / _PROVEN).touch()

    def touch(self, folder: Path) -> None:
        """Note that a build is used now."""
        with contextlib.suppress(FileNotFoundError):  # one of an image: nobody removes it
            os.utime(self.lease_file(folder.name))

    def keep_untold(self, key: str) -> None:
        """Keep what was said during a build for the first run that comes."""
        shutil.copyfile(self.progress(key), self.root / f"{key}.untold")

    def take_untold(self, key: str) -> list[str]:
        """Return the lines that were kept for the first run, to that one alone."""
        path = self.root / f"{key}.untold"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            path.unlink()
        except FileNotFoundError:
            return []
        return lines

    def lease_file(self, build: str) -> Path:
        """Return the file that the users of a build lock."""
        return self._leases / f"{build}.lock"

    def read(self, key: str) -> EnvironmentRecord | None:
        """Read a record; one that is unreadable counts as missing and is built over."""
        try:
            return EnvironmentRecord.model_validate_json((self.root / f"{key}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, key: str, record: EnvironmentRecord) -> None:
        """Say which build is the environment, from now on."""
        temporary = self.builds / record.build / "mlops-record.json"  # goes with a failed build
        temporary.write_text(record.model_dump_json(indent=1))
        temporary.replace(self.root / f"{key}.json")

    def _remove_build(self, folder: Path) -> None:
        """Remove a build whose lease is held exclusively."""
        shutil.rmtree(folder, ignore_errors=True)
        self.lease_file(folder.name).unlink(missing_ok=True)


def measure(folder: Path) -> tuple[int, int]:
    """Count files and bytes, bytecode left out: a run may add that at any time."""
    files = size_bytes = 0
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        pending.append(entry.path)
                    continue
                with contextlib.suppress(FileNotFoundError):  # a run's temporary file
                    size_bytes += entry.stat(follow_symlinks=False).st_size
                    files += 1
    return files, size_bytes
