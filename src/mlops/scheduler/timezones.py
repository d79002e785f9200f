"""Time zones by name, and what their clocks do when they are changed."""

import datetime as dt
import difflib
import re
from zoneinfo import ZoneInfo, available_timezones

# Names of files in the zones' folder that Prefect, or its readers of zones, do not take for one.
_NO_ZONES = {"localtime", "posixrules", "Factory"}
# Left out of suggestions: Etc/GMT+8 is eight hours behind UTC, as POSIX counts.
_FIXED = re.compile(r"(?:Etc/)?GMT[+-]\d+")
_OFFSET = re.compile(r"(?:UTC|GMT)(?P<sign>[+-])0?(?P<hours>\d{1,2})(?::?00)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", re.ASCII)


def is_timezone(name: str) -> bool:
    """Return whether Prefect's server knows the zone, in exactly this spelling.

    Much faster than `zoneinfo.available_timezones()`, which reads every file there is.
    """
    if name in _NO_ZONES or not _NAME.fullmatch(name) or name.startswith(("posix/", "right/")):
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no zone's file; a folder
        return False
    return True


def timezone_mistake(name: str) -> str | None:
    """Return what is wrong with the name of a time zone, or None; near misses are named."""
    if is_timezone(name):
        return None
    if fixed := _fixed_offset(name):
        return (
            f"{name!r} is not a time zone; allowed: a city's zone, such as Asia/Taipei, or else "
            f"{fixed}"
        )
    zones = available_timezones() - _NO_ZONES
    known = {each.lower(): each for each in zones if not _FIXED.fullmatch(each)}
    close = difflib.get_close_matches(name.lower(), known, 3, 0.5)
    examples = ", ".join(known[each] for each in close) or "Europe/Paris, UTC"
    return f"{name!r} is not a time zone; allowed: IANA names, such as {examples}"


def _fixed_offset(name: str) -> str | None:
    """Return the zone that an offset such as UTC+8 means, in words; None: it is none."""
    found = _OFFSET.fullmatch(name)
    if not found:
        return None
    hours = int(found["hours"])
    if not hours:
        return "UTC"
    zone = f"Etc/GMT{'-' if found['sign'] == '+' else '+'}{hours}"
    meant = f"UTC{found['sign']}{hours}"
    return f"{zone}, which is {meant} (its sign is turned round)" if is_timezone(zone) else None


def to_instant(local: dt.datetime, zone: ZoneInfo, *, skipped_forward: bool) -> dt.datetime:
    """Return the moment, in UTC, of a local time; one that the clock shows twice is its first.

    Args:
        local: What the clock on the wall shows, without zone.
        zone: The clock's zone.
        skipped_forward: Whether a time that the clock skips is counted on by what it skips,
            02:30 in New York to 03:30 on the day when 02:00 becomes 03:00, or else back, to 01:30.
    """
    moment = local.replace(tzinfo=zone).astimezone(dt.UTC)
    if moment.astimezone(zone).replace(tzinfo=None) != local and not skipped_forward:
        moment = local.replace(tzinfo=zone, fold=1).astimezone(dt.UTC)
    return moment
