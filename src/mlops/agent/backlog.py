"""Runs that the server has offered and no slot was free for.

While much waits, the server's answer lists up to 200 runs, and it would take more of the server to
list them for each slot that becomes free than to run one of them.
"""

import time
from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.client.schemas.responses import WorkerFlowRunResponse

# What somebody changes about a waiting run in the meantime reaches it too late only if it is
# rescheduled: a run that was cancelled, or that another agent has taken, the server refuses.
FRESH_SECONDS = 3.0


class Backlog:
    """The rest of the last answer.

    Args:
        clock: Gives seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: list[WorkerFlowRunResponse] = []
        self._asked = 0.0

    def fill(self, runs: Sequence[WorkerFlowRunResponse]) -> None:
        """Begin with what the server has just answered, in its order."""
        self._runs = list(runs)
        self._asked = self._clock()

    def keep(self, runs: Sequence[WorkerFlowRunResponse]) -> None:
        """Keep what is left of it."""
        self._runs = list(runs)

    def forget(self, flow_run_id: UUID) -> None:
        """Drop a run that waits no more."""
        self._runs = [each for each in self._runs if each.flow_run.id != flow_run_id]

    def take(self) -> list[WorkerFlowRunResponse]:
        """Return what is left; nothing when it is too old to go by."""
        return self._runs if self._clock() - self._asked < FRESH_SECONDS else []
