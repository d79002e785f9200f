"""`mlops flows watch`: the scheduler as a process, which ends in good order when it is told to."""

import io
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from mlops.errors import MlopsError

# Docker kills ten seconds after it has asked.
GRACE_SECONDS = 5.0
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


def watch(
    path: Annotated[Path | None, typer.Argument(help="Default: FLOW_DIR.")] = None,
) -> None:
    """Register the flow folders below a path now and whenever they change (the scheduler)."""
    from mlops.scheduler.watch import watch_folders
    from mlops.settings import SchedulerSettings

    settings = SchedulerSettings.from_environment(flow_dir=path)
    # FLOW_DIR may be mounted later; but who typed a name sits there and can mend it.
    if path is not None and not os.path.isdir(path):  # noqa: PTH112  # pathlib's may raise
        raise MlopsError(f"{path}: no such folder")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    terminated = _end_when_told()
    try:
        watch_folders(settings)
    except KeyboardInterrupt:
        # watchfiles makes this of whatever a signal's handler raises.
        if not terminated.is_set():
            raise
    raise SystemExit(EXIT_CODES[signal.SIGTERM])


def _end_when_told() -> threading.Event:
    """End this process on a signal, soon also when a library does not let the handler run.

    A request to an object store that has gone silent blocks for a minute, and a module of a
    user's may swallow any exception. Nothing is lost with the process: what it left unfinished
    is completed by the next registration.

    Returns:
        What is set when SIGTERM has arrived.
    """
    terminated = threading.Event()
    listening, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())

    def end(_signal: int, _frame: FrameType | None) -> None:
        terminated.set()
        raise SystemExit(EXIT_CODES[signal.SIGTERM])

    def enforce() -> None:
        _ = woken  # kept open
        while (number := listening.recv(1)[0]) not in EXIT_CODES:
            continue
        time.sleep(GRACE_SECONDS)
        os._exit(EXIT_CODES[signal.Signals(number)])

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=enforce, daemon=True, name="end-when-told").start()
    return terminated
