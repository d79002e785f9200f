"""The fork servers of this host's environments: which there are, when they are made anew.

One is made for an environment once a run has needed it, in the background, one after the other,
and a moment after the last run has started: warming takes seconds of a core that runs would feel.
It replaces the former one when runs have imported modules that it does not have.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.logging import get_logger

from mlops.agent.environments import Environment, EnvironmentCache, EnvironmentGoneError
from mlops.agent.learned_modules import LearnedModules, ModuleMemory
from mlops.agent.warm_process import WarmStartError
from mlops.agent.warm_server import Readiness, WarmServer

QUIET_SECONDS = 1.0  # without a start of a run, before a process is warmed
PATIENCE_SECONDS = 30.0  # after so long it is warmed although runs start all the time
IMPORT_SECONDS = 60.0
STARTS = 4  # until then the modules that make a process unfit are found one by one
FAILURES = 3  # after so many an environment has none for a while
RETRY_SECONDS = 600.0
KEPT_SECONDS = 300.0  # since its last use, a process gives way to none of another environment

logger = get_logger("mlops.agent")


@dataclass
class WarmEnvironment:
    """What the pool has for one environment.

    Attributes:
        environment: It.
        variables: The environment of a process in it, without what is a run's own.
        server: Ready to fork; None while there is none.
        readiness: What the server said.
        wanted: The modules that it has been told to import.
        why_not: Why there is none, for the run's log.
        failures: How often it failed in a row.
        failed: When it failed last, by the monotonic clock, in seconds.
        last_used: Likewise, when a run needed it last.
        resources: What is held while the server lives.
    """

    environment: Environment
    variables: Mapping[str, str]
    server: WarmServer | None = None
    readiness: Readiness | None = None
    wanted: tuple[str, ...] = ()
    why_not: str = "the warm process is not there yet"
    failures: int = 0
    failed: float = 0.0
    last_used: float = field(default_factory=time.monotonic)
    resources: ExitStack = field(default_factory=ExitStack)


class WarmPool:
    """The fork servers of an agent.

    Args:
        root: The agent's cache.
        environments: Whose environments they are in.
        limit: How many there may be.
        limit_bytes: How much memory each may take.
    """

    def __init__(
        self,
        root: Path,
        environments: EnvironmentCache,
        *,
        limit: int,
        limit_bytes: int,
    ) -> None:
        self.memory = ModuleMemory(root / "warm")
        self._environments = environments
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._warm: dict[str, WarmEnvironment] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._last_start = 0.0

    @property
    def entries(self) -> list[WarmEnvironment]:
        """All that it knows of, for the status."""
        return list(self._warm.values())

    def modules(self, environment: Environment) -> LearnedModules:
        """Return what is known of an environment's modules, for the status."""
        return self.memory.read(environment)

    def want(self, environment: Environment, variables: Mapping[str, str]) -> WarmEnvironment:
        """Return what there is for an environment, and see to it that there will be a server.

        Args:
            environment: A run's.
            variables: The environment of a process in it, without what is a run's own.
        """
        entry = self._warm.get(environment.key)
        if entry is None or entry.environment.folder != environment.folder:
            if entry:
                self._retire(entry)
            entry = self._warm[environment.key] = WarmEnvironment(environment, variables)
        entry.last_used = self._last_start = time.monotonic()
        if entry.server and not entry.server.is_alive:
            self._note_failure(entry, "the warm process has ended")
        if entry.server is None:
            self._enqueue(entry)
        return entry

    def prepare(self, environment: Environment, variables: Mapping[str, str]) -> None:
        """Have a server ready for runs that may come, if there is room for one.

        Args:
            environment: It is on this host.
            variables: The environment of a process in it, without what is a run's own.
        """
        if environment.key not in self._warm and len(self._warm) < self._limit:
            entry = WarmEnvironment(environment, variables, last_used=0.0)
            self._warm[environment.key] = entry
            self._enqueue(entry)

    def refresh(self, environment: Environment) -> None:
        """Replace an environment's server if there is more to import now."""
        entry = self._warm.get(environment.key)
        if entry and tuple(self.memory.read(environment).to_import) != entry.wanted:
            self._enqueue(entry)

    def fail(self, entry: WarmEnvironment, server: WarmServer, error: WarmStartError) -> None:
        """Note that a server did not start a run."""
        if entry.server is server:
            self._note_failure(entry, str(error))

    async def work(self) -> None:
        """Warm what is asked for, until cancelled; then end all servers."""
        try:
            while True:
                key = await self._queue.get()
                self._queued.discard(key)
                await self._wait_for_quiet()
                if entry := self._warm.get(key):
                    await self._renew(entry)
        finally:
            servers = [entry.server for entry in self._warm.values() if entry.server]
            await asyncio.gather(*(server.end() for server in servers))
            for entry in self._warm.values():
                entry.resources.close()

    async def _wait_for_quiet(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            wait = self._last_start + QUIET_SECONDS - time.monotonic()
            if wait <= 0 or time.monotonic() > deadline:
                return
            await asyncio.sleep(wait)

    def _enqueue(self, entry: WarmEnvironment) -> None:
        if self._limit == 0:
            entry.why_not = "MLOPS_WARM_ENVIRONMENTS is 0"
            return
        if entry.failures >= FAILURES:
            if time.monotonic() - entry.failed < RETRY_SECONDS:
                return
            entry.failures = 0
        if entry.environment.key not in self._queued:
            self._queued.add(entry.environment.key)
            self._queue.put_nowait(entry.environment.key)

    async def _renew(self, entry: WarmEnvironment) -> None:
        """Start a server for an environment, and let it take the place of the former."""
        modules = self.memory.read(entry.environment)
        if entry.server and entry.server.is_alive and entry.wanted == tuple(modules.to_import):
            return
        if not self._has_room(entry):
            entry.why_not = "other environments are in use (MLOPS_WARM_ENVIRONMENTS)"
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._environments.lease(entry.environment))
                server, readiness = await self._start(entry)
            except (WarmStartError, EnvironmentGoneError, OSError) as error:
                self._note_failure(entry, str(error))
                return
            resources = stack.pop_all()
        self._retire(entry)
        entry.server, entry.readiness, entry.resources = server, readiness, resources
        entry.failures = 0
        logger.info(
            "environment %s: warm in %.1f s, %d modules ahead",
            entry.environment.key,
            readiness.seconds,
            len(entry.wanted) - len(readiness.skipped),
        )
        self._keep_limit()

    async def _start(self, entry: WarmEnvironment) -> tuple[WarmServer, Readiness]:
        """Start a server without the modules that make it unfit for forking.

        Raises:
            WarmStartError: It does not start, or is unfit with Prefect alone.
        """
        starts = 0
        while True:
            starts += 1
            modules = self.memory.read(entry.environment)
            server = await WarmServer.start(
                entry.environment.python, entry.variables, self._plan(modules)
            )
            readiness = await server.ready()
            if readiness.ready:
                entry.wanted = tuple(modules.to_import)
                return server, readiness
            server.kill()
            unfit = {n: r[1:] for n, r in readiness.skipped.items() if r.startswith("!")}
            if not unfit:
                raise WarmStartError("Prefect alone makes it unfit for forking")
            for name, reason in list(unfit.items()):
                key = entry.environment.key
                logger.warning("environment %s: %s is not imported ahead: %s", key, name, reason)
                if starts == STARTS:  # each further one would cost seconds of a core
                    late = modules.to_import[modules.to_import.index(name) + 1 :]
                    unfit |= dict.fromkeys(late, f"comes after {name}, which {reason}")
            self.memory.deny(entry.environment, unfit)

    def _plan(self, modules: LearnedModules) -> dict[str, Any]:
        return {
            "modules": modules.to_import,
            "limit_seconds": IMPORT_SECONDS,
            "limit_bytes": self._limit_bytes,
        }

    def _note_failure(self, entry: WarmEnvironment, reason: str) -> None:
        entry.failures += 1
        entry.failed = time.monotonic()
        entry.why_not = reason
        self._retire(entry)
        logger.warning("environment %s: no warm start: %s", entry.environment.key, reason)

    def _retire(self, entry: WarmEnvironment) -> None:
        """End a server when its last run has ended."""
        if entry.server:
            task = asyncio.create_task(_end(entry.server, entry.resources))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        entry.server, entry.readiness, entry.resources = None, None, ExitStack()

    def _has_room(self, entry: WarmEnvironment) -> bool:
        others = [each for each in self._warm.values() if each.server and each is not entry]
        oldest = min((each.last_used for each in others), default=0.0)
        return len(others) < self._limit or time.monotonic() - oldest > KEPT_SECONDS

    def _keep_limit(self) -> None:
        """Let those go that were not used for longest."""
        alive = sorted((e for e in self._warm.values() if e.server), key=lambda e: e.last_used)
        for entry in alive[: -self._limit]:
            entry.why_not = "other environments were used more recently"
            self._retire(entry)


async def _end(server: WarmServer, resources: ExitStack) -> None:
    with resources:
        await server.idle.wait()
        await server.stop()
