import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow
from schedule_cases import DAY, Case, cases, clock_changes

NOW = dt.datetime.now(dt.UTC)
CASES = cases(NOW)
POOL = "unattended"  # no agent serves it, so that the runs stay as the scheduler made them
SCHEDULER_REACH = 100 * DAY  # how far ahead the server's scheduler makes runs
RUNS_AT_ONCE = 500


class Registered(NamedTuple):
    """All cases, registered."""

    servers: Servers
    begun: dt.datetime
    reports: dict[str, dict[str, Any]]
    stderr: str
    folder: Path
    log: Path
    log_start: int

    def runs(self, case: Case, start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
        """Return the case's runs on the server, in UTC."""
        query: dict[str, Any] = {
            "deployments": {"id": {"any_": [self.reports[case.name]["deployment_id"]]}},
            "flow_runs": {
                "expected_start_time": {"after_": start.isoformat(), "before_": end.isoformat()}
            },
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found: list[dt.datetime] = []
        while True:
            response = self.servers.prefect.post(
                "/flow_runs/filter", json=query | {"offset": len(found)}
            )
            response.raise_for_status()
            page = [
                dt.datetime.fromisoformat(run["expected_start_time"]) for run in response.json()
            ]
            if not page:
                return found
            found += page


@pytest.fixture(scope="module")
def registered(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registered]:
    folder = tmp_path_factory.mktemp("schedules")
    for case in CASES:
        section = {"method": case.method, "timezone": case.zone, case.method: case.value}
        more = yaml.safe_dump({"scheduler": section}, sort_keys=False)
        write_flow(folder / case.name, "pass", more=more, pool=POOL)
    log = platform.home / "logs" / "prefect.log"
    log_start = log.stat().st_size
    begun = dt.datetime.now(dt.UTC)
    done = platform.cli("flows", "register", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    reports = {Path(report["folder"]).name: report for report in json.loads(done.stdout)}
    servers = Servers(platform)
    yield Registered(servers, begun, reports, done.stderr, folder, log, log_start)
    for report in reports.values():  # or the server goes on making their runs
        servers.prefect.post(f"/deployments/{report['deployment_id']}/pause_deployment")


def test_every_schedule_is_registered_once(platform: Platform, registered: Registered) -> None:
    """All are accepted, the ended one with a warning, and registering again changes none."""
    assert registered.reports.keys() == {case.name for case in CASES}
    warned = [line for line in registered.stderr.splitlines() if "no run in the future" in line]
    assert len(warned) == 1
    assert "rrule-expired" in warned[0]
    again = platform.cli("flows", "register", str(registered.folder), "--json")
    actions = {Path(report["folder"]).name: report["action"] for report in json.loads(again.stdout)}
    assert actions == dict.fromkeys(registered.reports, "unchanged")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scheduler_makes_the_right_runs(registered: Registered, case: Case) -> None:
    """The runs that the server's scheduler makes of its own accord are those of the oracle."""
    expected = case.runs(registered.begun, registered.begun + SCHEDULER_REACH - DAY)
    if not expected:
        assert registered.runs(case, registered.begun, registered.begun + SCHEDULER_REACH) == []
        return
    # The first may have been due while the folders were registered.
    found = wait_for(lambda: registered.runs(case, registered.begun, expected[-1]), 30)
    assert found == [run for run in expected if found[0] <= run <= found[-1]]
    passed_over = [run for run in expected if run < found[0]]
    assert all(run < dt.datetime.now(dt.UTC) for run in passed_over)
    report = dt.datetime.fromisoformat(registered.reports[case.name]["next_run"])
    assert report.astimezone(dt.UTC) in {*passed_over, found[0]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_server_makes_the_right_runs_around_clock_changes(
    registered: Registered, case: Case
) -> None:
    """Asked for the days of a clock change, the server makes the runs of the oracle."""
    changes = clock_changes(case.zone, NOW + DAY, 370)
    half = dt.timedelta(hours=36)
    windows = [(change - half, change + half) for change in changes]
    later = NOW.replace(microsecond=0) + 150 * DAY
    for start, end in windows or [(later, later + dt.timedelta(hours=6))]:
        deployment_id = registered.reports[case.name]["deployment_id"]
        limits = {"start_time": start.isoformat(), "end_time": end.isoformat()}
        registered.servers.prefect.post(
            f"/deployments/{deployment_id}/schedule",
            json=limits | {"min_runs": RUNS_AT_ONCE, "max_runs": RUNS_AT_ONCE},
        ).raise_for_status()
        assert registered.runs(case, start, end) == case.runs(start, end)


def test_scheduler_is_in_good_health_afterwards(
    platform: Platform, registered: Registered, tmp_path: Path
) -> None:
    """With all of them on the server it goes on making runs, old and new, and nothing raises."""
    (sparse,) = (case for case in CASES if case.name == "cron-last-friday")
    end = registered.begun + SCHEDULER_REACH / 2
    before = registered.runs(sparse, registered.begun, end)
    runs = registered.servers.flow_runs(registered.reports[sparse.name]["deployment_id"])
    for run in runs:
        registered.servers.prefect.delete(f"/flow_runs/{run['id']}").raise_for_status()

    folder = write_flow(
        tmp_path / "latecomer",
        "pass",
        more="scheduler: {method: interval, interval: 60}",
        pool=POOL,
    )
    platform.cli("flows", "register", str(folder))
    latecomer = registered.servers.deployment("latecomer")["id"]
    wait_for(lambda: registered.servers.flow_runs(latecomer), 20)
    # The scheduler's main pass comes once a minute; only it looks at deployments of old.
    wait_for(lambda: registered.runs(sparse, registered.begun, end) == before, 100)
    registered.servers.prefect.post(f"/deployments/{latecomer}/pause_deployment")
    log = registered.log.read_bytes()[registered.log_start :].decode()
    assert not [line for line in log.splitlines() if "ERROR" in line or "Traceback" in line]
