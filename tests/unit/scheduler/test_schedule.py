import datetime as dt
from collections.abc import Callable

import pytest

from mlops.scheduler.schedule import (
    Schedule,
    ScheduleError,
    next_runs,
    parse_cron,
    parse_interval,
    parse_rrule,
)

Parser = Callable[[object, str], Schedule]


def runs(schedule: Schedule, after: str, count: int = 2) -> list[str]:
    moment = dt.datetime.fromisoformat(after)
    return [run.isoformat() for run in next_runs(schedule, count, moment)]


def test_cron_is_local_to_its_zone() -> None:
    """09:00 in Taipei is 01:00 UTC all year."""
    schedule = parse_cron("0 9 * * *", "Asia/Taipei")
    assert runs(schedule, "2026-07-01T02:00:00+00:00") == [
        "2026-07-02T09:00:00+08:00",
        "2026-07-03T09:00:00+08:00",
    ]


def test_interval_is_counted_from_a_fixed_moment() -> None:
    """The runs of an interval do not depend on when it was registered."""
    schedule = parse_interval(3600 * 7, "UTC")
    assert runs(schedule, "2020-01-01T01:00:00+00:00") == [
        "2020-01-01T07:00:00+00:00",
        "2020-01-01T14:00:00+00:00",
    ]


def test_until_in_utc_is_brought_to_the_zone() -> None:
    """The last run of a rule with UNTIL=…Z is the last one before that moment."""
    schedule = parse_rrule("FREQ=DAILY;BYHOUR=12;UNTIL=20270730T040000Z", "Asia/Taipei")
    assert runs(schedule, "2027-07-29T00:00:00+00:00", 9) == [
        "2027-07-29T12:00:00+08:00",
        "2027-07-30T12:00:00+08:00",
    ]


def test_expired_rule_is_accepted_without_runs() -> None:
    """A rule that has ended is no mistake; it has no runs."""
    assert next_runs(parse_rrule("FREQ=DAILY;UNTIL=20210101T000000", "UTC"), 1) == []


@pytest.mark.parametrize(
    ("parse", "value", "expected"),
    [
        (parse_cron, "* * * * * *", "five (minute hour day month weekday); for runs every few"),
        (parse_cron, "1 *", "has 2 fields"),
        (parse_cron, "@daily", "nickname"),
        (parse_cron, "61 * * * *", "is not a cron expression"),
        (parse_cron, "0 0 30 2 *", "Bad day-of-month"),
        (parse_cron, 5, "is not text"),
        (parse_interval, 0, "allowed: whole seconds from 1"),
        (parse_interval, "60", "allowed: whole seconds from 1"),
        (parse_interval, True, "allowed: whole seconds from 1"),
        (parse_rrule, "FREQ=SECONDLY", "use method: interval"),
        (parse_rrule, "FREQ=MINUTELY;INTERVAL=5", "use method: interval"),
        (parse_rrule, "FREQ=DAILY;COUNT=3", "COUNT without DTSTART"),
        (parse_rrule, "FREQ=SOMETIMES", "is not a recurrence rule"),
        (parse_rrule, "DTSTART:19000101T000000\nRRULE:FREQ=MINUTELY", "takes more than 2 s"),
    ],
)
def test_schedule_that_would_harm_the_server_is_refused(
    parse: Parser, value: object, expected: str
) -> None:
    """What Prefect would choke on is refused before it gets there, with the way out named."""
    with pytest.raises(ScheduleError) as caught:
        parse(value, "UTC")
    assert expected in str(caught.value)
