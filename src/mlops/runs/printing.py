"""How a run that is followed is shown on a terminal."""

import sys
from collections.abc import Iterable

from mlops.runs.following import LogLine, RunEvent, StateChange

_LEVEL_NAMES = {10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "CRITICAL"}


def show_events(events: Iterable[RunEvent], *, url: str, to_stderr: bool) -> StateChange | None:
    """Print what happens, as it happens.

    Args:
        events: As `follow` yields them.
        url: The run's page, for somebody who stops looking.
        to_stderr: Leave the standard output to a report.

    Returns:
        The last state.
    """
    out = sys.stderr if to_stderr else sys.stdout
    state = None
    try:
        for event in events:
            if isinstance(event, LogLine):
                level = _LEVEL_NAMES.get(event.level, str(event.level))
                print(f"{event.timestamp.astimezone():%H:%M:%S} {level:5} {event}", file=out)
            elif isinstance(event, StateChange):
                state = event
                print(f"{event.timestamp.astimezone():%H:%M:%S} ----- {event.name}", file=out)
            else:
                print(f"mlops: warning: {event.message}", file=sys.stderr)
            out.flush()
    except KeyboardInterrupt:
        print(f"mlops: the run goes on: {url}", file=sys.stderr)
        raise
    return state
