"""Puts an agent's status together, from those who know a part of it each."""

import datetime as dt
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mlops import __version__
from mlops.agent.activity import Activity
from mlops.agent.cache_sizes import CacheSizes
from mlops.agent.status import (
    AgentStatus,
    CacheStatus,
    CacheUses,
    Contact,
    GpuStatus,
    Slots,
    StreamStatus,
    WarmStatus,
)
from mlops.heartbeat import Heartbeat
from mlops.settings import AgentSettings


@dataclass
class StatusSources:
    """The parts that not every agent has; whoever has one puts its function here.

    They are called in threads of the health server: quickly, and with nothing but reading.

    Args:
        event_stream: Of the server.
        gpus: Those that runs may lease.
        warm_environments: Those that runs are forked from.
        environment_uses: Of the cache of environments.
        code_uses: Of the cache of code.
    """

    event_stream: Callable[[], StreamStatus | None] = lambda: None
    gpus: Callable[[], tuple[GpuStatus, ...]] = tuple
    warm_environments: Callable[[], tuple[WarmStatus, ...]] = tuple
    environment_uses: Callable[[], CacheUses] = CacheUses
    code_uses: Callable[[], CacheUses] = CacheUses


class Observed(Protocol):
    """What an agent shows of itself."""

    @property
    def name(self) -> str:
        """The worker's name in Prefect."""

    @property
    def slots(self) -> Slots:
        """For runs."""

    @property
    def activity(self) -> Activity:
        """Its runs, and its counters."""

    @property
    def heartbeat(self) -> Heartbeat:
        """Beats when the server answers."""

    @property
    def sources(self) -> StatusSources:
        """Where the other parts come from."""


class Overview:
    """The status of an agent, read as often as somebody asks.

    Args:
        agent: Whose.
        settings: Its own.
        data_limit_bytes: Of the data cache, which its runs keep.
    """

    def __init__(self, agent: Observed, settings: AgentSettings, *, data_limit_bytes: int) -> None:
        self._agent = agent
        self._settings = settings
        self._data_limit_bytes = data_limit_bytes
        self._sizes = CacheSizes(
            environments=settings.mlops_cache_dir / "environments",
            code=settings.mlops_cache_dir / "code",
            data=settings.mlops_cache_dir / "data" / "files" / "md5",
        )
        self._started = dt.datetime.now(dt.UTC)
        self._start = time.monotonic()

    def read(self) -> AgentStatus:
        """Return how it is now."""
        agent, settings = self._agent, self._settings
        problem, last = agent.heartbeat.problem, agent.heartbeat.last
        return AgentStatus(
            name=agent.name,
            version=__version__,
            pid=os.getpid(),
            host=settings.mlops_host_name,
            pool=settings.pool_name,
            queue=settings.queue_name,
            started=self._started,
            uptime_seconds=time.monotonic() - self._start,
            healthy=problem is None,
            problem=problem,
            last_contact=Contact(at=last.at, seconds_ago=last.seconds_ago) if last else None,
            event_stream=agent.sources.event_stream(),
            slots=agent.slots,
            runs=agent.activity.runs(),
            gpus=agent.sources.gpus(),
            warm_environments=agent.sources.warm_environments(),
            caches=self._caches(),
            outcomes=agent.activity.outcomes(),
            starts=agent.activity.starts(),
            waits=agent.activity.waits(),
        )

    def _caches(self) -> tuple[CacheStatus, ...]:
        sizes, sources = self._sizes, self._agent.sources
        return (
            CacheStatus.of(
                "environments",
                *sizes.environments(),
                limit_bytes=self._settings.mlops_environment_cache_bytes,
                uses=sources.environment_uses(),
            ),
            CacheStatus.of(
                "code",
                *sizes.code(),
                limit_bytes=self._settings.mlops_code_cache_bytes,
                uses=sources.code_uses(),
            ),
            # Runs ask this one, in processes of their own: nobody here counts that.
            CacheStatus.of("data", *sizes.data(), limit_bytes=self._data_limit_bytes),
        )
