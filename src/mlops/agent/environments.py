"""The environments of this host: one for each distinct set of requirements, kept and shared."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlops.agent.environment_build import (
    EnvironmentBuildCancelledError,
    EnvironmentBuilder,
    EnvironmentBuildError,
)
from mlops.agent.environment_bytecode import share_bytecode
from mlops.agent.environment_check import find_fault
from mlops.agent.environment_spec import (
    Environment,
    EnvironmentSpec,
    Request,
    packages_folder,
)
from mlops.agent.environment_store import (
    CacheEntry,
    EnvironmentGoneError,
    EnvironmentRecord,
    EnvironmentStore,
    measure,
)
from mlops.agent.environment_turns import turn_to_build
from mlops.agent.interpreters import Interpreter, find_interpreter
from mlops.agent.requirements import NO_REQUIREMENTS

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
# What is built ahead of time takes the place of nothing that was used within this time.
_RECENT_SECONDS = 7 * 24 * 3600.0
_DONORS = 4  # of bytecode; those that were used last
_NOT_STARTED = "Prefect does not start in its environment"

Log = Callable[[str], None]


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

    Attributes:
        limit_bytes: As given.
        hits: How often a run's environment was there, since this process began.
        misses: How often it was not.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_bytes: int,
        python_downloads: bool = False,
        prebuilt: Path | None = None,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self._store = EnvironmentStore(root)
        self._prebuilt = EnvironmentStore(prebuilt) if prebuilt else None
        self._python_downloads = python_downloads
        self._interpreters: dict[str | None, Interpreter] = {}
        self._verified: set[str] = set()  # builds that this process has looked through

    def ensure(
        self, spec: EnvironmentSpec, log: Log, *, cancel: threading.Event | None = None
    ) -> Environment:
        """Return the environment for a run; build it when it is not there.

        Prefect has not been started in a new one: the run is about to, see `judge`.

        Args:
            spec: What the run asks for.
            log: Receives lines about the build, for the run's log; of one that was built ahead
                of time too, if this is the first run.
            cancel: Stops the build, or the wait for another's, when set.

        Raises:
            EnvironmentBuildError: It cannot be built; the message holds uv's own.
            EnvironmentBuildCancelledError: `cancel` was set.
            MlopsError: A requirements file or the Python is missing.
        """
        with self._errors():
            request = self._request(spec)
            if folder := self._find(request.key, log):
                self.hits += 1
                self._store.touch(folder)
                if untold := self._store.take_untold(request.key):
                    log(f"environment {request.key}: was built ahead of time, which said:")
                    for line in untold:
                        log(line)
                return request.environment(folder)
            self.misses += 1
            environment = self._build_once(request, log, cancel)
            self._store.touch(environment.folder)
            self._store.take_untold(request.key)  # it was told as it happened
            # It takes seconds to remove 20,000 files: the run need not wait for that.
            threading.Thread(target=self._tidy, args=(log,), daemon=True).start()
            return environment

    def ensure_ahead(
        self,
        spec: EnvironmentSpec,
        log: Log,
        *,
        modules: Sequence[str] = (),
        cancel: threading.Event | None = None,
    ) -> Environment | None:
        """Build an environment that no run waits for, if there is room, and start Prefect in it.

        Args:
            spec: What runs will ask for.
            log: Receives lines about the build.
            modules: What they import, to be compiled.
            cancel: Stops it when set.

        Returns:
            It; None where there is no room.

        Raises:
            EnvironmentBuildError: It cannot be built, or Prefect does not start in it.
            EnvironmentBuildCancelledError: `cancel` was set.
            MlopsError: A requirements file or the Python is missing.
        """
        with self._errors():
            request = self._request(spec)
            if folder := self._find(request.key, log):
                return request.environment(folder)
            self._make_room(log, _RECENT_SECONDS)
            if self._size_bytes() >= self.limit_bytes:
                log(f"environment {request.key}: not built ahead of time, the cache is full")
                return None
            environment = self._build_once(request, log, cancel, is_ahead=True)
            if not environment.seconds:  # another agent of this host has built it
                return environment
            self._store.sweep()
            self._make_room(log, _RECENT_SECONDS)
            if self._size_bytes() > self.limit_bytes:
                for entry in self.entries():
                    if entry.folder == environment.folder and self._store.remove(entry):
                        log(f"environment {entry.key}: does not fit the cache, removed again")
                return None
        with contextlib.suppress(EnvironmentGoneError), self.lease(environment) as descriptor:
            fault = find_fault(
                environment.python,
                modules=modules,
                cancel=cancel,
                descriptors=[descriptor],
                is_urgent=False,
            )
            if fault:
                self._store.discard(environment.folder)
                label = request.requirements.label
                raise EnvironmentBuildError(f"{label}: {_NOT_STARTED}:", output=fault)
            if not (cancel and cancel.is_set()):
                self._store.prove(environment.folder)
        return environment

    def judge(self, environment: Environment, status_code: int) -> str:
        """Learn from the end of a run's process whether its environment is good.

        Where no run has ended well yet, Prefect is started by itself. If it does not start, the
        environment is dropped, and the next run builds it again.

        Args:
            environment: It ran in this.
            status_code: Its exit code, or the negative number of the signal that killed it.

        Returns:
            What is wrong with the environment, for people; empty: nothing.
        """
        folder = environment.folder
        if self._is_prebuilt(folder) or self._store.is_proven(folder):
            return ""
        fault = find_fault(environment.python) if status_code else ""
        if not fault:
            self._store.prove(folder)
            return ""
        self._store.discard(folder)
        return f"{_NOT_STARTED}, which is dropped:\n{fault}"

    def prebuild(self, lock: Path, log: Log) -> Environment:
        """Build the environment of flows without requirements ahead of time, for an image.

        Args:
            lock: What to install, with hashes.
            log: Receives lines about the build.

        Raises:
            EnvironmentBuildError: It cannot be built, or Prefect does not start in it.
        """
        request = Request(EnvironmentSpec(lock.parent), NO_REQUIREMENTS, self._interpreter(None))
        self._store.create()
        environment = self._build_once(request, log, None, lock=lock)
        if fault := find_fault(environment.python):
            raise EnvironmentBuildError(f"{lock}: {_NOT_STARTED}:", output=fault)
        return environment

    @contextlib.contextmanager
    def lease(self, environment: Environment) -> Iterator[int]:
        """Keep an environment from being removed.

        Yields the descriptor of the lock. A process that inherits it (`pass_fds`) keeps the
        lease for as long as it lives, even when this one is killed.

        Raises:
            EnvironmentGoneError: It was removed before.
        """
        if self._is_prebuilt(environment.folder):
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

    def shrink(self, log: Log) -> None:
        """Remove the least recently used environments until the limit is met."""
        self._make_room(log, _GRACE_SECONDS)

    def _make_room(self, log: Log, unused_seconds: float) -> None:
        """Remove environments that were not used for so long until the limit is met."""
        entries = self._store.entries()
        size_bytes = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if size_bytes <= self.limit_bytes:
                break
            if time.time() - entry.last_used > unused_seconds and self._store.remove(entry):
                size_bytes -= entry.size_bytes
                log(
                    f"environment {entry.key}: removed, least recently used "
                    f"({entry.size_bytes / 1e6:.0f} MB)"
                )

    def _tidy(self, log: Log) -> None:
        with contextlib.suppress(OSError):  # tried again after the next build
            self.sweep()
            self.shrink(log)

    def _size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._store.entries())

    def _is_prebuilt(self, folder: Path) -> bool:
        return self._prebuilt is not None and folder.parent == self._prebuilt.builds

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EnvironmentBuildError(
                f"{self._store.root}: the environment cannot be kept here:", output=str(error)
            ) from error

    def _request(self, spec: EnvironmentSpec) -> Request:
        self._store.create()
        return Request.read(spec, self._interpreter(spec.python))

    def _interpreter(self, request: str | None) -> Interpreter:
        known = self._interpreters.get(request)
        if known is None or not known.runs:
            known = find_interpreter(request, downloads=self._python_downloads)
            self._interpreters[request] = known
        return known

    def _find(self, key: str, log: Log) -> Path | None:
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
        return folder

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

    def _build_once(
        self,
        request: Request,
        log: Log,
        cancel: threading.Event | None,
        *,
        lock: Path | None = None,
        is_ahead: bool = False,
    ) -> Environment:
        """Build an environment, unless somebody else has just done so."""
        key = request.key
        turn = turn_to_build(key, self._store.building(key), self._store.progress(key), log, cancel)
        with turn as tell:
            if folder := self._find(key, lambda _: None):  # what is wrong was said before
                return request.environment(folder)
            environment = self._build(request, tell, cancel, lock)
            if is_ahead:
                self._store.keep_untold(key)
            return environment

    def _build(
        self, request: Request, log: Log, cancel: threading.Event | None, lock: Path | None
    ) -> Environment:
        """Build an environment, then name it in its record."""
        started = time.monotonic()
        key, version, torch = request.key, request.interpreter.version, request.spec.torch_backend
        log(
            f"environment {key}: building for {request.requirements.label}, Python {version}"
            + (f", torch for {torch}" if torch else "")
        )
        with self._store.new_build(key) as (folder, descriptor):
            builder = EnvironmentBuilder(
                folder=folder,
                code=request.spec.folder,
                requirements=request.requirements,
                interpreter=request.interpreter,
                torch_backend=torch,
                lock=lock,
                log=log,
                cancel=cancel,
                descriptors=[descriptor],
            )
            builder.build()
            share_bytecode(packages_folder(folder, version), self._donors(version))
            files, size_bytes = measure(folder)
            record = EnvironmentRecord(
                build=folder.name,
                requirements=request.requirements.label,
                python_version=version,
                files=files,
                size_bytes=size_bytes,
            )
            self._store.write(key, record)
        self._verified.add(folder.name)
        seconds = time.monotonic() - started
        log(f"environment {key}: built in {seconds:.1f} s, {size_bytes / 1e6:.0f} MB")
        return request.environment(folder, seconds)

    def _donors(self, python_version: str) -> list[Path]:
        """Return the packages of environments whose bytecode another may take over."""
        entries = [e for e in self._store.entries() if e.python_version == python_version]
        last = sorted(entries, key=lambda entry: entry.last_used, reverse=True)[:_DONORS]
        return [packages_folder(entry.folder, python_version) for entry in last]
