"""Recurrence rules (RFC 5545), brought to the form that Prefect's server reads rightly.

Prefect 3.8.8 reads every date of a rule as local to the schedule's zone, whatever its `Z` or
`TZID` says; `UNTIL=…Z` raises in its scheduler. And dateutil, which expands the rules there,
counts every date from DTSTART on, in one call that blocks the whole server. So the dates are
brought to the zone here, DTSTART is always written, and what would be counted too long is refused
by its arithmetic rather than by a clock: the same rule has the same fate on every machine.
"""

import datetime as dt
import re
from collections.abc import Iterator
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr

from mlops.scheduler.recurrence_rule import STAMP, Rule, parse_date, parse_rule, refuse_empty
from mlops.scheduler.wording import shown

# Where Prefect begins to count when there is no DTSTART.
ANCHOR = dt.datetime(2020, 1, 1)  # noqa: DTZ001  # local time in the schedule's own zone
# The server takes 12 µs a date: 110,000 are 1.3 s, in which it does nothing else. That is every
# ten minutes for two years, the most that a rule may have come to when it is not registered again.
EXPANSION_LIMIT = 110_000
LATER_START_LIMIT = 30_000  # above, a rule that can begin later does
# A deployment may stay as it is for long, while its rule grows with every day. Counted from New
# Year, so that what is accepted in January is not refused in June.
GROWTH_YEARS = 2
LENGTH_LIMIT = 6500  # characters; Prefect's own
YEARS = range(1900, 2101)

# Where a line of iCalendar begins, also one that is not allowed here.
_PROPERTY = re.compile(r"(?:^|(?<![;,:\s])\s+)(?=[A-Z][A-Z-]*[;:]|FREQ=)", re.IGNORECASE)


def localized_rule(text: str, zone: ZoneInfo, now: dt.datetime) -> str:
    """Return the rule as Prefect's server should get it.

    Args:
        text: A rule, or lines of DTSTART, RRULE, RDATE and EXDATE, in any case; the lines may be
            folded into one, as YAML does.
        zone: The schedule's zone.
        now: Local time there, without zone.

    Returns:
        DTSTART, then the other lines, all dates local to `zone`.

    Raises:
        ValueError: It is not a rule, or would stall or break the server; the message names the
            alternative.
    """
    starts: list[dt.datetime] = []
    rules: list[Rule] = []
    dates: dict[str, list[dt.datetime]] = {"RDATE": [], "EXDATE": []}
    for name, parameters, value in _properties(text):
        if name == "RRULE":
            rules.append(parse_rule(value, zone))
        elif name == "DTSTART":
            starts.append(parse_date(value, parameters, zone))
        else:
            dates[name] += [parse_date(date, parameters, zone) for date in value.split(",")]
    if not rules and not dates["RDATE"]:
        raise ValueError("names no date; it needs an RRULE or an RDATE")
    start = _bounded_start(rules, _start(starts, rules), now)
    for rule in rules:
        refuse_empty(rule, start)
    lines = [f"DTSTART:{start.strftime(STAMP)}", *(rule.text() for rule in rules)]
    for name, moments in dates.items():
        if moments:
            lines.append(f"{name}:" + ",".join(moment.strftime(STAMP) for moment in moments))
    written = "\n".join(lines)
    if len(written) > LENGTH_LIMIT:
        raise ValueError(f"is longer than Prefect's {LENGTH_LIMIT} characters; drop past dates")
    return written


def local_dates(rule: str, after: dt.datetime) -> Iterator[dt.datetime]:
    """Yield what the clock on the wall shows at each run.

    Args:
        rule: What `localized_rule` returned.
        after: Local time without zone, after which they lie.
    """
    return iter(rrulestr(rule).xafter(after))


def idle_exceptions(rule: str, after: dt.datetime) -> list[str]:
    """Return the EXDATEs of the next years that leave no run out.

    Args:
        rule: What `localized_rule` returned.
        after: Local time without zone, after which they lie.
    """
    lines = rule.split("\n")
    exceptions = [line.removeprefix("EXDATE:") for line in lines if line.startswith("EXDATE:")]
    stamps = [stamp for line in exceptions for stamp in line.split(",")]
    # No further than what the server counts at once: see `_bounded_start`.
    end = after + GROWTH_YEARS * dt.timedelta(days=365)
    ahead = [moment for moment in map(_parse_stamp, stamps) if after < moment < end]
    if not ahead:
        return []
    dates = rrulestr("\n".join(line for line in lines if not line.startswith("EXDATE:")))
    runs = set(dates.between(min(ahead), max(ahead), inc=True))
    return [moment.strftime(STAMP) for moment in ahead if moment not in runs]


def _parse_stamp(stamp: str) -> dt.datetime:
    return dt.datetime.strptime(stamp, STAMP)  # noqa: DTZ007  # local


def _properties(text: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield name, parameters and value of each line, without any blanks."""
    for line in _PROPERTY.split(text.strip()):
        compact = "".join(line.split())
        if not compact:
            continue
        head, colon, value = compact.partition(":")
        if not colon or "=" in head.partition(";")[0]:  # as in FREQ=DAILY;BYHOUR=9:30
            head, value = "RRULE", compact
        name, *parameters = head.split(";")
        if name.upper() == "EXRULE":
            # Where it leaves nothing over, the server searches up to the year 9999 each time.
            raise ValueError("EXRULE was withdrawn from RFC 5545; list the dates as EXDATE")
        if name.upper() not in ("DTSTART", "RRULE", "RDATE", "EXDATE"):
            raise ValueError(f"{shown(name)} is unknown; allowed: DTSTART, RRULE, RDATE, EXDATE")
        pairs = (parameter.partition("=") for parameter in parameters)
        yield name.upper(), {key.upper(): setting.strip('"') for key, _, setting in pairs}, value


def _start(starts: list[dt.datetime], rules: list[Rule]) -> dt.datetime:
    if len(starts) > 1:
        raise ValueError("DTSTART is there twice; all lines of a rule share one")
    if not starts and any("COUNT" in rule.parts for rule in rules):
        raise ValueError(
            "COUNT without DTSTART is counted from 2020-01-01 and yields nothing; "
            "add DTSTART, or use UNTIL"
        )
    if not starts and any(rule.parts["FREQ"] == "MINUTELY" for rule in rules):
        raise ValueError(
            "MINUTELY without DTSTART is counted from 2020-01-01, which stalls the Prefect server; "
            "use method: interval with seconds, or add DTSTART"
        )
    start = starts[0] if starts else ANCHOR
    if start.year not in YEARS:
        raise ValueError(f"DTSTART in {start.year}; allowed: {YEARS[0]} to {YEARS[-1]}")
    return start


def _bounded_start(rules: list[Rule], start: dt.datetime, now: dt.datetime) -> dt.datetime:
    """Return a DTSTART from which the server does not count too long.

    A single rule without COUNT may begin later, whole steps on: its dates stay the same. It is
    moved to this year's first day and not to today, so that registering again changes nothing.
    """
    new_year = dt.datetime(now.year, 1, 1)  # noqa: DTZ001  # local
    if _dates(rules, start, new_year) <= LATER_START_LIMIT:
        return start
    movable = len(rules) == 1 and not {"COUNT", "BYSETPOS"} & rules[0].parts.keys()
    if movable and rules[0].parts["FREQ"] not in ("MONTHLY", "YEARLY"):
        start += max((new_year - start) // rules[0].step, 0) * rules[0].step
    if _dates(rules, start, new_year) > EXPANSION_LIMIT:
        raise ValueError(
            "the Prefect server would stall: it counts every date since DTSTART each time, and by "
            f"the end of next year these are more than {EXPANSION_LIMIT:,}; use method: "
            "interval or cron, a later DTSTART, or UNTIL"
        )
    return start


def _dates(rules: list[Rule], start: dt.datetime, new_year: dt.datetime) -> int:
    late = max(new_year, start.replace(month=1, day=1))
    end = late.replace(year=late.year + GROWTH_YEARS)
    return sum(rule.dates_between(start, end) for rule in rules)
