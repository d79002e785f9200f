"""Whether the kernel's out-of-memory killer struck when a flow's process was killed.

The kernel counts its victims, of the whole host and of every memory limit (containers included),
as `oom_kill` in /proc/vmstat. The counter is read every second while the process lives; a rise in
its last seconds, together with a SIGKILL, tells what happened.
"""

from collections import deque
from pathlib import Path

import anyio
import psutil

COUNTERS = Path("/proc/vmstat")
SAMPLE_SECONDS = 1.0
# A large process lives on for moments after its end was decided, while its memory is freed.
SAMPLES_KEPT = 5


class OutOfMemoryWatch:
    """Remembers how many processes the kernel had killed a few seconds ago."""

    def __init__(self) -> None:
        self._samples: deque[int | None] = deque([_killed()], maxlen=SAMPLES_KEPT)

    async def watch(self, pid: int) -> None:
        """Keep looking until a process is gone.

        Args:
            pid: The flow's process.
        """
        while psutil.pid_exists(pid):
            self._samples.append(_killed())
            await anyio.sleep(SAMPLE_SECONDS)

    @property
    def struck(self) -> bool:
        """Whether the kernel has killed a process since then; False where it does not tell."""
        before, now = self._samples[0], _killed()
        return before is not None and now is not None and now > before


def _killed() -> int | None:
    try:
        lines = COUNTERS.read_text().splitlines()
    except OSError:  # not Linux
        return None
    counts = (line.split() for line in lines if line.startswith("oom_kill "))
    return next((int(count) for _, count in counts), None)
