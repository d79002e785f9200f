"""Which stages of a pipeline a flow runs, and which data it pulls instead of making it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from mlops.errors import MlopsError
from mlops.experimenter.pipeline import Pipeline
from mlops.experimenter.stage import Stage


class StageChoice(NamedTuple):
    """What a flow does.

    Attributes:
        stages: Those that are run, each after what it needs.
        data: The paths of the outputs that are pulled, of stages that are not run and of
            `dvc add`.
    """

    stages: tuple[Stage, ...]
    data: tuple[str, ...]


def choose_stages(pipeline: Pipeline, chosen: Sequence[str] = ()) -> StageChoice:
    """Decide what a flow runs: all stages downstream of the data that is pulled.

    Args:
        pipeline: The project's.
        chosen: Outputs to pull. Default: those of stages that read no data themselves, those of
            frozen stages, and what was added with `dvc add`.

    Raises:
        MlopsError: One of them is no output, or no stage that would run reads it; or nothing is
            left to run.
    """
    for path in chosen:
        if path not in pipeline.kept:
            raise MlopsError(
                f"{path}: no data that DVC keeps; allowed: {', '.join(sorted(pipeline.kept))}"
            )
    pulled = tuple(chosen) or _raw_data(pipeline)
    makers = {stage.name for stage in pipeline.stages.values() if _meet(stage.paths, pulled)}
    upstream = _closure(makers, lambda name: _sources(pipeline, name))
    readers = {stage.name for stage in pipeline.stages.values() if _meet(stage.needs, pulled)}
    downstream = _closure(readers, lambda name: _readers(pipeline, name))
    run = [
        stage
        for stage in _in_order(pipeline)
        if stage.name in downstream - upstream and not stage.frozen
    ]
    if not run:
        raise MlopsError(
            f"no stage of dvc.yaml reads {', '.join(pulled) or 'data of DVC'}: nothing to run",
            hint=f"choose other data with --data: {', '.join(sorted(pipeline.kept))}",
        )
    data = tuple(_missing(pipeline, run))
    if unread := sorted(set(chosen) - set(data)):
        raise MlopsError(
            f"{unread[0]}: none of the stages that the flow would run reads it: "
            + ", ".join(stage.name for stage in run)
        )
    return StageChoice(tuple(run), data)


def _raw_data(pipeline: Pipeline) -> tuple[str, ...]:
    made = [path for stage in pipeline.stages.values() for path in stage.paths]
    return (
        *(
            path
            for stage in pipeline.stages.values()
            if stage.frozen or not _meet(stage.needs, [*made, *pipeline.added])
            for path in stage.cached_paths
        ),
        *pipeline.added,
    )


def _missing(pipeline: Pipeline, run: Sequence[Stage]) -> Iterator[str]:
    """Yield what the stages read that none of them makes."""
    made = [path for stage in run for path in stage.paths]
    needed = [path for stage in run for path in stage.needs]
    for path in dict.fromkeys(pipeline.kept):
        if path not in made and _meet([path], needed):
            yield path


def _sources(pipeline: Pipeline, name: str) -> Iterator[str]:
    needs = pipeline.stages[name].needs
    return (stage.name for stage in pipeline.stages.values() if _meet(stage.paths, needs))


def _readers(pipeline: Pipeline, name: str) -> Iterator[str]:
    paths = pipeline.stages[name].paths
    return (stage.name for stage in pipeline.stages.values() if _meet(stage.needs, paths))


def _closure(names: Collection[str], following: Callable[[str], Iterable[str]]) -> set[str]:
    """Return these, and all that follow from them."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += following(name)
    return found


def _in_order(pipeline: Pipeline) -> list[Stage]:
    """Return the stages, each after those that make what it needs.

    Raises:
        MlopsError: They need each other in a circle.
    """
    ordered: list[Stage] = []
    left = dict(pipeline.stages)
    while left:
        ready = [name for name in left if not set(_sources(pipeline, name)) & set(left)]
        if not ready:
            raise MlopsError(f"the stages {', '.join(left)} of dvc.yaml need each other")
        ordered += [left.pop(ready[0])]
    return ordered


def _meet(some: Collection[str], others: Collection[str]) -> bool:
    """Return whether a path of some is one of the others, lies in one, or has one in it."""
    return any(
        path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")
        for path in some
        for other in others
    )
