"""Schedules as flow.yaml writes them, made safe for the Prefect server that will expand them.

Prefect 3.8.8 accepts schedules that then fail or stall inside its scheduler, for every
deployment at once; each rule here that refuses or rewrites something names what was measured.
"""

import datetime as dt
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from dateutil.rrule import rrule, rruleset, rrulestr
from pydantic import BaseModel, ConfigDict

# Prefect expands a rule without DTSTART, and we anchor intervals, from here.
ANCHOR = dt.datetime(2020, 1, 1)  # noqa: DTZ001  # local time in the schedule's own zone
EXPANSION_LIMIT_SECONDS = 2.0
_UTC_STAMP = re.compile(r"(\d{8}T\d{6})Z")
_FREQUENCY = re.compile(r"FREQ=([A-Z]+)", re.IGNORECASE)


class ScheduleError(ValueError):
    """A schedule that cannot be registered; the message names the alternative."""


class CronSchedule(BaseModel):
    """A cron expression of five fields."""

    model_config = ConfigDict(frozen=True)

    cron: str
    timezone: str


class IntervalSchedule(BaseModel):
    """A run every `seconds` seconds, counted from 2020-01-01 in the schedule's zone."""

    model_config = ConfigDict(frozen=True)

    seconds: int
    timezone: str

    @property
    def anchor(self) -> dt.datetime:
        """The moment from which the intervals are counted.

        Without a fixed one it would be the moment of registration, and every registration
        would move the runs.
        """
        return ANCHOR.replace(tzinfo=ZoneInfo(self.timezone))


class RruleSchedule(BaseModel):
    """An iCalendar recurrence rule; all its dates are local to the schedule's zone."""

    model_config = ConfigDict(frozen=True)

    rrule: str
    timezone: str


Schedule = CronSchedule | IntervalSchedule | RruleSchedule


def parse_cron(expression: object, timezone: str) -> CronSchedule:
    """Check a cron expression.

    Raises:
        ScheduleError: It is not five fields, not understood, or names a date that never comes.
    """
    expression = _text(expression)
    fields = expression.split()
    if expression.strip().startswith("@"):
        raise ScheduleError(f"{expression!r} is a nickname; write its five fields")
    if len(fields) != 5:  # noqa: PLR2004
        raise ScheduleError(
            f"has {len(fields)} fields; allowed: five (minute hour day month weekday)"
            + ("; for runs every few seconds use method: interval" if len(fields) > 5 else "")  # noqa: PLR2004
        )
    schedule = CronSchedule(cron=" ".join(fields), timezone=timezone)
    try:
        dates = next_runs(schedule, 1)
    except CronSimError as error:
        raise ScheduleError(f"{expression!r} is not a cron expression: {error}") from error
    if not dates:
        raise ScheduleError(f"{expression!r} names a date that never comes")
    return schedule


def parse_interval(seconds: object, timezone: str) -> IntervalSchedule:
    """Check an interval in seconds.

    Raises:
        ScheduleError: It is not a whole number from 1 on.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 1:
        raise ScheduleError(f"{seconds!r} is not an interval; allowed: whole seconds from 1")
    return IntervalSchedule(seconds=seconds, timezone=timezone)


def parse_rrule(rule: object, timezone: str) -> RruleSchedule:
    """Check a recurrence rule and bring its dates to the schedule's zone.

    Raises:
        ScheduleError: The rule is not understood, or would stall the server.
    """
    rule = _text(rule)
    # `UNTIL=…Z` with a timezone is accepted by Prefect's API and then raises in its scheduler
    # on every pass.
    local = _UTC_STAMP.sub(lambda stamp: _to_local(stamp[1], timezone), rule.strip())
    frequencies = {found.upper() for found in _FREQUENCY.findall(local)}
    starts = "DTSTART" in local.upper()
    # Without DTSTART the server expands from 2020-01-01 in one blocking call: 15 s for MINUTELY,
    # over 20 s for SECONDLY, each time.
    if "SECONDLY" in frequencies or ("MINUTELY" in frequencies and not starts):
        raise ScheduleError(
            "a rule this frequent stalls the Prefect server; use method: interval with seconds"
        )
    if "COUNT=" in local.upper() and not starts:
        raise ScheduleError(
            "COUNT without DTSTART is counted from 2020-01-01 and yields nothing; "
            "add DTSTART, or use UNTIL"
        )
    schedule = RruleSchedule(rrule=local, timezone=timezone)
    try:
        next_runs(schedule, 1)
    except TimeoutError:
        raise ScheduleError(
            f"takes more than {EXPANSION_LIMIT_SECONDS:.0f} s to expand, which would stall the "
            "Prefect server; use a later DTSTART, or method: interval"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScheduleError(
            f"{rule!r} is not a recurrence rule (RFC 5545, as in "
            f"FREQ=WEEKLY;BYDAY=MO,WE;BYHOUR=9;BYMINUTE=0;BYSECOND=0): {error}"
        ) from error
    return schedule


def next_runs(
    schedule: Schedule, count: int, after: dt.datetime | None = None
) -> list[dt.datetime]:
    """Compute the next runs, as the server will.

    Args:
        schedule: A checked schedule.
        count: How many at the most.
        after: Aware moment after which they lie; default: now.

    Returns:
        Aware datetimes in the schedule's zone; fewer than `count` when the schedule ends.

    Raises:
        TimeoutError: The rule takes longer than `EXPANSION_LIMIT_SECONDS` to expand.
    """
    zone = ZoneInfo(schedule.timezone)
    moment = (after or dt.datetime.now(dt.UTC)).astimezone(zone)
    match schedule:
        case CronSchedule():
            return list(islice(CronSim(schedule.cron, moment), count))
        case IntervalSchedule():
            step = dt.timedelta(seconds=schedule.seconds)
            anchor = schedule.anchor.astimezone(dt.UTC)
            passed = (moment - anchor) // step
            return [(anchor + (passed + n) * step).astimezone(zone) for n in range(1, count + 1)]
        case RruleSchedule():
            with _time_limit(EXPANSION_LIMIT_SECONDS):
                rule: rrule | rruleset = rrulestr(schedule.rrule, dtstart=ANCHOR)
                local = rule.xafter(moment.replace(tzinfo=None), count=count)
                return [date.replace(tzinfo=zone) for date in local]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ScheduleError(f"{value!r} is not text; allowed: text (quote it)")
    return value


def _to_local(stamp: str, timezone: str) -> str:
    moment = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=dt.UTC)
    return moment.astimezone(ZoneInfo(timezone)).strftime("%Y%m%dT%H%M%S")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt pure-Python work that takes too long; dateutil can loop for minutes.

    Only the main thread can be interrupted so; elsewhere the work runs without a limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
