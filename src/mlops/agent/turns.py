"""Whose turn it is when several agents see the same run.

All of them are told of it in the same moment. If all asked for it at once, each run would cost the
server as many requests as there are agents. So each run has an order of the agents, the same for
all of them, and whoever is not the first waits a moment, in which the first takes it.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from uuid import UUID

# An agent that is told of a run has taken it after 0.1 s, and the others hear of it 0.03 s later.
STEP_SECONDS = 0.2
LONGEST_SECONDS = 1.0
FORGET_SECONDS = 60.0


class Turns:
    """The order of agents, as one of them sees it.

    Args:
        name: This agent.
        clock: Gives seconds, for tests.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._names = {name}
        self._noticed: dict[UUID, float] = {}

    def know(self, names: Iterable[str]) -> None:
        """Learn which agents there are."""
        self._names = {*names, self._name}

    def wait_seconds(self, flow_run_id: UUID) -> float:
        """Return how long it is until this agent may take a run; 0 when it may now.

        Args:
            flow_run_id: A run that waits; noticed now if it was not before.
        """
        noticed = self._noticed.setdefault(flow_run_id, self._clock())
        return max(0.0, noticed + self._delay_seconds(flow_run_id) - self._clock())

    def forget(self, flow_run_id: UUID) -> None:
        """Note that a run waits no more."""
        self._noticed.pop(flow_run_id, None)

    def forget_old(self) -> None:
        """Drop what nobody has asked for since."""
        oldest = self._clock() - FORGET_SECONDS
        self._noticed = {run: at for run, at in self._noticed.items() if at > oldest}

    def _delay_seconds(self, flow_run_id: UUID) -> float:
        own = _weight(self._name, flow_run_id)
        rank = sum(_weight(name, flow_run_id) < own for name in self._names - {self._name})
        return min(rank * STEP_SECONDS, LONGEST_SECONDS)


def _weight(name: str, flow_run_id: UUID) -> bytes:
    return hashlib.blake2b(name.encode() + flow_run_id.bytes, digest_size=8).digest()
