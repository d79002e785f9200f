"""One RRULE of a schedule: its parts, how many dates it makes, and whether it makes any."""

import datetime as dt
import re
from typing import NamedTuple
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr

from mlops.scheduler.timezones import is_timezone
from mlops.scheduler.wording import shortened, shown

INTERVAL_LIMIT = 1_000_000
COUNT_LIMIT = 30_000
STAMP = "%Y%m%dT%H%M%S"

_DATE = re.compile(r"(\d{8})(?:T(\d{4}|\d{6})(Z?))?", re.ASCII | re.IGNORECASE)
_WEEKDAY = re.compile(r"([+-]?\d{1,2})?(?:SU|MO|TU|WE|TH|FR|SA)", re.ASCII)
_EXAMPLE = "FREQ=WEEKLY;BYDAY=MO,WE;BYHOUR=9;BYMINUTE=0;BYSECOND=0"
_UNITS = {
    "MINUTELY": dt.timedelta(minutes=1),
    "HOURLY": dt.timedelta(hours=1),
    "DAILY": dt.timedelta(days=1),
    "WEEKLY": dt.timedelta(weeks=1),
    "MONTHLY": dt.timedelta(days=28),
    "YEARLY": dt.timedelta(days=365),
}
# Lowest and highest value (RFC 5545, 3.3.10), and whether it may be counted from the end.
_NUMBERS = {
    "BYSECOND": (0, 59, False),
    "BYMINUTE": (0, 59, False),
    "BYHOUR": (0, 23, False),
    "BYMONTH": (1, 12, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYSETPOS": (1, 366, True),
    "INTERVAL": (1, INTERVAL_LIMIT, False),
    "COUNT": (1, COUNT_LIMIT, False),
}
_KNOWN_PARTS = ("FREQ", "UNTIL", "BYDAY", "WKST", *_NUMBERS)


class Rule(NamedTuple):
    """One RRULE line, its parts in capitals and its UNTIL local to the schedule's zone."""

    parts: dict[str, str]
    until: dt.datetime | None

    @property
    def step(self) -> dt.timedelta:
        """The time from one repetition to the next, at the least."""
        return _UNITS[self.parts["FREQ"]] * int(self.parts.get("INTERVAL", "1"))

    def choices(self, part: str) -> int:
        """Return how many values a part lists; 1 without it."""
        return len(self.parts[part].split(",")) if part in self.parts else 1

    def dates_of_a_step(self) -> int:
        """Return how many dates a step holds, at the most."""
        times = self.choices("BYMINUTE") * self.choices("BYSECOND")
        match self.parts["FREQ"]:
            case "MINUTELY":
                return self.choices("BYSECOND")
            case "HOURLY":
                return times
            case "DAILY":
                days = 1
            case "WEEKLY":
                days = self.choices("BYDAY")
            case "MONTHLY":
                days = 31 if "BYDAY" in self.parts else self.choices("BYMONTHDAY")
            case _:
                anywhere = {"BYDAY", "BYYEARDAY", "BYWEEKNO"} & self.parts.keys()
                days = self.choices("BYMONTH") * self.choices("BYMONTHDAY")
                days = 366 if anywhere else days
        return days * times * self.choices("BYHOUR")

    def dates_between(self, start: dt.datetime, end: dt.datetime) -> int:
        """Return how many dates dateutil passes on its way to `end`, at the most."""
        end = min(end, self.until) if self.until else end
        count = (max(end - start, dt.timedelta()) // self.step + 1) * self.dates_of_a_step()
        return min(count, int(self.parts.get("COUNT", count)))

    def text(self) -> str:
        """Return the line for Prefect."""
        parts = dict(self.parts)
        if self.until:
            parts["UNTIL"] = self.until.strftime(STAMP)
        return "RRULE:" + ";".join(f"{name}={value}" for name, value in parts.items())


def parse_rule(value: str, zone: ZoneInfo) -> Rule:
    """Read one rule, its UNTIL brought to the schedule's zone.

    Raises:
        ValueError: It is not a rule, or one that dateutil misreads or chokes on.
    """
    parts: dict[str, str] = {}
    for part in value.upper().strip(";").split(";"):
        name, _, setting = part.partition("=")
        name = {"BYWEEKDAY": "BYDAY"}.get(name, name)
        if name == "BYEASTER":
            raise ValueError("BYEASTER is not in RFC 5545; list the dates as RDATE")
        if name not in _KNOWN_PARTS:
            raise ValueError(
                f"{shown(part)} is not part of a recurrence rule (RFC 5545, as in {_EXAMPLE})"
            )
        if name in parts:
            raise ValueError(f"{name} is there twice")
        parts[name] = setting
    _check_frequency(parts)
    for name, setting in parts.items():
        if name in _NUMBERS:
            _check_numbers(name, setting)
    until = parts.pop("UNTIL", None)
    if until is not None and "COUNT" in parts:
        raise ValueError("COUNT and UNTIL exclude each other; keep one")
    return Rule(parts, parse_date(until, {}, zone) if until is not None else None)


def _check_frequency(parts: dict[str, str]) -> None:
    frequency = parts.get("FREQ", "")
    if frequency == "SECONDLY":
        raise ValueError(
            "a rule this frequent stalls the Prefect server; use method: interval with seconds"
        )
    if frequency not in _UNITS:
        raise ValueError(
            f"FREQ={shortened(frequency)} is not a frequency of a recurrence rule; allowed: "
            + ", ".join(_UNITS)
        )
    weekdays = parts.get("BYDAY", "MO").split(",")
    if parts.get("WKST", "MO") not in ("MO", "TU", "WE", "TH", "FR", "SA", "SU"):
        raise ValueError(f"WKST={shortened(parts['WKST'])} is not a weekday; allowed: MO to SU")
    for weekday in weekdays:
        found = _WEEKDAY.fullmatch(weekday)
        if not found or (found[1] and not 1 <= abs(int(found[1])) <= 53):  # noqa: PLR2004  # weeks
            raise ValueError(
                f"BYDAY={shortened(weekday)} is not a weekday; allowed: MO to SU, 1MO, -1FR"
            )
        if found[1] and frequency not in ("MONTHLY", "YEARLY"):
            raise ValueError(f"BYDAY={weekday} needs FREQ=MONTHLY or YEARLY")
    if "BYSETPOS" in parts and frequency in ("HOURLY", "MINUTELY"):
        raise ValueError("BYSETPOS needs FREQ=DAILY or rarer; list the times with BYMINUTE")


def _check_numbers(name: str, setting: str) -> None:
    lowest, highest, from_end = _NUMBERS[name]
    for number in setting.split(",") if name.startswith("BY") else [setting]:
        found = re.fullmatch(r"[+-]?\d{1,9}", number, re.ASCII)
        value = int(number) if found else None
        size = abs(value) if value is not None and from_end else value
        if size is None or not lowest <= size <= highest:
            raise ValueError(
                f"{name}={shortened(number)} is out of range; allowed: {lowest} to {highest}"
                + (", or counted from the end: -1" if from_end else "")
            )


def refuse_empty(rule: Rule, start: dt.datetime) -> None:
    """Refuse a rule that has no date at all: the server would search it up to the year 9999.

    The search here is short because it begins close to that year: the calendar, weekdays and
    leap years included, repeats every 400 years.
    """
    cycles = (dt.MAXYEAR - 29 - start.year) // 400
    late = start.replace(year=start.year + 400 * cycles)
    endless = {name: value for name, value in rule.parts.items() if name != "COUNT"}
    text = f"DTSTART:{late.strftime(STAMP)}\n{Rule(endless, None).text()}"
    try:
        found = next(iter(rrulestr(text)), None)
    except (ValueError, TypeError) as error:  # dateutil has no date for its interval and hours
        raise ValueError(f"{shortened(rule.text())} names no date: {error}") from error
    if found is None:
        raise ValueError(f"{shortened(rule.text())} names a date that never comes")


def parse_date(value: str, parameters: dict[str, str], zone: ZoneInfo) -> dt.datetime:
    """Read a date of a rule and return it as the schedule's zone shows it.

    Args:
        value: As in RFC 5545, `20270730T090000`, with `Z` for UTC; without time it is midnight.
        parameters: What the line's name is followed by, such as TZID.
        zone: The schedule's zone.

    Raises:
        ValueError: It is not a date.
    """
    unknown = parameters.keys() - {"TZID", "VALUE"}
    if unknown or parameters.get("VALUE", "DATE").upper() not in ("DATE", "DATE-TIME"):
        raise ValueError(f"{shown(value)} has unknown parameters; allowed: TZID, VALUE=DATE")
    found = _DATE.fullmatch(value)
    try:
        if not found:
            raise ValueError  # noqa: TRY301  # told with the dates that no calendar has
        moment = dt.datetime.strptime(  # noqa: DTZ007  # local, until its zone is known
            f"{found[1]}T{found[2] or '0':0<6}", STAMP
        )
    except ValueError:
        raise ValueError(f"{shown(value)} is not a date; allowed: 20270730T090000") from None
    name = "UTC" if found[3] else parameters.get("TZID")
    if name is None:
        return moment
    if not is_timezone(name):
        raise ValueError(
            f"TZID={shortened(name)} is not a time zone; allowed: IANA names, as Asia/Taipei"
        )
    try:
        return moment.replace(tzinfo=ZoneInfo(name)).astimezone(zone).replace(tzinfo=None)
    except OverflowError:  # the end of the calendar: "for ever"
        return moment
