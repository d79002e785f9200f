"""The progress of a start: one line per service, moving on a terminal, plain elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.table import Table


class Progress:
    """Shows what `startup.start_platform` reports.

    Args:
        quiet: Show nothing, only measure.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._quiet = quiet
        self._began = time.monotonic()
        self._lines: dict[str, tuple[str, float, float]] = {}  # state, since, seconds
        self.seconds = 0.0
        self._live: Live | None = None
        if not quiet and sys.stdout.isatty():
            self._live = Live(console=Console(), get_renderable=self._table, refresh_per_second=10)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._began
        if self._live:
            self._live.stop()

    def report(self, name: str, state: str, seconds: float) -> None:
        """Show a service's new state.

        Args:
            name: The service.
            state: What became of it.
            seconds: How long that took.
        """
        self._lines[name] = (state, time.monotonic(), seconds)
        if self._live:
            self._live.refresh()
        elif not self._quiet and state != "starting":
            print(f"{name:14} {state:10} {seconds:5.1f} s", flush=True)

    def _table(self) -> "Table":
        from rich.spinner import Spinner
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, (state, since, seconds) in self._lines.items():
            is_done = state in ("healthy", "done")
            table.add_row(
                "[green]✓[/]" if is_done else Spinner("dots"),
                name,
                state,
                f"{seconds if is_done else time.monotonic() - since:5.1f} s",
            )
        return table
