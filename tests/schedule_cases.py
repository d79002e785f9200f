"""Schedules and when they are due, worked out without the code that is under test.

Cron is held against a scan of every minute, recurrence rules against dateutil's own objects built
by hand from the dates as written, intervals against arithmetic in UTC.
"""

import calendar
import datetime as dt
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from dateutil.rrule import DAILY, FR, MO, MONTHLY, SU, TU, WE, WEEKLY, YEARLY, rrule, rruleset

DAY = dt.timedelta(days=1)
MINUTE = dt.timedelta(minutes=1)


def _local(year: int, month: int, day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(year, month, day, hour)  # noqa: DTZ001  # what the clock shows


START = _local(2020, 1, 1)  # where rules and intervals begin
MON, THU, FRI, SAT, SUN = 1, 4, 5, 6, 7

Due = Callable[[dt.datetime], bool]


class Case(NamedTuple):
    """A schedule; exactly one of `due`, `rule` and `seconds` says what is right.

    Attributes:
        name: Also its flow's and its deployment's.
        method: As in flow.yaml.
        zone: As in flow.yaml.
        value: As in flow.yaml, under the method's key.
        due: Whether a local minute is one of a run.
        rule: The local dates.
        seconds: Between two runs, from `START` in the zone.
    """

    name: str
    method: str
    zone: str
    value: str | int
    due: Due | None = None
    rule: rrule | rruleset | None = None
    seconds: int | None = None

    def runs(self, start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
        """Return the runs from `start` to `end`, both included, in UTC."""
        zone = ZoneInfo(self.zone)
        if self.seconds is not None:
            step = dt.timedelta(seconds=self.seconds)
            first = START.replace(tzinfo=zone).astimezone(dt.UTC)
            first += -((first - start) // step) * step  # rounded up
            return [first + n * step for n in range((end - first) // step + 1)]
        begin, stop = (moment.astimezone(zone).replace(tzinfo=None) for moment in (start, end))
        dates = self._local_dates(begin - DAY, stop + DAY)
        forward = self.method == "cron" and sys.version_info >= (3, 13)  # as Prefect has it
        runs = {_instant(local, zone, forward=forward) for local in dates}
        return sorted(run for run in runs if start <= run <= end)

    def _local_dates(self, begin: dt.datetime, stop: dt.datetime) -> Iterable[dt.datetime]:
        if self.rule is not None:
            return self.rule.between(begin, stop, inc=True)
        assert self.due is not None
        first = begin.replace(second=0, microsecond=0)
        minutes = (first + n * MINUTE for n in range((stop - first) // MINUTE + 1))
        return [minute for minute in minutes if self.due(minute)]


def clock_changes(zone: str, start: dt.datetime, days: int) -> list[dt.datetime]:
    """Return the hours in which a zone's offset changes."""
    first = start.replace(minute=0, second=0, microsecond=0)
    hours = [(first + n * DAY / 24).astimezone(ZoneInfo(zone)) for n in range(days * 24)]
    return [
        hour.astimezone(dt.UTC)
        for hour, later in pairwise(hours)
        if hour.utcoffset() != later.utcoffset()
    ]


def _instant(local: dt.datetime, zone: ZoneInfo, *, forward: bool) -> dt.datetime:
    """Return the first moment that shows a local time; a skipped one goes forward or back."""
    offsets = [
        (local.replace(tzinfo=dt.UTC) + days * DAY).astimezone(zone).utcoffset() or dt.timedelta()
        for days in (-1, 1)
    ]
    candidates = [(local - offset).replace(tzinfo=dt.UTC) for offset in offsets]
    showing = [c for c in candidates if c.astimezone(zone).replace(tzinfo=None) == local]
    return min(showing) if showing else max(candidates) if forward else min(candidates)


def _at(*times: tuple[int, int]) -> Due:
    return lambda t: (t.hour, t.minute) in times


def _last_of_month(t: dt.datetime) -> bool:
    return t.day == calendar.monthrange(t.year, t.month)[1]


def cases(now: dt.datetime) -> list[Case]:
    """Return the schedules.

    Args:
        now: Aware moment; some begin or skip dates around it.
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    return [*_cron(), *_intervals(), *_rules(), *_sets_of_dates(today)]


def _cron() -> list[Case]:
    def cron(name: str, zone: str, value: str, due: Due) -> Case:
        return Case(f"cron-{name}", "cron", zone, value, due=due)

    new_york, lord_howe = "America/New_York", "Australia/Lord_Howe"
    return [
        cron("every-minute", "Asia/Taipei", "* * * * *", lambda _: True),
        cron(
            "names",
            "Asia/Taipei",
            "0 9 * * MON-fri",
            lambda t: _at((9, 0))(t) and t.isoweekday() <= FRI,
        ),
        cron("skipped", new_york, "30 2 * * *", _at((2, 30))),
        cron(
            "quarters",
            new_york,
            "*/15 1-3 * * *",
            lambda t: 1 <= t.hour <= 3 and t.minute % 15 == 0,
        ),
        cron("hourly", lord_howe, "0 * * * *", lambda t: t.minute == 0),
        cron("half-hour-skipped", lord_howe, "15 2 * * *", _at((2, 15))),
        cron("half-hour-twice", lord_howe, "45 1 * * *", _at((1, 45))),
        cron("midnight-skipped", "America/Santiago", "0 0 * * *", _at((0, 0))),
        cron("twice", "Europe/London", "30 1 * * *", _at((1, 30))),
        cron("odd-change", "Pacific/Chatham", "0 3 * * *", _at((3, 0))),
        cron(
            "day-or-weekday",
            "UTC",
            "0 12 13 * 5",
            lambda t: _at((12, 0))(t) and (t.day == 13 or t.isoweekday() == FRI),
        ),
        cron(
            "last-day",
            "Asia/Kathmandu",
            "0 0 L * *",
            lambda t: _at((0, 0))(t) and _last_of_month(t),
        ),
        cron(
            "last-friday",
            "Europe/Berlin",
            "0 18 * * 5L",
            lambda t: _at((18, 0))(t) and t.isoweekday() == FRI and (t + 7 * DAY).month != t.month,
        ),
        cron(
            "over-the-week",
            "Pacific/Honolulu",
            "0 9 * * fri-mon",
            lambda t: _at((9, 0))(t) and t.isoweekday() in (FRI, SAT, SUN, MON),
        ),
        cron(
            "over-midnight",
            "Australia/Sydney",
            "0 22-2 * * *",
            lambda t: t.minute == 0 and t.hour in (22, 23, 0, 1, 2),
        ),
        cron(
            "second-friday",
            "America/Sao_Paulo",
            "0 9 * * fri#2",
            lambda t: _at((9, 0))(t) and t.isoweekday() == FRI and 8 <= t.day <= 14,
        ),
        cron(
            "quartz",
            "Europe/Dublin",
            "0 1 ? * 7",
            lambda t: _at((1, 0))(t) and t.isoweekday() == SUN,
        ),
        cron(
            "lists",
            "Asia/Kolkata",
            "5-5 6 1,15 jan-jun,SEP,11/1 *",
            lambda t: (
                _at((6, 5))(t) and t.day in (1, 15) and t.month in (1, 2, 3, 4, 5, 6, 9, 11, 12)
            ),
        ),
        cron(
            "weekday-steps",
            "America/Havana",
            "20/20 0 * * 1/3",
            lambda t: _at((0, 20), (0, 40))(t) and t.isoweekday() in (MON, THU),
        ),
        cron(
            "leap-day",
            "UTC",
            "0 0 29 2 *",
            lambda t: _at((0, 0))(t) and (t.month, t.day) == (2, 29),
        ),
    ]


def _intervals() -> list[Case]:
    return [
        Case(f"interval-{seconds}", "interval", zone, seconds, seconds=seconds)
        for zone, seconds in (
            ("UTC", 60),
            ("Asia/Kathmandu", 5400),
            ("America/New_York", 3600),
            ("America/New_York", 86_400),
            ("Australia/Lord_Howe", 90_000),
            ("Europe/Berlin", 604_800),
        )
    ]


def _rules() -> list[Case]:
    def rule(
        name: str, zone: str, value: str, due: Due | None = None, rule: rrule | None = None
    ) -> Case:
        return Case(f"rrule-{name}", "rrule", zone, value, due=due, rule=rule)

    return [
        rule(
            "until-in-utc",
            "Asia/Taipei",
            "FREQ=WEEKLY;BYDAY=MO,WE,FR;UNTIL=20970730T040000Z",
            rule=rrule(WEEKLY, START, byweekday=(MO, WE, FR), until=_local(2097, 7, 30, 12)),
        ),
        rule(
            "skipped",
            "America/New_York",
            "RRULE:FREQ=DAILY;BYHOUR=2;BYMINUTE=30;BYSECOND=0;",
            rule=rrule(DAILY, START, byhour=2, byminute=30, bysecond=0),
        ),
        rule("hourly", "America/New_York", "FREQ=HOURLY", lambda t: t.minute == 0),
        rule(
            "seven-hours",
            "Europe/Berlin",
            "DTSTART:20150301T001000\nRRULE:FREQ=HOURLY;INTERVAL=7;BYMINUTE=10,40",
            lambda t: (
                t.minute in (10, 40)
                and (t.replace(minute=0) - _local(2015, 3, 1)) % (7 * DAY / 24) == 0 * DAY
            ),
        ),
        rule(
            "ninety-minutes",
            "Australia/Lord_Howe",
            "DTSTART:20200101T000000\nRRULE:FREQ=MINUTELY;INTERVAL=90",
            lambda t: (t - START) % (90 * MINUTE) == 0 * DAY,
        ),
        rule(
            "other-zone",
            "Asia/Taipei",
            "dtstart;tzid=Europe/Berlin:20260105t090000 rrule:freq=weekly; byday=mo",
            rule=rrule(WEEKLY, _local(2026, 1, 5, 16), byweekday=MO),
        ),
        rule(
            "last-friday",
            "Europe/London",
            "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17",
            rule=rrule(MONTHLY, START, byweekday=FR(-1), byhour=17),
        ),
        rule(
            "on-the-change",
            "Europe/Berlin",
            "FREQ=YEARLY;BYMONTH=3,10;BYDAY=-1SU;BYHOUR=2;BYMINUTE=0,30",
            rule=rrule(
                YEARLY, START, bymonth=(3, 10), byweekday=SU(-1), byhour=2, byminute=(0, 30)
            ),
        ),
        rule(
            "last-workday",
            "America/Santiago",
            "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=0,23",
            rule=rrule(MONTHLY, START, byweekday=range(5), bysetpos=-1, byhour=(0, 23)),
        ),
        rule(
            "fortnight",
            "Asia/Kathmandu",
            "FREQ=WEEKLY;INTERVAL=2;WKST=SU;BYDAY=SU,MO",
            rule=rrule(WEEKLY, START, interval=2, wkst=SU, byweekday=(SU, MO)),
        ),
        rule(
            "expired",
            "UTC",
            "FREQ=DAILY;UNTIL=20210101T000000Z",
            rule=rrule(DAILY, START, until=_local(2021, 1, 1)),
        ),
        rule(
            "far-future",
            "Asia/Taipei",
            "DTSTART:20900101T090000Z\nRRULE:FREQ=DAILY",
            rule=rrule(DAILY, _local(2090, 1, 1, 17)),
        ),
    ]


def _sets_of_dates(today: dt.datetime) -> list[Case]:
    def stamp(moment: dt.datetime) -> str:
        return f"{moment:%Y%m%dT%H%M%S}"

    two_rules = rruleset()
    two_rules.rrule(rrule(WEEKLY, START, byweekday=TU, byhour=1))
    two_rules.rrule(rrule(DAILY, START, interval=2, byhour=3))

    exceptions = rruleset()
    exceptions.rrule(rrule(DAILY, _local(2026, 1, 1, 8)))
    exceptions.exdate(today + 3 * DAY + dt.timedelta(hours=8))
    exceptions.exdate(today + 5 * DAY + dt.timedelta(hours=8))
    exceptions.rdate(today + 4 * DAY + dt.timedelta(hours=20))

    dates = rruleset()
    dates.rdate(today + 2 * DAY)
    dates.rdate(today + 9 * DAY + dt.timedelta(hours=13, minutes=30))
    return [
        Case(
            "rrule-two-rules",
            "rrule",
            "Pacific/Chatham",
            "RRULE:FREQ=WEEKLY;BYDAY=TU;BYHOUR=1\nRRULE:FREQ=DAILY;INTERVAL=2;BYHOUR=3",
            rule=two_rules,
        ),
        Case(
            "rrule-exceptions",
            "rrule",
            "Asia/Taipei",
            "DTSTART:20260101T000000Z\nRRULE:FREQ=DAILY\n"
            f"EXDATE:{stamp(today + 3 * DAY)}Z,{stamp(today + 5 * DAY + dt.timedelta(hours=8))}\n"
            f"RDATE;TZID=Asia/Tokyo:{stamp(today + 4 * DAY + dt.timedelta(hours=21))}",
            rule=exceptions,
        ),
        Case(
            "rrule-dates",
            "rrule",
            "Asia/Kathmandu",
            f"RDATE;VALUE=DATE:{today + 2 * DAY:%Y%m%d}\n"
            f"RDATE:{stamp(today + 9 * DAY + dt.timedelta(hours=7, minutes=45))}Z",
            rule=dates,
        ),
        Case(
            "rrule-count",
            "rrule",
            "America/New_York",
            f"DTSTART:{stamp(today - 10 * DAY)}\nRRULE:FREQ=DAILY;COUNT=40",
            rule=rrule(DAILY, today - 10 * DAY, count=40),
        ),
    ]
