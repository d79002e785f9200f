"""Cron expressions, brought to the form in which every reader of them agrees.

Prefect's server reads cron with its copy of croniter, the command line computes with cronsim, and
people bring expressions from Vixie cron and Quartz. Where these differ a field is rewritten as a
plain list; where no rewriting keeps the meaning the expression is refused.
"""

import calendar
import datetime as dt
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from cronsim import CronSim

from mlops.scheduler.wording import shown

_ITEM = re.compile(
    r"(?P<first>[0-9]+|[A-Z]{3})(-(?P<last>[0-9]+|[A-Z]{3}))?(/(?P<step>[0-9]+))?"
    r"|(?P<every>\*)(/(?P<every_step>[0-9]+))?"
)
_LAST_WEEKDAY = re.compile(r"L(?P<day>[0-9]|[A-Z]{3})|(?P<day_before>[0-9]|[A-Z]{3})L")
_NTH_WEEKDAY = re.compile(r"(?P<day>[0-9]|[A-Z]{3})#(?P<nth>[1-5])")


class _Field(NamedTuple):
    """One of the five; `others` says what may stand there besides numbers."""

    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()
    others: str = ""


_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day of month", 1, 31, others=", L (the last); for others method: rrule")
_MONTH = _Field(
    "month",
    1,
    12,
    tuple(calendar.month_abbr[n].upper() for n in range(13)),
    others=", jan to dec",
)
_WEEKDAY = _Field(
    "weekday",
    0,
    7,
    ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
    others=", sun to sat, 5L (the last Friday), 5#2 (the second); for others method: rrule",
)
_FIELDS = (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY)
_FEBRUARY = 28
# Prefect counts with another library from Python 3.13 on; for rules it makes no difference.
# Server and command line run on the same Python, in the images as in a checkout.
SKIPPED_FORWARD = sys.version_info >= (3, 13)
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def agreed_cron(expression: str) -> str:
    """Return the expression as Prefect's server and everyone else understand it alike.

    Args:
        expression: Five fields, in any case, with names, ranges (also over the end, as FRI-MON),
            steps, `?`, `L`, `L5` or `5L` (the last Friday), `5#2` (the second Friday).

    Raises:
        ValueError: It is not understood, or the server would choke on it; the message names the
            alternative.
    """
    fields = expression.upper().split()
    if expression.strip().startswith("@"):
        raise ValueError(f"{expression!r} is a nickname; write its five fields")
    if len(fields) != len(_FIELDS):
        more = "; for runs every few seconds use method: interval"
        raise ValueError(
            f"has {len(fields)} fields; allowed: five (minute hour day month weekday)"
            + (more if len(fields) > len(_FIELDS) else "")
        )
    try:
        agreed = [_agreed_field(kind, text) for kind, text in zip(_FIELDS, fields, strict=True)]
    except ValueError as error:
        raise ValueError(f"{shown(expression)} is not a cron expression: {error}") from error
    _refuse_days(agreed[2], agreed[3], agreed[4])
    return " ".join(agreed)


def local_dates(expression: str, after: dt.datetime) -> Iterator[dt.datetime]:
    """Yield what the clock on the wall shows at each run.

    Args:
        expression: What `agreed_cron` returned.
        after: Local time without zone, after which they lie.
    """
    *others, weekday = expression.split()
    # cronsim writes the last Friday the other way round.
    weekday = re.sub(r"L([0-6])", r"\1L", weekday)
    return CronSim(" ".join([*others, weekday]), after)


def _agreed_field(kind: _Field, text: str) -> str:
    if kind in (_DAY, _WEEKDAY) and text == "?":
        return "*"  # Quartz's sign for "the other field decides"; cronsim does not know it
    items = text.split(",")
    if kind is _WEEKDAY and ("#" in text or "L" in text):
        return ",".join(_weekday_of_month(item) for item in items)
    numbers: set[int] = set()
    last_day = False
    plain = True
    for item in items:
        if kind is _DAY and item == "L":
            last_day = True
            continue
        expanded, agrees = _numbers(kind, item)
        numbers |= expanded
        plain = plain and agrees
    if "*" in items:
        return "*"
    if plain:
        return text.lower() if not last_day else text
    return ",".join([str(number) for number in sorted(numbers)] + ["L"] * last_day)


def _numbers(kind: _Field, item: str) -> tuple[set[int], bool]:
    """Return what an item stands for, and whether every reader would say so."""
    found = _ITEM.fullmatch(item)
    if not found:
        raise _not_allowed(kind, item)
    step = int(found["step"] or found["every_step"] or 1)
    if step < 1:
        raise ValueError(f"{item!r} in the field {kind.name}: steps count from 1")
    sunday_once = 6 if kind is _WEEKDAY else kind.highest
    if found["every"]:
        return set(range(kind.lowest, sunday_once + 1, step)), True
    first = _number(kind, found["first"])
    if found["last"] is None:
        if not found["step"]:
            return _in_week(kind, [first]), True
        # Prefect takes "31/2" for "*/2", and readers differ on whether a week ends with Sunday.
        numbers = [first, *range(first, sunday_once + 1, step)]
        return _in_week(kind, numbers), kind is not _WEEKDAY and first < kind.highest
    last = _number(kind, found["last"])
    if first < last:
        return _in_week(kind, range(first, last + 1, step)), True
    if first == last:
        return _in_week(kind, [first]), False  # Prefect takes "5-5" for the whole round
    if step > 1:
        raise ValueError(f"{item!r} in the field {kind.name}: write a list, as in 22,1,4")
    round_end = [*range(first, sunday_once + 1), *range(kind.lowest, last + 1)]
    return _in_week(kind, [first, *round_end]), False


def _in_week(kind: _Field, numbers: "range | list[int]") -> set[int]:
    return {number % 7 if kind is _WEEKDAY else number for number in numbers}


def _number(kind: _Field, text: str) -> int:
    if text in kind.names and text:
        return kind.names.index(text)
    if not text.isdigit() or not kind.lowest <= int(text) <= kind.highest:
        raise _not_allowed(kind, text)
    return int(text)


def _not_allowed(kind: _Field, text: str) -> ValueError:
    allowed = f"{kind.lowest} to {kind.highest}{kind.others}"
    return ValueError(f"{shown(text)} in the field {kind.name}; allowed: {allowed}")


def _weekday_of_month(item: str) -> str:
    if found := _NTH_WEEKDAY.fullmatch(item):
        return f"{_number(_WEEKDAY, found['day']) % 7}#{found['nth']}"
    if found := _LAST_WEEKDAY.fullmatch(item):
        return f"L{_number(_WEEKDAY, found['day'] or found['day_before']) % 7}"
    raise ValueError(
        f"{item!r} in the field weekday; a list with # or L may hold only such: 1#1,1#3 or L5"
    )


def _refuse_days(day: str, month: str, weekday: str) -> None:
    """Refuse combinations of the two day fields that cron programs disagree about."""
    if "*" not in (day, weekday):
        if "*" in day + weekday:
            raise ValueError(
                f"the days {day!r} and weekdays {weekday!r} together mean either of them to some "
                "programs and both to others; write 1-31/2 or 0-6/2 for either"
            )
        if "#" in weekday or "L" in weekday:
            raise ValueError(
                f"the weekday {weekday!r} cannot be combined with days of the month in Prefect; "
                "use * for the day of the month, or method: rrule"
            )
    days = {n for item in day.split(",") if item != "L" for n in _numbers(_DAY, item.upper())[0]}
    months = {n for item in month.split(",") for n in _numbers(_MONTH, item.upper())[0]}
    if "L" not in day and all(min(days) > _LONGEST_MONTHS[number - 1] for number in months):
        raise ValueError(f"the day {day} of the month {month} is a date that never comes")


def forgotten_dates(expression: str) -> str:
    """Return which of an expression's dates Prefect's server forgets, in words; empty: none.

    It counts on to the next listed day also where the month ends before it: of 1,15,30 it takes
    February's 30th for 2 March, and neither the run of 1 March nor a last day comes.

    Args:
        expression: What `agreed_cron` returned.
    """
    _, _, day, month, _ = expression.split()
    if day == "*":
        return ""
    days = {n for item in day.split(",") if item != "L" for n in _numbers(_DAY, item.upper())[0]}
    months = {n for item in month.split(",") for n in _numbers(_MONTH, item.upper())[0]}
    late = [number for number in days if number > _FEBRUARY]
    if "L" in day and late:
        return "the last day of some months"
    if months >= {2, 3} and late and min(days) < min(late) - _FEBRUARY:
        return "the first date of March"
    return ""
