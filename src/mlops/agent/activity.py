"""What an agent does now, and what it has done since it was started.

It is noted in the agent's event loop and read in the threads of the health server.
"""

import contextlib
import datetime as dt
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args
from uuid import UUID

from mlops.agent.status import (
    Bucket,
    Durations,
    Outcome,
    OutcomeCount,
    RunStatus,
    StartDurations,
    StartKind,
)

# From a warm start, of some hundredths, to that of a first run whose environment is built.
BUCKETS_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0)

_OUTCOMES: dict[str, Outcome] = {outcome: outcome for outcome in get_args(Outcome)}


class _Histogram:
    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_SECONDS) + 1)
        self._sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self._sum_seconds += seconds

    def durations(self) -> Durations:
        buckets, count = [], 0
        for limit, more in zip(BUCKETS_SECONDS, self._counts, strict=False):
            count += more
            buckets.append(Bucket(at_most_seconds=limit, count=count))
        return Durations(
            buckets=tuple(buckets), count=sum(self._counts), sum_seconds=self._sum_seconds
        )


@dataclass
class _Run:
    flow_run_id: UUID
    name: str
    since: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    taken: float = field(default_factory=time.monotonic)
    start: StartKind | None = None
    pid: int | None = None
    outcome: Outcome = "other"


class Activity:
    """The runs of an agent, and its counters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[UUID, _Run] = {}
        self._outcomes: Counter[Outcome] = Counter()
        self._starts = {kind: _Histogram() for kind in get_args(StartKind)}
        self._waits = _Histogram()

    @contextlib.contextmanager
    def running(self, flow_run_id: UUID, name: str, due: dt.datetime | None) -> Iterator[None]:
        """Note that a run was taken; with the block's end it has ended.

        Args:
            flow_run_id: The run in Prefect.
            name: Its name there.
            due: When it was to begin, by the server's clock.
        """
        run = _Run(flow_run_id, name)
        with self._lock:
            self._runs[flow_run_id] = run
            if due is not None:
                self._waits.add(max(0.0, (run.since - due).total_seconds()))
        try:
            yield
        finally:
            with self._lock:
                self._outcomes[run.outcome] += 1
                if self._runs.get(flow_run_id) is run:  # and not picked up again
                    del self._runs[flow_run_id]

    def note_start(self, flow_run_id: UUID, start: StartKind) -> None:
        """Note how a run's process is about to be started."""
        with self._noted(flow_run_id) as run:
            run.start = start

    def note_process(self, flow_run_id: UUID, pid: int) -> None:
        """Note that a run's process was started; the plain way, unless another was noted."""
        with self._noted(flow_run_id) as run:
            run.pid, run.start = pid, run.start or "plain"
            self._starts[run.start].add(time.monotonic() - run.taken)

    def note_outcome(self, flow_run_id: UUID, state: str | None) -> None:
        """Note in which state a run ends.

        Args:
            flow_run_id: The run.
            state: Prefect's type of it, such as `COMPLETED`; None: it is unknown.
        """
        outcome = _OUTCOMES.get(state.lower(), "other") if state else "other"
        with self._noted(flow_run_id) as run:
            run.outcome = outcome

    @contextlib.contextmanager
    def _noted(self, flow_run_id: UUID) -> Iterator[_Run]:
        """Hold a run; where a later attempt at it has come and gone, one that nobody sees."""
        with self._lock:
            yield self._runs.get(flow_run_id) or _Run(flow_run_id, "")

    def runs(self) -> tuple[RunStatus, ...]:
        """Return the runs of now, the oldest first."""
        now = time.monotonic()
        with self._lock:
            return tuple(
                RunStatus(
                    flow_run_id=run.flow_run_id,
                    name=run.name,
                    since=run.since,
                    seconds=now - run.taken,
                    start=run.start,
                    pid=run.pid,
                )
                for run in self._runs.values()
            )

    def outcomes(self) -> tuple[OutcomeCount, ...]:
        """Return how the runs ended; those of every outcome, also when there were none."""
        with self._lock:
            return tuple(
                OutcomeCount(outcome=outcome, runs=self._outcomes[outcome])
                for outcome in get_args(Outcome)
            )

    def starts(self) -> tuple[StartDurations, ...]:
        """Return how long starts took, of every kind."""
        with self._lock:
            return tuple(
                StartDurations(start=kind, durations=histogram.durations())
                for kind, histogram in self._starts.items()
            )

    def waits(self) -> Durations:
        """Return how long runs waited for an agent after they were due."""
        with self._lock:
            return self._waits.durations()
