import re
from zoneinfo import available_timezones

import pytest

from mlops.scheduler.timezones import timezone_mistake


def test_every_time_zone_is_known() -> None:
    """All IANA names are accepted."""
    names = available_timezones() - {"localtime", "Factory"}
    assert [name for name in names if timezone_mistake(name)] == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "../../../etc/passwd", "/etc/localtime", "Europe", "Europe/",
     "localtime", "posix/UTC", "right/UTC", "zone.tab", "a\0b", "x" * 5000, "Asia/Taipeh"],
)  # fmt: skip
def test_other_files_are_not_time_zones(name: str) -> None:
    """Folders, other files, paths and the machine's own zone are refused with examples."""
    assert "is not a time zone; allowed: IANA names, such as" in (timezone_mistake(name) or "")


@pytest.mark.parametrize("name", ["asia/taipei", "Asia/Taipeh", "Taipei"])
def test_near_miss_is_answered_with_the_name(name: str) -> None:
    """A name that is nearly right is answered with the right one."""
    assert "Asia/Taipei" in (timezone_mistake(name) or "")


@pytest.mark.parametrize(
    ("name", "zone"),
    [("UTC+8", "Etc/GMT-8"), ("gmt+08:00", "Etc/GMT-8"), ("GMT-5", "Etc/GMT+5"), ("UTC+0", "UTC")],
)
def test_offset_is_answered_with_the_zone_of_that_offset(name: str, zone: str) -> None:
    """`UTC+8` is eight hours ahead, which the zone's name writes with a minus."""
    answer = timezone_mistake(name) or ""
    assert f"allowed: a city's zone, such as Asia/Taipei, or else {zone}" in answer


@pytest.mark.parametrize("name", ["UTC+15", "UTC+5:30", "UTC8", "Etc/GMT+15"])
def test_zone_with_its_sign_reversed_is_not_suggested(name: str) -> None:
    """What is no offset of whole hours is not answered with a zone on the other side of UTC."""
    suggested = (timezone_mistake(name) or "").partition("allowed: ")[2]
    assert suggested
    assert not re.search(r"GMT[+-]", suggested)
