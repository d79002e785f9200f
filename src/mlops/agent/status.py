"""What an agent tells about itself: the whole of it, in one frozen model.

`mlops agent status` reads it back from another process and Prometheus gets the same numbers, so
that the two never differ. This module stays light: the command must not wait for Prefect's import.
"""

from datetime import datetime
from typing import Literal, NamedTuple, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

# How a run's process came to be: forked from a warm one, started anew as a matter of course, or
# started anew because the warm way failed.
StartKind = Literal["warm", "plain", "fallback"]
# `other`: the run goes on elsewhere or later (paused, to be retried), or nobody could be asked.
Outcome = Literal["completed", "failed", "crashed", "cancelled", "other"]
WarmState = Literal["warming", "ready", "off"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Slots(_Part):
    """How many runs there may be at a time, and how many there are."""

    total: int
    used: int


class Contact(_Part):
    """When the Prefect server last answered a question for runs."""

    at: datetime
    seconds_ago: float


class StreamStatus(_Part):
    """The stream of events that wakes the agent. `since`: connected, or lost."""

    connected: bool
    since: datetime
    seconds: float


class RunStatus(_Part):
    """A run that this agent has taken and not yet brought to its end.

    Args:
        flow_run_id: The run in Prefect.
        name: Its name there.
        since: When it was taken.
        seconds: How long ago that is.
        start: How its process was started; None: it is being prepared.
        pid: Of its process.
    """

    flow_run_id: UUID
    name: str
    since: datetime
    seconds: float
    start: StartKind | None = None
    pid: int | None = None


class GpuStatus(_Part):
    """A GPU that runs may lease.

    Args:
        gpu: Its number or UUID, as in GPU_IDS.
        flow_run_id: The run that has it; None: it is free.
        problem: Why it is not given out, such as somebody else's process on it.
    """

    gpu: str
    flow_run_id: UUID | None = None
    problem: str | None = None


class ModuleKeptOut(_Part):
    """A module that is not imported ahead of runs, and why."""

    name: str
    reason: str


class WarmStatus(_Part):
    """A process from which runs in one environment are forked.

    Args:
        environment: The environment's key.
        requirements: What it was made from, for people.
        state: `off`: its runs start the plain way.
        reason: Why it is off.
        since: When its process was started; None: there is none.
        age_seconds: How long ago that is.
        memory_bytes: Of its process, as PSS: pages that runs share with it count in parts.
        modules: What it has imported ahead.
        kept_out: What it does not.
        runs: How many were forked from it.
    """

    environment: str
    requirements: str
    state: WarmState
    reason: str | None = None
    since: datetime | None = None
    age_seconds: float | None = None
    memory_bytes: int = 0
    modules: tuple[str, ...] = ()
    kept_out: tuple[ModuleKeptOut, ...] = ()
    runs: int = 0


class CacheUses(NamedTuple):
    """How often a cache had what was asked for, and how often it did not."""

    hits: int = 0
    misses: int = 0


class CacheStatus(_Part):
    """A cache of this host, which its agents share.

    Args:
        name: Which one.
        entries: How many environments, bundles of code, or files of data.
        size_bytes: All of them; links within it count in full.
        limit_bytes: Beyond it goes what was not used for longest; None: nothing goes.
        hits: How often this agent found there what it needed; None: others use it.
        misses: How often it did not.
        hit_rate: Hits among both, 0 to 1; None before the first.
    """

    name: Literal["environments", "code", "data"]
    entries: int
    size_bytes: int
    limit_bytes: int | None = None
    hits: int | None = None
    misses: int | None = None
    hit_rate: float | None = None

    @classmethod
    def of(
        cls,
        name: Literal["environments", "code", "data"],
        entries: int,
        size_bytes: int,
        *,
        limit_bytes: int | None = None,
        uses: CacheUses | None = None,
    ) -> Self:
        """Make one, with the hit rate that follows from its uses."""
        asked = sum(uses) if uses else 0
        return cls(
            name=name,
            entries=entries,
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
            hits=uses.hits if uses else None,
            misses=uses.misses if uses else None,
            hit_rate=uses.hits / asked if uses and asked else None,
        )


class Bucket(_Part):
    """How many durations were at most so long; shorter ones count in too."""

    at_most_seconds: float
    count: int


class Durations(_Part):
    """A histogram of durations since the agent was started."""

    buckets: tuple[Bucket, ...]
    count: int
    sum_seconds: float


class StartDurations(_Part):
    """How long it took from taking a run to its process, for one kind of start."""

    start: StartKind
    durations: Durations


class OutcomeCount(_Part):
    """How many runs ended in one way."""

    outcome: Outcome
    runs: int


class AgentStatus(_Part):
    """All of it.

    Args:
        name: The worker's in Prefect.
        version: The agent's release.
        pid: Its process, as its container numbers it.
        host: The machine, for people.
        pool: The work pool whose runs it takes.
        queue: The work queue; None: every one of the pool.
        started: When it was started.
        uptime_seconds: How long ago that is.
        healthy: The server answered in the last minute.
        problem: Why it is not healthy.
        last_contact: None before the first.
        event_stream: None: it polls only.
        slots: For runs.
        runs: Those that it has now.
        gpus: Those that runs may lease; empty: runs lease none.
        warm_environments: Those that runs are forked from.
        caches: On this host.
        outcomes: Of the runs that ended here since it was started.
        starts: From taking a run to its process, likewise.
        waits: From when a run was due to when it was taken, likewise.
    """

    name: str
    version: str
    pid: int
    host: str
    pool: str
    queue: str | None
    started: datetime
    uptime_seconds: float
    healthy: bool
    problem: str | None
    last_contact: Contact | None
    event_stream: StreamStatus | None
    slots: Slots
    runs: tuple[RunStatus, ...]
    gpus: tuple[GpuStatus, ...]
    warm_environments: tuple[WarmStatus, ...]
    caches: tuple[CacheStatus, ...]
    outcomes: tuple[OutcomeCount, ...]
    starts: tuple[StartDurations, ...]
    waits: Durations
