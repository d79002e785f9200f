"""The environments of this host: one for each distinct set of requirements, kept and shared.

Layout of the cache's folder:

    <key>.json               says which build is the environment; replaced atomically, last
    <key>.lock               held by the one process that builds the key
    builds/<key>-<random>/   a virtual environment; without a `.json` that names it: unfinished,
                             or replaced
    leases/<build>.lock      locked exclusively while the build is made or removed, shared by the
                             runs that use it; its modification time is the last use

A build never moves (the scripts in `bin/` hold its path) and is never written to by a second
builder, so whatever a killed builder leaves is only in the way of the disk, until it is swept.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.agent.environment_build import (
    RECIPE,
    EnvironmentBuildCancelledError,
    EnvironmentBuilder,
    EnvironmentBuildError,
    supplied_requirements,
)
from mlops.agent.interpreters import Interpreter, find_interpreter
from mlops.agent.requirements import Requirements, read_requirements
from mlops.errors import MlopsError

__all__ = [
    "CacheEntry",
    "Environment",
    "EnvironmentBuildCancelledError",
    "EnvironmentBuildError",
    "EnvironmentCache",
    "EnvironmentGoneError",
    "EnvironmentSpec",
]

# Between `ensure` and `lease` nobody holds an environment; so long it is safe all the same.
_GRACE_SECONDS = 60.0
_LOCK_POLL_SECONDS = 0.2


class EnvironmentGoneError(MlopsError):
    """An environment was removed between `ensure` and `lease`; `ensure` makes it again."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a run asks for.

    Attributes:
        folder: The flow's code folder.
        requirements: Path of the requirements file in it; None: none. A `uv.lock` beside a
            `pyproject.toml` wins over none and over `requirements.txt`.
        python: Version such as `3.12`; None: the agent's own.
        torch_backend: uv's `--torch-backend`, such as `cpu` or `cu130`; None: the default index.
    """

    folder: Path
    requirements: str | None = None
    python: str | None = None
    torch_backend: str | None = None


@dataclass(frozen=True)
class Environment:
    """An environment that is ready.

    Attributes:
        key: Names it on this host.
        python: Its interpreter.
        folder: The virtual environment.
        seconds: What its build took; 0 when it was there.
    """

    key: str
    python: Path
    folder: Path
    seconds: float


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


class _Record(BaseModel):
    """The content of `<key>.json`. `files` and `size_bytes` leave out compiled bytecode."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    build: str
    requirements: str
    python_version: str
    files: int
    size_bytes: int


class EnvironmentCache:
    """Builds environments once per host, and keeps them up to a size.

    Args:
        root: The cache's folder; made when missing. Runs must be able to write into it, or they
            compile their imports anew each time.
        limit_bytes: Above this size the least recently used environments go. Files that uv
            links from its own cache count in full.
        python_downloads: Whether uv may fetch a Python that is not on this host.
    """

    def __init__(self, root: Path, *, limit_bytes: int, python_downloads: bool = False) -> None:
        self._root = root
        self._builds = root / "builds"
        self._leases = root / "leases"
        self._limit_bytes = limit_bytes
        self._python_downloads = python_downloads
        self._interpreters: dict[str | None, Interpreter] = {}
        self._verified: set[str] = set()  # builds that this process has looked through

    def ensure(
        self,
        spec: EnvironmentSpec,
        log: Callable[[str], None],
        *,
        cancel: threading.Event | None = None,
    ) -> Environment:
        """Return the environment for a run; build it when it is not there.

        Args:
            spec: What the run asks for.
            log: Receives lines about the build, for the run's log.
            cancel: Stops the build, or the wait for another's, when set.

        Raises:
            EnvironmentBuildError: It cannot be built; the message holds uv's own.
            EnvironmentBuildCancelledError: `cancel` was set.
            MlopsError: A requirements file or the Python is missing.
        """
        try:
            return self._ensure(spec, log, cancel)
        except OSError as error:
            raise EnvironmentBuildError(
                f"{self._root}: the environment cannot be kept here:", output=str(error)
            ) from error

    def _ensure(
        self,
        spec: EnvironmentSpec,
        log: Callable[[str], None],
        cancel: threading.Event | None,
    ) -> Environment:
        for folder in (self._builds, self._leases):
            folder.mkdir(parents=True, exist_ok=True)
        interpreter = self._interpreter(spec.python)
        requirements = read_requirements(spec.folder, spec.requirements, interpreter.version)
        key = _key(requirements, interpreter, spec.torch_backend)
        if found := self._find(key, log):
            return found
        with self._building(key, log, cancel):
            if found := self._find(key, log):
                return found
            self.sweep()
            environment = self._build(key, spec, requirements, interpreter, log=log, cancel=cancel)
        self.shrink(log)
        return environment

    @contextlib.contextmanager
    def lease(self, environment: Environment) -> Iterator[int]:
        """Keep an environment from being removed.

        Yields the descriptor of the lock. A process that inherits it (`pass_fds`) keeps the
        lease for as long as it lives, even when this one is killed.

        Raises:
            EnvironmentGoneError: It was removed before.
        """
        try:
            descriptor = os.open(self._lease_file(environment.folder.name), os.O_RDWR)
        except FileNotFoundError:
            raise EnvironmentGoneError(f"{environment.folder}: was removed") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not environment.python.exists():
                raise EnvironmentGoneError(f"{environment.folder}: was removed")
            os.utime(descriptor)
            yield descriptor
            os.utime(descriptor)
        finally:
            os.close(descriptor)  # never unlocked: a process that inherited it still holds it

    def entries(self) -> list[CacheEntry]:
        """List the environments, the least recently used first."""
        entries = []
        for path in self._root.glob("*.json"):
            record = self._read_record(path.stem)
            if record is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                last_used = self._lease_file(record.build).stat().st_mtime
                with self._exclusive(record.build) as is_free:
                    in_use = not is_free
                entries.append(
                    CacheEntry(
                        key=path.stem,
                        folder=self._builds / record.build,
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
        for folder in self._builds.glob("*"):
            key = folder.name.partition("-")[0]
            with contextlib.suppress(FileNotFoundError), self._exclusive(folder.name) as is_free:
                record = self._read_record(key)
                if is_free and (record is None or record.build != folder.name):
                    self._remove_build(folder)
            if not self._lease_file(folder.name).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def shrink(self, log: Callable[[str], None]) -> None:
        """Remove the least recently used environments until the limit is met."""
        entries = self.entries()
        size_bytes = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if size_bytes <= self._limit_bytes:
                break
            if time.time() - entry.last_used > _GRACE_SECONDS and self._remove(entry):
                size_bytes -= entry.size_bytes
                log(
                    f"environment {entry.key}: removed, least recently used "
                    f"({entry.size_bytes / 1e6:.0f} MB)"
                )

    def _interpreter(self, request: str | None) -> Interpreter:
        known = self._interpreters.get(request)
        if known is None or not known.runs:
            known = find_interpreter(request, downloads=self._python_downloads)
            self._interpreters[request] = known
        return known

    def _find(self, key: str, log: Callable[[str], None]) -> Environment | None:
        """Return a finished environment that is whole."""
        record = self._read_record(key)
        if record is None:
            return None
        folder = self._builds / record.build
        if damage := self._damage(folder, record):
            log(f"environment {key}: damaged ({damage}), building it again")
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._lease_file(record.build))
            return Environment(key=key, python=folder / "bin" / "python", folder=folder, seconds=0)
        return None

    def _damage(self, folder: Path, record: _Record) -> str:
        """Say what is wrong with an environment; empty: nothing that can be seen.

        The files are counted once in this process's life (0.1 s for 20,000); a run may add
        some, so that only fewer are wrong.
        """
        if not os.access(folder / "bin" / "python", os.X_OK):
            return "its Python is gone"
        if not self._lease_file(record.build).exists():
            return "its lock file is gone"
        if record.build not in self._verified:
            files, size_bytes = _measure(folder)
            if files < record.files or size_bytes < record.size_bytes:
                return "files are missing or cut short"
            self._verified.add(record.build)
        return ""

    @contextlib.contextmanager
    def _building(
        self, key: str, log: Callable[[str], None], cancel: threading.Event | None
    ) -> Iterator[None]:
        """Hold the right to build a key; wait for whoever has it."""
        lock = filelock.FileLock(self._root / f"{key}.lock", is_singleton=False)
        is_told = False
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_SECONDS if is_told else 0)
                break
            except filelock.Timeout:
                if not is_told:
                    log(f"environment {key}: waiting for another run that builds it")
                    is_told = True
            if cancel and cancel.is_set():
                raise EnvironmentBuildCancelledError("the wait for the environment was stopped")
        try:
            yield
        finally:
            lock.release()

    def _build(
        self,
        key: str,
        spec: EnvironmentSpec,
        requirements: Requirements,
        interpreter: Interpreter,
        *,
        log: Callable[[str], None],
        cancel: threading.Event | None,
    ) -> Environment:
        """Build an environment, then name it in its record."""
        started = time.monotonic()
        build = f"{key}-{secrets.token_hex(4)}"
        folder = self._builds / build
        log(
            f"environment {key}: building for {requirements.label}, Python {interpreter.version}"
            + (f", torch for {spec.torch_backend}" if spec.torch_backend else "")
        )
        descriptor = os.open(self._lease_file(build), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Before the folder is there, or a sweep could take it for one that was left behind.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            folder.mkdir()
            EnvironmentBuilder(
                folder=folder,
                code=spec.folder,
                requirements=requirements,
                interpreter=interpreter,
                torch_backend=spec.torch_backend,
                log=log,
                cancel=cancel,
                descriptors=[descriptor],
            ).build()
            files, size_bytes = _measure(folder)
            record = _Record(
                build=build,
                requirements=requirements.label,
                python_version=interpreter.version,
                files=files,
                size_bytes=size_bytes,
            )
            self._write_record(key, record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self._lease_file(build).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self._verified.add(build)
        seconds = time.monotonic() - started
        log(f"environment {key}: built in {seconds:.1f} s, {size_bytes / 1e6:.0f} MB")
        return Environment(key, folder / "bin" / "python", folder, seconds)

    def _remove(self, entry: CacheEntry) -> bool:
        """Remove an environment unless somebody uses or builds it."""
        lock = filelock.FileLock(self._root / f"{entry.key}.lock", is_singleton=False)
        try:
            with lock.acquire(timeout=0), self._exclusive(entry.folder.name) as is_free:
                record = self._read_record(entry.key)
                if not is_free or record is None or record.build != entry.folder.name:
                    return False
                (self._root / f"{entry.key}.json").unlink()
                self._remove_build(entry.folder)
        except (filelock.Timeout, FileNotFoundError):
            return False
        return True

    def _remove_build(self, folder: Path) -> None:
        """Remove a build whose lease is held exclusively."""
        shutil.rmtree(folder, ignore_errors=True)
        self._lease_file(folder.name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _exclusive(self, build: str) -> Iterator[bool]:
        """Try to lock a build for ourselves; False: somebody uses or makes it."""
        descriptor = os.open(self._lease_file(build), os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _lease_file(self, build: str) -> Path:
        return self._leases / f"{build}.lock"

    def _read_record(self, key: str) -> _Record | None:
        """Read a record; one that is unreadable counts as missing and is built over."""
        try:
            return _Record.model_validate_json((self._root / f"{key}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _write_record(self, key: str, record: _Record) -> None:
        temporary = self._root / f".{record.build}.json"
        temporary.write_text(record.model_dump_json(indent=1))
        temporary.replace(self._root / f"{key}.json")


def _key(requirements: Requirements, interpreter: Interpreter, torch_backend: str | None) -> str:
    """Name the environment by everything that it depends on."""
    text = json.dumps(
        [
            RECIPE,
            interpreter.version,
            interpreter.platform,
            torch_backend,
            requirements.is_project,
            requirements.fingerprint,
            supplied_requirements(requirements.names),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _measure(folder: Path) -> tuple[int, int]:
    """Count files and bytes, bytecode left out: a run may add that at any time."""
    files = size_bytes = 0
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        pending.append(entry.path)
                else:
                    files += 1
                    size_bytes += entry.stat(follow_symlinks=False).st_size
    return files, size_bytes
