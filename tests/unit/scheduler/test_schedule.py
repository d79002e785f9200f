import datetime as dt
import time
from collections.abc import Callable
from zoneinfo import ZoneInfo, available_timezones

import pytest
from schedule_cases import DAY, Case, cases, clock_changes

from mlops.scheduler.schedule import (
    Schedule,
    ScheduleError,
    concerns,
    next_runs,
    parse_cron,
    parse_interval,
    parse_rrule,
)
from mlops.scheduler.timezones import is_timezone

Parser = Callable[[object, str], Schedule]

NOW = dt.datetime(2026, 11, 21, 8, 30, 15, tzinfo=dt.UTC)
PARSERS: dict[str, Parser] = {
    "cron": parse_cron,
    "interval": parse_interval,
    "rrule": lambda value, zone: parse_rrule(value, zone, NOW),
}


def parse(case: Case) -> Schedule:
    return PARSERS[case.method](case.value, case.zone)


@pytest.mark.parametrize("case", cases(NOW), ids=lambda case: case.name)
def test_next_runs_are_right_from_today_and_at_clock_changes(case: Case) -> None:
    """The runs of a month, and of the days around each clock change, are those of the oracle."""
    schedule = parse(case)
    weeks = 1 if case.name in ("cron-every-minute", "interval-60") else 5
    windows = [(NOW, NOW + weeks * 7 * DAY)]
    windows += [(c - 2 * DAY, c + 2 * DAY) for c in clock_changes(case.zone, NOW, 400)]
    for start, end in windows:
        expected = case.runs(start, end)
        found = next_runs(schedule, len(expected) + 1, start - dt.timedelta(microseconds=1))
        assert [run.astimezone(dt.UTC) for run in found if run <= end] == expected
        assert {run.tzinfo for run in found} <= {ZoneInfo(case.zone)}


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Europe/London"])
def test_next_run_is_right_at_each_minute_of_a_repeated_hour(zone: str) -> None:
    """Asked while the clock shows an hour again, the next run lies ahead and none is left out."""
    case = Case("", "cron", zone, "*/15 * * * *", due=lambda t: t.minute % 15 == 0)
    schedule = parse(case)
    for change in clock_changes(zone, NOW, 400):
        for minutes in range(-150, 150, 7):
            moment = change + dt.timedelta(minutes=minutes)
            (run,) = next_runs(schedule, 1, moment)
            assert (
                run.astimezone(dt.UTC)
                == case.runs(moment + dt.timedelta(seconds=1), moment + DAY)[0]
            )


@pytest.mark.parametrize(
    ("written", "registered"),
    [
        ("0 9 * * MON-fri", "0 9 * * mon-fri"),
        ("  0   9 * * 1-5 ", "0 9 * * 1-5"),
        ("0 9 ? * 7", "0 9 * * 7"),
        ("0 9 * * fri-mon", "0 9 * * 0,1,5,6"),
        ("0 22-2 * * *", "0 0,1,2,22,23 * * *"),
        ("5-5 * * * *", "5 * * * *"),
        ("0 0 * * 5L", "0 0 * * L5"),
        ("0 0 * * friL", "0 0 * * L5"),
        ("0 0 * * 7#1,mon#3", "0 0 * * 0#1,1#3"),
        ("0 0 31/2 * *", "0 0 31 * *"),
        ("0 0 * * 1/2", "0 0 * * 1,3,5"),
        ("0 0 1,L * 5", "0 0 1,L * 5"),
        ("0 0 *,13 * 5", "0 0 * * 5"),
    ],
)
def test_cron_is_written_as_every_reader_understands_it(written: str, registered: str) -> None:
    """Fields that Prefect reads in its own way are rewritten; the others stay as they are."""
    assert parse_cron(written, "UTC").cron == registered


@pytest.mark.parametrize(
    ("written", "registered"),
    [
        ("FREQ=DAILY", "DTSTART:20200101T000000\nRRULE:FREQ=DAILY"),
        ("freq=daily;until=20270730t040000z;", "…RRULE:FREQ=DAILY;UNTIL=20270730T120000"),
        ("RRULE:FREQ=DAILY;UNTIL=20270730", "…RRULE:FREQ=DAILY;UNTIL=20270730T000000"),
        ("FREQ=DAILY;UNTIL=99991231T235959Z", "…RRULE:FREQ=DAILY;UNTIL=99991231T235959"),
        ("FREQ=WEEKLY; BYWEEKDAY=MO,\n TU", "…RRULE:FREQ=WEEKLY;BYDAY=MO,TU"),
        (
            "RRULE:FREQ=DAILY EXDATE;TZID=UTC:20270101T000000 DTSTART;VALUE=DATE:20270101",
            "DTSTART:20270101T000000\nRRULE:FREQ=DAILY\nEXDATE:20270101T080000",
        ),
        ("FREQ=HOURLY;INTERVAL=5", "…RRULE:FREQ=HOURLY;INTERVAL=5"),
        ("FREQ=HOURLY", "DTSTART:20260101T000000\nRRULE:FREQ=HOURLY"),
        (
            "DTSTART:20000101T023000\nRRULE:FREQ=HOURLY;INTERVAL=7",
            "DTSTART:20251231T183000\nRRULE:FREQ=HOURLY;INTERVAL=7",
        ),
    ],
)
def test_rule_is_written_in_its_own_zone_with_a_near_start(written: str, registered: str) -> None:
    """Dates are local to the schedule's zone, and a frequent rule begins not before this year."""
    rule = parse_rrule(written, "Asia/Taipei", NOW).rrule
    assert rule == registered.replace("…", "DTSTART:20200101T000000\n")


def test_registering_later_in_the_year_writes_the_same_rule() -> None:
    """A rule's start and its fate change with the year, not with the moment of registration."""
    january = dt.datetime(2026, 1, 1, 0, 5, tzinfo=dt.UTC)
    december = dt.datetime(2026, 12, 31, 23, 55, tzinfo=dt.UTC)
    minutely = "DTSTART:20200101T000000\nRRULE:FREQ=MINUTELY;INTERVAL="
    for rule in ("FREQ=HOURLY", f"{minutely}10"):
        assert parse_rrule(rule, "UTC", december) == parse_rrule(rule, "UTC", january)
    for moment in (january, december):
        with pytest.raises(ScheduleError):
            parse_rrule(f"{minutely}9", "UTC", moment)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (parse_rrule("FREQ=DAILY;UNTIL=20210101T000000Z", "Asia/Taipei"), "no run in the future"),
        (parse_rrule("RDATE:20210101T000000", "UTC"), "no run in the future"),
        (
            parse_rrule("DTSTART:20300101T000000\nRRULE:FREQ=DAILY;UNTIL=20290101", "UTC"),
            "no run in the future",
        ),
        (parse_interval(1, "UTC"), "86,400 runs a day"),
        (parse_interval(10, "UTC"), None),
        (parse_cron("0 0 29 2 *", "UTC"), None),
        (parse_cron("0 9 1,15,30 * *", "UTC"), "forgets the first date of March"),
        (parse_cron("0 9 */10 * *", "UTC"), "forgets the first date of March"),
        (parse_cron("0 9 31,L * *", "UTC"), "forgets the last day of some months"),
        (parse_cron("0 9 1,15 * *", "UTC"), None),
    ],
)
def test_odd_schedule_is_a_warning(schedule: Schedule, expected: str | None) -> None:
    """What has ended, runs too often for any agent, or is misread in part is allowed and said."""
    found = concerns(schedule)
    assert (expected in found[0]) if expected else found == []


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("cron", "* * * * * *", "five (minute hour day month weekday); for runs every few"),
        ("cron", "1 *", "has 2 fields"),
        ("cron", "@daily", "nickname"),
        ("cron", "61 * * * *", "'61' in the field minute; allowed: 0 to 59"),
        ("cron", "0 24 * * *", "'24' in the field hour; allowed: 0 to 23"),
        ("cron", "0 0 * * 8", "'8' in the field weekday; allowed: 0 to 7"),
        ("cron", "0 0 * * monday", "'MONDAY' in the field weekday; allowed: 0 to 7, sun to sat"),
        ("cron", "0 0 1 january *", "'JANUARY' in the field month; allowed: 1 to 12, jan to dec"),
        ("cron", "0 0 1 13 *", "'13' in the field month; allowed: 1 to 12, jan to dec"),
        ("cron", "1E1 * * * *", "'1E1' in the field minute; allowed: 0 to 59"),
        ("cron", "H * * * *", "'H' in the field minute; allowed: 0 to 59"),
        ("cron", "0 R * * *", "'R' in the field hour; allowed: 0 to 23"),
        ("cron", "? * * * *", "'?' in the field minute"),
        ("cron", "*/0 * * * *", "steps count from 1"),
        ("cron", "0 22-4/3 * * *", "write a list"),
        ("cron", "0 9, * * *", "'' in the field hour"),
        ("cron", "٣ * * * *", "'٣' in the field minute"),
        ("cron", "0 0 L-3 * *", "'L-3' in the field day of month; allowed: 1 to 31, L (the last)"),
        ("cron", "0 0 15W * *", "L (the last); for others method: rrule"),
        ("cron", "0 0 LW * *", "L (the last); for others method: rrule"),
        ("cron", "0 0 * * 1W", "5#2 (the second); for others method: rrule"),
        ("cron", "0 0 * * 5#6", "'5#6' in the field weekday"),
        ("cron", "0 0 * * 1,5#2", "a list with # or L may hold only such"),
        ("cron", "0 0 1 * 5#2", "use * for the day of the month, or method: rrule"),
        ("cron", "0 0 */2 * 1", "write 1-31/2 or 0-6/2 for either"),
        ("cron", "0 0 30 2 *", "a date that never comes"),
        ("cron", "0 0 31 4,6 1", "a date that never comes"),
        ("cron", 5, "is not text"),
        ("interval", 0, "allowed: whole seconds from 1"),
        ("interval", "60", "allowed: whole seconds from 1"),
        ("interval", 1.5, "allowed: whole seconds from 1"),
        ("interval", True, "allowed: whole seconds from 1"),
        ("interval", 10**12, "to 315360000 (ten years)"),
        ("rrule", "FREQ=SECONDLY", "use method: interval"),
        ("rrule", "FREQ=MINUTELY;INTERVAL=30", "use method: interval with seconds"),
        ("rrule", "FREQ=HOURLY;BYMINUTE=0,5,10,15,20,30,40,50", "use method: interval or cron"),
        ("rrule", "DTSTART:20260101T000000\nRRULE:FREQ=MINUTELY", "a later DTSTART, or UNTIL"),
        (
            "rrule",
            "FREQ=DAILY;BYHOUR=9,12;BYMINUTE=0,15,30,45;BYSECOND=" + ",".join(map(str, range(60))),
            "use method: interval or cron",
        ),
        ("rrule", "DTSTART:20000101\nRRULE:FREQ=HOURLY\nRRULE:FREQ=DAILY", "a later DTSTART"),
        ("rrule", "FREQ=DAILY;COUNT=3", "COUNT without DTSTART"),
        ("rrule", "DTSTART:20260101T000000\nRRULE:FREQ=DAILY;COUNT=0", "COUNT=0 is out of range"),
        ("rrule", "FREQ=DAILY;COUNT=3;UNTIL=20270101", "COUNT and UNTIL exclude each other"),
        ("rrule", "FREQ=DAILY;INTERVAL=0", "INTERVAL=0 is out of range; allowed: 1 to"),
        ("rrule", "FREQ=DAILY;INTERVAL=-1", "INTERVAL=-1 is out of range"),
        ("rrule", "FREQ=DAILY;INTERVAL=1,2", "INTERVAL=1,2 is out of range"),
        ("rrule", "FREQ=DAILY;INTERVAL=1000000000000", "is out of range"),
        ("rrule", "FREQ=HOURLY;BYHOUR=24", "BYHOUR=24 is out of range; allowed: 0 to 23"),
        ("rrule", "FREQ=HOURLY;INTERVAL=2;BYHOUR=1", "names no date"),
        ("rrule", "FREQ=DAILY;BYMONTHDAY=32", "BYMONTHDAY=32 is out of range"),
        ("rrule", "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "a date that never comes"),
        ("rrule", "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", "a date that never comes"),
        ("rrule", "FREQ=MONTHLY;BYDAY=6MO", "a date that never comes"),
        ("rrule", "FREQ=WEEKLY;BYDAY=1MO", "BYDAY=1MO needs FREQ=MONTHLY or YEARLY"),
        ("rrule", "FREQ=WEEKLY;BYDAY=XX", "BYDAY=XX is not a weekday"),
        ("rrule", "FREQ=WEEKLY;WKST=1", "WKST=1 is not a weekday"),
        ("rrule", "FREQ=HOURLY;BYSETPOS=2", "BYSETPOS needs FREQ=DAILY or rarer"),
        ("rrule", "FREQ=YEARLY;BYEASTER=0", "list the dates as RDATE"),
        ("rrule", "RRULE:FREQ=DAILY\nEXRULE:FREQ=DAILY", "list the dates as EXDATE"),
        ("rrule", "FREQ=SOMETIMES", "is not a frequency of a recurrence rule"),
        ("rrule", "BYHOUR=9", "FREQ= is not a frequency"),
        ("rrule", "FREQ=DAILY;COLOUR=RED", "'COLOUR=RED' is not part of a recurrence rule"),
        ("rrule", "FREQ=DAILY;BYHOUR=9;BYHOUR=10", "BYHOUR is there twice"),
        ("rrule", "FREQ=DAILY;UNTIL=tomorrow", "'TOMORROW' is not a date"),
        ("rrule", "FREQ=DAILY;UNTIL=2027-07-30T04:00:00Z", "'2027-07-30T04:00:00Z' is not a date"),
        ("rrule", "FREQ=DAILY;BYHOUR=9:30", "BYHOUR=9:30 is out of range; allowed: 0 to 23"),
        ("rrule", "FREQ=DAILY;BYHOUR=9\nDTEND:20200102", "'DTEND' is unknown; allowed: DTSTART,"),
        ("rrule", "RRULE:FREQ=DAILY X-COLOUR;A=B:red", "'X-COLOUR' is unknown; allowed: DTSTART,"),
        ("rrule", "FREQ=DAILY;UNTIL=20270230", "'20270230' is not a date"),
        ("rrule", "DTSTART;TZID=Mars/Base:20270101T000000\nFREQ=DAILY", "is not a time zone"),
        ("rrule", "DTSTART;COLOUR=RED:20270101T000000\nFREQ=DAILY", "has unknown parameters"),
        ("rrule", "DTSTART:18000101T000000\nRRULE:FREQ=DAILY", "allowed: 1900 to 2100"),
        ("rrule", "DTSTART:99990101T000000\nRRULE:FREQ=DAILY", "allowed: 1900 to 2100"),
        ("rrule", "DTSTART:20260101\nDTSTART:20270101\nRRULE:FREQ=DAILY", "DTSTART is there twice"),
        ("rrule", "DTSTART:20260101", "names no date"),
        ("rrule", "", "names no date"),
        ("rrule", "SUMMARY:nightly", "'SUMMARY' is unknown"),
        ("rrule", "RDATE:" + ",".join(["20270101T000000"] * 420), "Prefect's 6500 characters"),
        ("rrule", ["FREQ=DAILY"], "is not text"),
    ],
)
def test_schedule_that_would_harm_the_server_is_refused(
    method: str, value: object, expected: str
) -> None:
    """What Prefect would choke on or misread is refused quickly, with the way out named."""
    begun = time.process_time()
    with pytest.raises(ScheduleError) as caught:
        PARSERS[method](value, "UTC")
    assert expected in str(caught.value)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "rule",
    ["{}", "FREQ={}", "FREQ=DAILY;{}", "FREQ=DAILY;BYHOUR={}", "FREQ=WEEKLY;BYDAY={}", "{}:1",
     "FREQ=DAILY;WKST={}", "DTSTART:{}", "DTSTART;TZID={}:20260101", "DTSTART;VALUE={}:20260101"],
)  # fmt: skip
def test_long_nonsense_is_not_repeated(rule: str) -> None:
    """Of what is thousands of characters long a message shows the beginning."""
    for method in ("cron", "rrule"):
        with pytest.raises(ScheduleError) as caught:
            PARSERS[method](rule.format("X" * 5000), "UTC")
        assert len(str(caught.value)) < 250


def test_exception_that_leaves_no_run_out_is_a_warning() -> None:
    """An EXDATE must be the very moment of a run, as the schedule's zone shows it."""
    now = dt.datetime.now(dt.UTC)
    day, next_day, past = (f"{now + n * DAY:%Y%m%d}" for n in (2, 3, -3))
    rule = "DTSTART:20260101T010000Z\nRRULE:FREQ=DAILY\nEXDATE:"  # 09:00 in Taipei

    def warnings(exceptions: str) -> list[str]:
        return concerns(parse_rrule(f"{rule}{exceptions}", "Asia/Taipei"))

    assert warnings(f"{day}T090000,{next_day}T010000Z,{past}") == []
    (warning,) = warnings(f"{day}T090000,{next_day}")
    assert warning.startswith(f"EXDATE:{next_day}T000000 leaves no run out")
    assert len(warnings(f"{day}T080000,{next_day}T090001,99991231")) == 2


def test_timezones_are_those_that_prefect_accepts() -> None:
    """Every zone that both zoneinfo and pytz know is one; files and folders beside them are not."""
    names = available_timezones() | {"localtime", "posixrules", "Factory", "tzdata.zi", "zone.tab"}
    names |= {"", ".", "America", "America/", "/etc/passwd", "../../etc/passwd", "Europe/../UTC"}
    names |= {"posix/UTC", "right/UTC", "europe/paris", "Europe/Paris ", "Mars/Base", "a\0b", "+8"}
    pytz = pytest.importorskip("pytz")  # comes with Prefect; it has no types
    accepted = available_timezones() & set(pytz.all_timezones)
    assert {name for name in names if is_timezone(name)} == accepted - {"Factory"}
