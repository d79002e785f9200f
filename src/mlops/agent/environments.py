"""The environments of this host: one for each distinct set of requirements, kept and shared."""

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from mlops.agent.environment_build import (
    RECIPE,
    EnvironmentBuildCancelledError,
    EnvironmentBuilder,
    EnvironmentBuildError,
    supplied_requirements,
)
from mlops.agent.environment_store import (
    CacheEntry,
    EnvironmentGoneError,
    EnvironmentRecord,
    EnvironmentStore,
    measure,
)
from mlops.agent.interpreters import Interpreter, find_interpreter
from mlops.agent.requirements import NO_REQUIREMENTS, Requirements, read_requirements

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
        python_version: The interpreter's full version.
        folder: The virtual environment.
        requirements_hash: SHA-256 of what was asked for, such as the lines of the requirements
            file; 64 hexadecimal digits.
        seconds: What its build took; 0 when it was there.
    """

    key: str
    python: Path
    python_version: str
    folder: Path
    requirements_hash: str
    seconds: float

    @functools.cached_property
    def packages_hash(self) -> str:
        """SHA-256 of the names and versions of what is installed; 64 hexadecimal digits."""
        major_minor = ".".join(self.python_version.split(".")[:2])
        packages = self.folder / "lib" / f"python{major_minor}" / "site-packages"
        installed = sorted(path.name for path in packages.glob("*.dist-info"))
        return hashlib.sha256("\n".join(installed).encode()).hexdigest()


class EnvironmentCache:
    """Builds environments once per host, and keeps them up to a size.

    Args:
        root: The cache's folder; made when missing. Runs must be able to write into it, or they
            compile their imports anew each time.
        limit_bytes: Above this size the least recently used environments go. Files that uv
            links from its own cache count in full.
        python_downloads: Whether uv may fetch a Python that is not on this host.
        prebuilt: A folder that `prebuild` made, for example in an image. Its environments are
            used in place and before the cache's own; they are never written to or removed.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_bytes: int,
        python_downloads: bool = False,
        prebuilt: Path | None = None,
    ) -> None:
        self._store = EnvironmentStore(root)
        self._prebuilt = EnvironmentStore(prebuilt) if prebuilt else None
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
                f"{self._store.root}: the environment cannot be kept here:", output=str(error)
            ) from error

    def _ensure(
        self,
        spec: EnvironmentSpec,
        log: Callable[[str], None],
        cancel: threading.Event | None,
    ) -> Environment:
        self._store.create()
        interpreter = self._interpreter(spec.python)
        requirements = read_requirements(spec.folder, spec.requirements, interpreter.version)
        key = _key(requirements, interpreter, spec.torch_backend)
        if folder := self._find(key, log):
            return _environment(key, folder, requirements, interpreter)
        with self._building(key, log, cancel):
            if folder := self._find(key, log):
                return _environment(key, folder, requirements, interpreter)
            self._store.sweep()
            environment = self._build(key, spec, requirements, interpreter, log=log, cancel=cancel)
        self.shrink(log)
        return environment

    def prebuild(self, lock: Path, log: Callable[[str], None]) -> Environment:
        """Build the environment of flows without requirements ahead of time.

        Args:
            lock: What to install, with hashes.
            log: Receives lines about the build.

        Raises:
            EnvironmentBuildError: It cannot be built.
        """
        self._store.create()
        interpreter = self._interpreter(None)
        key = _key(NO_REQUIREMENTS, interpreter, None)
        spec = EnvironmentSpec(lock.parent)
        with self._building(key, log, None):
            return self._build(
                key, spec, NO_REQUIREMENTS, interpreter, log=log, cancel=None, lock=lock
            )

    @contextlib.contextmanager
    def lease(self, environment: Environment) -> Iterator[int]:
        """Keep an environment from being removed.

        Yields the descriptor of the lock. A process that inherits it (`pass_fds`) keeps the
        lease for as long as it lives, even when this one is killed.

        Raises:
            EnvironmentGoneError: It was removed before.
        """
        if self._prebuilt and environment.folder.parent == self._prebuilt.builds:
            descriptor = os.open(environment.folder, os.O_RDONLY)  # nobody removes it
            try:
                yield descriptor
            finally:
                os.close(descriptor)
            return
        with self._store.lease(environment.folder) as descriptor:
            yield descriptor

    def entries(self) -> list[CacheEntry]:
        """List the environments, the least recently used first."""
        return self._store.entries()

    def sweep(self) -> None:
        """Remove what killed builders left, and builds that were replaced."""
        self._store.sweep()

    def shrink(self, log: Callable[[str], None]) -> None:
        """Remove the least recently used environments until the limit is met."""
        entries = self._store.entries()
        size_bytes = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if size_bytes <= self._limit_bytes:
                break
            if time.time() - entry.last_used > _GRACE_SECONDS and self._store.remove(entry):
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

    def _find(self, key: str, log: Callable[[str], None]) -> Path | None:
        """Return the folder of a finished environment that is whole."""
        if self._prebuilt and (record := self._prebuilt.read(key)):
            folder = self._prebuilt.builds / record.build
            if os.access(folder / "bin" / "python", os.X_OK):
                return folder
        record = self._store.read(key)
        if record is None:
            return None
        folder = self._store.builds / record.build
        if damage := self._damage(folder, record):
            log(f"environment {key}: damaged ({damage}), building it again")
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._store.lease_file(record.build))
            return folder
        return None

    def _damage(self, folder: Path, record: EnvironmentRecord) -> str:
        """Say what is wrong with an environment; empty: nothing that can be seen.

        The files are counted once in this process's life (0.1 s for 20,000); a run may add
        some, so that only fewer are wrong.
        """
        if not os.access(folder / "bin" / "python", os.X_OK):
            return "its Python is gone"
        if not self._store.lease_file(record.build).exists():
            return "its lock file is gone"
        if record.build not in self._verified:
            files, size_bytes = measure(folder)
            if files < record.files or size_bytes < record.size_bytes:
                return "files are missing or cut short"
            self._verified.add(record.build)
        return ""

    @contextlib.contextmanager
    def _building(
        self, key: str, log: Callable[[str], None], cancel: threading.Event | None
    ) -> Iterator[None]:
        """Hold the right to build a key; wait for whoever has it."""
        lock = self._store.building(key)
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
        lock: Path | None = None,
    ) -> Environment:
        """Build an environment, then name it in its record."""
        started = time.monotonic()
        log(
            f"environment {key}: building for {requirements.label}, Python {interpreter.version}"
            + (f", torch for {spec.torch_backend}" if spec.torch_backend else "")
        )
        with self._store.new_build(key) as (folder, descriptor):
            builder = EnvironmentBuilder(
                folder=folder,
                code=spec.folder,
                requirements=requirements,
                interpreter=interpreter,
                torch_backend=spec.torch_backend,
                lock=lock,
                log=log,
                cancel=cancel,
                descriptors=[descriptor],
            )
            builder.build()
            files, size_bytes = measure(folder)
            record = EnvironmentRecord(
                build=folder.name,
                requirements=requirements.label,
                python_version=interpreter.version,
                files=files,
                size_bytes=size_bytes,
            )
            self._store.write(key, record)
        self._verified.add(folder.name)
        seconds = time.monotonic() - started
        log(f"environment {key}: built in {seconds:.1f} s, {size_bytes / 1e6:.0f} MB")
        return _environment(key, folder, requirements, interpreter, seconds)


def _environment(
    key: str,
    folder: Path,
    requirements: Requirements,
    interpreter: Interpreter,
    seconds: float = 0,
) -> Environment:
    return Environment(
        key=key,
        python=folder / "bin" / "python",
        python_version=interpreter.version,
        folder=folder,
        requirements_hash=hashlib.sha256(requirements.fingerprint.encode()).hexdigest(),
        seconds=seconds,
    )


def _key(requirements: Requirements, interpreter: Interpreter, torch_backend: str | None) -> str:
    """Name the environment by everything that it depends on."""
    text = json.dumps(
        [
            RECIPE,
            interpreter.version,
            interpreter.platform,
            # Without requirements there is no torch that it could change.
            None if requirements.is_none else torch_backend,
            requirements.is_project,
            requirements.fingerprint,
            supplied_requirements(requirements),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
