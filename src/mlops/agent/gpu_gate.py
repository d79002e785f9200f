"""Which of the runs on offer this agent may take, as far as GPUs go; others stay in the queue."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

import anyio.to_thread
from prefect.client.schemas.objects import FlowRun

from mlops.agent.gpu_leases import GpuLeases, Shortage
from mlops.agent.job import Demands
from mlops.errors import MlopsError

# A run that any agent of the pool can take is gone by then.
PATIENCE_SECONDS = 15.0

# Is given a run and a line, for the run's page and the agent's own log.
Tell = Callable[[FlowRun, str], None]


@dataclass
class _Waiting:
    """A run that was not taken: since when, and whether its log says so already."""

    since: float = field(default_factory=time.monotonic)
    is_told: bool = False


class GpuGate:
    """Keeps devices for the runs that may be taken.

    Args:
        leases: The devices of this agent.
        demands: Returns what a run needs.
        free_slots: Returns how many more runs the agent may take now.
        tell: Tells people why a run waits, once it has waited for a while.
    """

    def __init__(
        self,
        leases: GpuLeases,
        demands: Callable[[FlowRun], Awaitable[Demands]],
        free_slots: Callable[[], float],
        tell: Tell,
    ) -> None:
        self._leases = leases
        self._demands = demands
        self._free_slots = free_slots
        self._tell = tell
        self._waiting: dict[UUID, _Waiting] = {}

    async def admit(self, runs: list[FlowRun]) -> list[FlowRun]:
        """Return the runs that may be taken, with devices kept for those that need some.

        None overtakes another on the way to a device that will become free, or a run with many
        would wait for ever.
        """
        self._waiting = {r.id: self._waiting.get(r.id) or _Waiting() for r in runs}
        admitted: list[FlowRun] = []
        is_blocked = False
        try:
            for run in runs:
                if len(admitted) >= self._free_slots():
                    break
                count = await self._count(run)
                if count == 0:
                    admitted.append(run)
                elif count > len(self._leases.devices):
                    self._explain(run, self._never(count))
                elif not is_blocked:
                    shortage = await anyio.to_thread.run_sync(self._leases.reserve, run.id, count)
                    if shortage is None:
                        admitted.append(run)
                    else:
                        is_blocked = count <= len(self._leases.devices) - shortage.foreign
                        self._explain(run, _not_now(count, shortage))
        except BaseException:
            for run in admitted:
                self._leases.cancel_reservation(run.id)
            raise
        return admitted

    async def _count(self, run: FlowRun) -> int:
        try:
            return (await self._demands(run)).gpus
        except MlopsError:  # told when the run begins, which it then does not
            return 0

    def _never(self, count: int) -> str:
        return (
            f"asks for {_gpus(count)}, and this agent has {len(self._leases.devices)}: it does not "
            "take this run, which waits for an agent of its pool that has more. If there is none, "
            "ask for fewer"
        )

    def _explain(self, run: FlowRun, reason: str) -> None:
        waiting = self._waiting[run.id]
        if not waiting.is_told and time.monotonic() - waiting.since > PATIENCE_SECONDS:
            waiting.is_told = True
            self._tell(run, reason)


def _not_now(count: int, shortage: Shortage) -> str:
    return (
        f"waits for {_gpus(count)}: other runs have {shortage.leased} of this agent's, and "
        f"processes that are no runs use {shortage.foreign}"
    )


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
