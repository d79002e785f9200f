"""A run's process that a fork server has made, as the agent sees it."""

import asyncio
import contextlib
import os
import signal

LAST_WORD_SECONDS = 1.0
PARENT_SECONDS = 5.0  # for its parent to tell how it ended


class WarmStartError(Exception):
    """A run could not be started the warm way; the message says why."""


class WarmProcess:
    """A run's process that a fork server has made.

    Args:
        pid: Its number.
        life_line: On which it says how it ends.
    """

    def __init__(self, pid: int, life_line: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._life_line = life_line
        self._gone = asyncio.Event()
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:  # its parent has collected it already
            self._gone.set()
        else:
            asyncio.get_running_loop().add_reader(self._descriptor, self._notice_end)
        # What its parent says; None: that is gone.
        self.status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def _notice_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._gone.set()

    async def wait(self) -> int:
        """Wait for its end; return its exit code, or the negative number of its signal.

        Its parent tells. If that is gone, the process has told itself, or was killed.
        """
        await self._gone.wait()
        with contextlib.suppress(TimeoutError):
            self.returncode = await asyncio.wait_for(asyncio.shield(self.status), PARENT_SECONDS)
        if self.returncode is not None:
            return self.returncode
        line = b""
        with contextlib.suppress(TimeoutError):  # its children may hold the other end
            line = await asyncio.wait_for(self._life_line.readline(), LAST_WORD_SECONDS)
        self.returncode = int(line) if line.strip().isdigit() else -signal.SIGKILL
        return self.returncode

    def signal_group(self, number: int) -> None:
        """Send a signal to the run's process and all that it has started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
