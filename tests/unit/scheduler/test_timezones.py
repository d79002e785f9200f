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
