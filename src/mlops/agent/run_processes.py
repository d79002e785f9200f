"""The processes of an attempt, found by a mark in their environment."""

import contextlib

import psutil

from mlops.agent.attempts import Attempt
from mlops.marked_processes import find_marked

ATTEMPT_VARIABLE = "MLOPS_ATTEMPT"
PATIENCE_SECONDS = 5.0


def is_running(attempt: Attempt) -> bool:
    """Return whether the flow's own process lives; its children alone do not count.

    Args:
        attempt: Whose process number may not have been noted before its agent was killed.
    """
    if attempt.pid is None:
        return bool(_find(attempt))
    with contextlib.suppress(psutil.Error, OSError):
        return _belongs(psutil.Process(attempt.pid), attempt)
    return False


def end_processes(attempt: Attempt, *, at_once: bool = False) -> int:
    """End what an attempt has left running: first politely, then by force.

    Args:
        attempt: Whose.
        at_once: By force only, so that they report nothing: the run is somebody else's.

    Returns:
        How many processes there were.
    """
    left = stubborn = _find(attempt)
    if not at_once:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(left, timeout=PATIENCE_SECONDS)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(left)


def _find(attempt: Attempt) -> list[psutil.Process]:
    return find_marked(ATTEMPT_VARIABLE, attempt.name)


def _belongs(process: psutil.Process, attempt: Attempt) -> bool:
    return (
        process.environ().get(ATTEMPT_VARIABLE) == attempt.name
        and process.status() != psutil.STATUS_ZOMBIE
    )
