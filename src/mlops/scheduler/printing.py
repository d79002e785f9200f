"""What the commands for flow folders print alike."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlops.storage import Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print a report for programs."""
    print(json.dumps(value, indent=2, default=str))


def warn(message: str) -> None:
    """Print a warning where it does not disturb the report."""
    print(f"mlops: warning: {message}", file=sys.stderr)


@contextmanager
def show_upload(name: str, size: int) -> "Iterator[Progress | None]":
    """Show an upload as it goes on: a bar on a terminal, a line elsewhere.

    Args:
        name: Of the flow folder.
        size: Bytes to send.
    """
    if not sys.stderr.isatty():
        print(f"mlops: uploading {name}: {size / 1e6:.0f} MB", file=sys.stderr)
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"uploading {name}", total=size)
        yield lambda sent: bar.advance(task, sent)
