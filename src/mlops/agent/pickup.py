"""When the agent asks for runs: as soon as there is one for it, and now and then in any case."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from mlops.agent.turns import Turns

# With the event stream polling finds only what is scheduled ahead (Prefect's worker asks for runs
# of the next 10 s) and what the stream did not tell.
POLL_SECONDS = 5.0


class Pickup:
    """The moments at which an agent asks for runs.

    Args:
        turns: Of the agents.
        ask: Asks for runs, and takes them.
        resume: Takes runs of the last answer, if there are any, and returns whether.
        free_slots: Returns how many more runs the agent may take.
    """

    def __init__(
        self,
        turns: Turns,
        ask: Callable[[], Awaitable[object]],
        resume: Callable[[], Awaitable[bool]],
        free_slots: Callable[[], float],
    ) -> None:
        self._turns = turns
        self._ask = ask
        self._resume = resume
        self._free_slots = free_slots
        self._due: dict[UUID, float] = {}  # by the monotonic clock
        self._has_slot = False
        self._changed = asyncio.Event()
        self._last_asked = 0.0

    def waiting(self, flow_run_id: UUID) -> None:
        """Note a run that waits for an agent."""
        if self._free_slots() > 0:
            wait = self._turns.wait_seconds(flow_run_id)
            self._due[flow_run_id] = time.monotonic() + wait
            self._changed.set()

    def taken(self, flow_run_id: UUID) -> None:
        """Note that a run waits no more."""
        self._turns.forget(flow_run_id)
        self._due.pop(flow_run_id, None)

    def now(self) -> None:
        """Ask as soon as possible: something may have been missed."""
        self._due[UUID(int=0)] = 0.0
        self._changed.set()

    def slot_is_free(self) -> None:
        """Take a run that waits for a slot."""
        self._has_slot = True
        self._changed.set()

    @property
    def is_poll_due(self) -> bool:
        """Whether it is time to ask although nothing has been told."""
        return time.monotonic() - self._last_asked > POLL_SECONDS

    def asked(self) -> None:
        """Note that runs were asked for just now."""
        self._last_asked = time.monotonic()

    async def admit(self, runs: list[FlowRun]) -> list[FlowRun]:
        """Return the runs whose turn it is; for the others the agent asks again in time."""
        mine = []
        for run in runs:
            wait = self._turns.wait_seconds(run.id)
            if wait:
                self._due.setdefault(run.id, time.monotonic() + wait)
                self._changed.set()
            else:
                mine.append(run)
        self._turns.forget_old()
        return mine

    async def work(self) -> None:
        """Ask for what is due, until cancelled."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            if any(at <= now for at in self._due.values()):
                self._due = {run: at for run, at in self._due.items() if at > now}
                self._has_slot = False
                if self._free_slots() > 0:
                    await self._ask()
                continue
            if self._has_slot:
                self._has_slot = False
                if self._free_slots() > 0 and not await self._resume():
                    await self._ask()
                continue
            wait = min(self._due.values(), default=now + POLL_SECONDS) - now
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue
