"""What `mlops data …` shows while it works: bars on a terminal, lines elsewhere."""

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_LINE_SECONDS = 5.0  # between two lines where there is no terminal


class PullProgress:
    """Shows how a pull goes on, on stderr; a `fetch.Progress`.

    Args:
        name: What is pulled.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._files = self._bytes = 0
        self._all_files = self._all_bytes = 0
        self._said = time.monotonic()
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()
        if error and self._files:
            self._say(f"{self._state()}; they stay in the cache, and the next pull goes on there")

    def note(self, line: str) -> None:
        """Show a line."""
        if self._bars:
            self._bars.console.print(f"data: {line}", markup=False, highlight=False)
        else:
            self._say(line)

    def begin(self, files: int, size: int) -> None:
        """Show what is to come."""
        self._all_files, self._all_bytes = files, size
        if not sys.stderr.isatty():
            counted = f"{files:,} file{'' if files == 1 else 's'}"
            self._say(f"downloading {self._name}: {counted}, {_megabytes(size)} MB")
            return
        from rich import progress as bars
        from rich.console import Console

        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[files]}"),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.add_task(self._name, total=size, files="")
        self._bars.start()

    def advance(self, files: int, size: int) -> None:
        """Count what has come."""
        with self._lock:
            self._files += files
            self._bytes += size
            now = time.monotonic()
            if self._bars:
                counted = f"{self._files:,}/{self._all_files:,} files"
                self._bars.update(self._bars.task_ids[0], completed=self._bytes, files=counted)
            elif now - self._said >= _LINE_SECONDS:
                self._said = now
                self._say(self._state())

    def _state(self) -> str:
        return (
            f"{self._files:,} of {self._all_files:,} files, "
            f"{_megabytes(self._bytes)} of {_megabytes(self._all_bytes)} MB"
        )

    def _say(self, line: str) -> None:
        print(f"data: {line}", file=sys.stderr, flush=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 10**7 else f"{size / 1e6:.2g}"
