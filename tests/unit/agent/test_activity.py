import datetime as dt
from uuid import UUID, uuid4

import pytest

from mlops.agent.activity import BUCKETS_SECONDS, Activity


def counts(activity: Activity) -> dict[str, int]:
    return {each.outcome: each.runs for each in activity.outcomes() if each.runs}


def begin(activity: Activity, run: UUID, state: str | None) -> None:
    with activity.running(run, "fox", None):
        activity.note_process(run, 7)
        activity.note_outcome(run, state)


def test_run_is_seen_from_its_pick_up_to_its_end() -> None:
    """A run is prepared, has a process, and is counted by its outcome when it is over."""
    activity, run = Activity(), uuid4()
    with activity.running(run, "fox", due=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=40)):
        (seen,) = activity.runs()
        assert (seen.flow_run_id, seen.name, seen.start, seen.pid) == (run, "fox", None, None)
        activity.note_start(run, "warm")
        activity.note_process(run, 7)
        (seen,) = activity.runs()
        assert (seen.start, seen.pid) == ("warm", 7)
        activity.note_outcome(run, "CRASHED")
        assert counts(activity) == {}
    assert activity.runs() == ()
    assert counts(activity) == {"crashed": 1}
    starts = {each.start: each.durations.count for each in activity.starts()}
    assert starts == {"warm": 1, "plain": 0, "fallback": 0}
    waits = {each.at_most_seconds: each.count for each in activity.waits().buckets}
    assert waits == {limit: int(limit >= 60) for limit in BUCKETS_SECONDS}


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("COMPLETED", "completed"), ("CANCELLED", "cancelled"), ("PAUSED", "other"), (None, "other")],
)
def test_outcomes_are_few(state: str | None, outcome: str) -> None:
    """What is not over, or unknown, is one outcome of its own."""
    activity = Activity()
    begin(activity, uuid4(), state)
    assert counts(activity) == {outcome: 1}


def test_run_that_comes_back_before_its_former_attempt_is_over() -> None:
    """Whichever of the two attempts ends first, the other one is not disturbed."""
    activity, run = Activity(), uuid4()
    former = activity.running(run, "fox", None)
    former.__enter__()
    with activity.running(run, "fox", None):
        former.__exit__(None, None, None)
        assert len(activity.runs()) == 1
    with activity.running(run, "fox", None):
        begin(activity, run, "COMPLETED")
        assert activity.runs() == ()
        activity.note_start(run, "warm")
        activity.note_process(run, 8)
        activity.note_outcome(run, "FAILED")
    assert counts(activity) == {"other": 3, "completed": 1}
