"""The tables of docs/flow-yaml.md about cron and rrule, held against what is done."""

import re
from pathlib import Path

import pytest

from mlops.scheduler.schedule import ScheduleError, parse_cron, parse_rrule

DOCUMENT = (Path(__file__).parents[3] / "docs" / "flow-yaml.md").read_text()
CRON, RRULE = (
    DOCUMENT.partition(f"\n### {name}\n")[2].partition("\n##")[0] for name in ("cron", "rrule")
)

# Rules of each kind that the document says is refused, by its first column.
REFUSED_RULES = {
    "`FREQ=SECONDLY`, `FREQ=MINUTELY` without `DTSTART`": ["FREQ=SECONDLY", "FREQ=MINUTELY"],
    "`FREQ=MINUTELY` with `INTERVAL` below 10, `FREQ=HOURLY` with seven or more minutes": [
        "DTSTART:20260101\nRRULE:FREQ=MINUTELY;INTERVAL=9",
        "FREQ=HOURLY;BYMINUTE=0,5,10,15,20,30,40",
    ],
    "`COUNT` without `DTSTART`": ["FREQ=DAILY;COUNT=3"],
    "`COUNT` with `UNTIL`": ["DTSTART:20260101\nRRULE:FREQ=DAILY;COUNT=3;UNTIL=20270101"],
    "`INTERVAL=0`, numbers out of range (`BYHOUR=24`)": [
        "FREQ=DAILY;INTERVAL=0",
        "FREQ=DAILY;BYHOUR=24",
    ],
    "`BYMONTH=2;BYMONTHDAY=30`, `BYDAY=6MO`": [
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=MONTHLY;BYDAY=6MO",
    ],
    "`BYSETPOS` with `HOURLY` or `MINUTELY`": [
        "FREQ=HOURLY;BYSETPOS=1",
        "DTSTART:20260101\nRRULE:FREQ=MINUTELY;INTERVAL=10;BYSETPOS=1",
    ],
    "`BYDAY=1MO` with `DAILY` or `WEEKLY`": ["FREQ=DAILY;BYDAY=1MO", "FREQ=WEEKLY;BYDAY=1MO"],
    "`EXRULE`, `BYEASTER`": [
        "RRULE:FREQ=DAILY\nEXRULE:FREQ=WEEKLY",
        "FREQ=YEARLY;BYEASTER=0",
    ],
    "`DTSTART` before 1900 or after 2100": [
        "DTSTART:18991231\nRRULE:FREQ=DAILY",
        "DTSTART:21010101\nRRULE:FREQ=DAILY",
    ],
}


def rows(text: str, head: str) -> list[list[str]]:
    """Return the rows of a table in the document, which begins with this column."""
    table = text.partition(f"\n| {head} |")[2].partition("\n\n")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len(found) > 2
    return found[2:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", rows(CRON, "written"), ids=lambda row: row[0])
def test_cron_is_registered_as_documented(row: list[str]) -> None:
    """Each expression of the table is registered as its last column says."""
    (written,) = quoted(row[0])
    (registered,) = quoted(row[2]) or [written]
    assert parse_cron(written, "UTC").cron == registered


@pytest.mark.parametrize("row", rows(CRON, "refused"), ids=lambda row: row[0])
def test_cron_is_refused_as_documented(row: list[str]) -> None:
    """Each expression of the table is refused, and each part of one wherever it stands."""
    for written in quoted(row[0]):
        whole = " " in written or written.startswith("@")
        fields = [["0"] * n + [written] + ["0"] * (4 - n) for n in range(5)]
        for expression in [written] if whole else map(" ".join, fields):
            with pytest.raises(ScheduleError):
                parse_cron(expression, "UTC")


def test_every_refused_rule_of_the_document_has_an_example() -> None:
    """The kinds of refused rules here are those of the document."""
    assert [row[0] for row in rows(RRULE, "refused")] == list(REFUSED_RULES)


@pytest.mark.parametrize("row", rows(RRULE, "refused"), ids=lambda row: row[0])
def test_rule_is_refused_as_documented(row: list[str]) -> None:
    """Each kind of rule in the table is refused with what it names instead."""
    for rule in REFUSED_RULES[row[0]]:
        with pytest.raises(ScheduleError) as caught:
            parse_rrule(rule, "UTC")
        instead = quoted(row[2])
        assert any(word in str(caught.value) for word in instead) or not instead
