"""The metrics of a run beside those of the run that it repeats."""

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest

from pydantic import BaseModel, ConfigDict

from mlops.mlflow_api import LoggedRun


class ComparedMetric(BaseModel):
    """One metric of two MLflow runs; None: the run does not have it."""

    model_config = ConfigDict(frozen=True)

    run: str
    metric: str
    original: float | None
    repeated: float | None
    is_equal: bool


def compare(
    original: Sequence[LoggedRun],
    repeated: Sequence[LoggedRun],
    *,
    tolerance: float,
    only: Collection[str] = (),
) -> list[ComparedMetric]:
    """Compare the last values of all metrics.

    Runs have random names, so the first that was started is held against the first, and so on,
    below each run as well.

    Args:
        original: All MLflow runs of one flow run.
        repeated: All of the other.
        tolerance: Of a difference, relative to the larger of two values.
        only: The metrics that count; empty: all of them.
    """
    compared = []
    for one, other in _pairs(original, repeated):
        ones, others = (run.metrics if run else {} for run in (one, other))
        compared += [
            ComparedMetric(
                run=one.name if one else other.name if other else "",
                metric=metric,
                original=ones.get(metric),
                repeated=others.get(metric),
                is_equal=_equal(ones.get(metric), others.get(metric), tolerance),
            )
            for metric in sorted(ones.keys() | others.keys())
            if not only or metric in only
        ]
    return compared


def _pairs(
    original: Sequence[LoggedRun],
    repeated: Sequence[LoggedRun],
    parents: tuple[str | None, str | None] = (None, None),
) -> Iterator[tuple[LoggedRun | None, LoggedRun | None]]:
    """Yield the runs that go together; None stands for one that is missing."""
    for one, other in zip_longest(_below(original, parents[0]), _below(repeated, parents[1])):
        yield one, other
        if one and other:
            yield from _pairs(original, repeated, (one.run_id, other.run_id))


def _below(runs: Sequence[LoggedRun], parent: str | None) -> list[LoggedRun]:
    """Return the runs below one, the oldest first; a run whose parent is not here is on top."""
    ids = {run.run_id for run in runs}
    found = [run for run in runs if (run.parent_id if run.parent_id in ids else None) == parent]
    return sorted(found, key=lambda run: run.start_time)


def _equal(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return False
    if math.isnan(one) and math.isnan(other):
        return True
    return math.isclose(one, other, rel_tol=tolerance)
