"""Schedules as flow.yaml writes them, made safe for the Prefect server that will expand them.

Prefect 3.8.8 accepts schedules that then fail or stall inside its scheduler, for every
deployment at once; each rule that refuses or rewrites something names what was measured.
"""

import datetime as dt
from collections.abc import Iterator
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from mlops.scheduler import cron, recurrence
from mlops.scheduler.recurrence import ANCHOR
from mlops.scheduler.timezones import to_instant
from mlops.scheduler.wording import shown

# Prefect's scheduler adds the interval to a date of today, which overflows near the year 9999.
INTERVAL_LIMIT_SECONDS = 10 * 365 * 24 * 3600
# Below, runs come faster than agents start them, and the database grows by a million rows a week.
INTERVAL_WARNING_SECONDS = 10
# No clock in use is changed by more (Antarctica/Troll: two hours).
LONGEST_CLOCK_CHANGE = dt.timedelta(hours=3)


class ScheduleError(ValueError):
    """A schedule that cannot be registered; the message names the alternative."""


class CronSchedule(BaseModel):
    """A cron expression of five fields, in the form of `agreed_cron`."""

    model_config = ConfigDict(frozen=True)

    cron: str
    timezone: str


class IntervalSchedule(BaseModel):
    """A run every `seconds` seconds, counted from 2020-01-01 00:00 in `local_timezone`."""

    model_config = ConfigDict(frozen=True)

    seconds: int
    local_timezone: str

    @property
    def timezone(self) -> str:
        """The zone that the server is told.

        Told a zone with daylight saving it adds days of 23 and 25 hours to an anchor that it
        reached in days of 24, so a pass in summer and one in winter make different dates, and
        around the change both sets of runs.
        """
        return "UTC"

    @property
    def anchor(self) -> dt.datetime:
        """The moment from which the intervals are counted, in UTC.

        Without a fixed one it would be the moment of registration, and every registration
        would move the runs.
        """
        return ANCHOR.replace(tzinfo=ZoneInfo(self.local_timezone)).astimezone(dt.UTC)


class RruleSchedule(BaseModel):
    """An iCalendar recurrence rule with DTSTART; all its dates are local to the zone."""

    model_config = ConfigDict(frozen=True)

    rrule: str
    timezone: str


Schedule = CronSchedule | IntervalSchedule | RruleSchedule


def parse_cron(expression: object, timezone: str) -> CronSchedule:
    """Check a cron expression.

    Raises:
        ScheduleError: It is not five fields, not understood, or names a date that never comes.
    """
    try:
        return CronSchedule(cron=cron.agreed_cron(_checked_text(expression)), timezone=timezone)
    except ValueError as error:
        raise ScheduleError(str(error)) from error


def parse_interval(seconds: object, timezone: str) -> IntervalSchedule:
    """Check an interval in seconds.

    Raises:
        ScheduleError: It is not a whole number from 1 to ten years.
    """
    if isinstance(seconds, float) and seconds.is_integer():
        seconds = int(seconds)  # JSON does not tell 60.0 from 60
    whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    if not whole or not 1 <= seconds <= INTERVAL_LIMIT_SECONDS:  # type: ignore[operator]
        raise ScheduleError(
            f"{shown(seconds)} is not an interval; allowed: whole seconds from 1 "
            f"to {INTERVAL_LIMIT_SECONDS} (ten years)"
        )
    return IntervalSchedule(seconds=seconds, local_timezone=timezone)


def parse_rrule(rule: object, timezone: str, now: dt.datetime | None = None) -> RruleSchedule:
    """Check a recurrence rule and bring its dates to the schedule's zone.

    Args:
        rule: The text.
        timezone: The zone's name.
        now: Aware moment from which the rule's cost for the server is judged; default: now.

    Raises:
        ScheduleError: The rule is not understood, or would stall the server.
    """
    zone = ZoneInfo(timezone)
    local_now = (now or dt.datetime.now(dt.UTC)).astimezone(zone).replace(tzinfo=None)
    try:
        text = recurrence.localized_rule(_checked_text(rule), zone, local_now)
    except ValueError as error:
        raise ScheduleError(str(error)) from error
    return RruleSchedule(rrule=text, timezone=timezone)


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
    """
    # In UTC: Python compares two moments of one zone by what the clock shows, also where it
    # shows it twice.
    moment = (after or dt.datetime.now(dt.UTC)).astimezone(dt.UTC)
    if isinstance(schedule, IntervalSchedule):
        zone = ZoneInfo(schedule.local_timezone)
        step = dt.timedelta(seconds=schedule.seconds)
        passed = (moment - schedule.anchor) // step
        return [
            (schedule.anchor + (passed + n) * step).astimezone(zone) for n in range(1, count + 1)
        ]
    zone = ZoneInfo(schedule.timezone)
    runs: set[dt.datetime] = set()
    enough: dt.datetime | None = None
    skipped_forward = cron.SKIPPED_FORWARD and isinstance(schedule, CronSchedule)
    for local in _local_dates(schedule, moment.astimezone(zone).replace(tzinfo=None)):
        # A skipped time may be counted back to before the run that precedes it.
        if enough is not None and local > enough:
            break
        run = to_instant(local, zone, skipped_forward=skipped_forward)
        if run > moment:
            runs.add(run)
        if len(runs) == count and enough is None:
            enough = local + LONGEST_CLOCK_CHANGE
    return [run.astimezone(zone) for run in sorted(runs)[:count]]


def concerns(schedule: Schedule) -> list[str]:
    """Return what is worth a warning although it is registered."""
    if not next_runs(schedule, 1):
        return ["the schedule has no run in the future"]
    if isinstance(schedule, IntervalSchedule) and schedule.seconds < INTERVAL_WARNING_SECONDS:
        runs = 24 * 3600 // schedule.seconds
        concern = f"every {schedule.seconds} s are {runs:,} runs a day, more than agents start"
        return [f"{concern} and a database should keep; let one run loop instead"]
    if isinstance(schedule, RruleSchedule):
        zone = ZoneInfo(schedule.timezone)
        now = dt.datetime.now(dt.UTC).astimezone(zone).replace(tzinfo=None)
        return [
            f"EXDATE:{exception} leaves no run out: there is none at that time of the timezone"
            for exception in recurrence.idle_exceptions(schedule.rrule, now)
        ]
    if isinstance(schedule, CronSchedule) and (lost := cron.forgotten_dates(schedule.cron)):
        instead = "method: rrule with FREQ=MONTHLY and BYMONTHDAY"
        return [f"Prefect's server forgets {lost} in this cron; use {instead}"]
    return []


def _local_dates(
    schedule: CronSchedule | RruleSchedule, moment: dt.datetime
) -> Iterator[dt.datetime]:
    # In the hour that a clock repeats, `moment` may show less than runs that are past.
    start = moment - LONGEST_CLOCK_CHANGE
    if isinstance(schedule, CronSchedule):
        return cron.local_dates(schedule.cron, start)
    return recurrence.local_dates(schedule.rrule, start)


def _checked_text(value: object) -> str:
    if not isinstance(value, str):
        raise ScheduleError(f"{shown(value)} is not text; allowed: text (quote it)")
    return value
