import math

import pytest

from mlops.mlflow_api import LoggedRun
from mlops.runs.comparison import compare


def logged(name: str, start: int, parent: str | None = None, **metrics: float) -> LoggedRun:
    """An MLflow run whose id is its name."""
    tags = {"mlflow.parentRunId": parent} if parent else {}
    return LoggedRun(
        run_id=name,
        name=name,
        experiment_id="1",
        url="",
        status="FINISHED",
        start_time=start,
        metrics=metrics,
        tags=tags,
    )


def test_runs_are_paired_by_their_order_at_each_level() -> None:
    """Random names do not matter: the first run goes with the first, also below others."""
    original = [logged("a", 1, m=1), logged("a2", 3, "a", m=3), logged("a1", 2, "a", m=2)]
    repeated = [logged("b2", 13, "b", m=3), logged("b1", 12, "b", m=2), logged("b", 11, m=1)]
    compared = compare(original, repeated, tolerance=0)
    assert [(each.run, each.is_equal) for each in compared] == [
        ("a", True),
        ("a1", True),
        ("a2", True),
    ]


def test_what_one_run_lacks_is_a_difference() -> None:
    """A metric or a run that is on one side only is told."""
    compared = compare([logged("a", 1, m=1, n=1)], [logged("b", 1, m=1)], tolerance=0)
    assert [(each.metric, each.repeated) for each in compared if not each.is_equal] == [("n", None)]
    (missing,) = compare([], [logged("b", 1, m=1)], tolerance=0)
    assert (missing.run, missing.original, missing.is_equal) == ("b", None, False)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(1.0, 1.0 + 1e-9, True), (1.0, 1.01, False), (math.nan, math.nan, True), (0.0, 0.0, True)],
)
def test_equal_is_within_the_tolerance(one: float, other: float, *, expected: bool) -> None:
    """Rounding is no difference; a metric that is no number equals itself."""
    (found,) = compare([logged("a", 1, m=one)], [logged("b", 1, m=other)], tolerance=1e-6)
    assert found.is_equal == expected


def test_only_the_chosen_metrics_count() -> None:
    """A metric that is not asked for is not compared."""
    found = compare([logged("a", 1, m=1, n=1)], [logged("b", 1, m=1, n=2)], tolerance=0, only=["m"])
    assert [each.metric for each in found] == ["m"]
