"""The values of params.yaml, and the data, as parameters of a flow's function."""

import json
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlops.errors import MlopsError
from mlops.experimenter.pipeline import Pipeline
from mlops.experimenter.stage import PARAMS, Stage

# What the flow's file itself uses; see flow_source.py.
_TAKEN = frozenset(
    {"Any", "Path", "FOLDER", "flow", "get_run_logger", "os", "pull", "pull_data", "run_stage"}
    | {"set_params", "str", "subprocess", "task", "yaml"}
)
_SINGLE_DATA = "data"
_INTEGER_LIMIT = 2**63  # beyond it Prefect's server cannot list the runs any more
_TYPES = {bool: "bool", int: "int", float: "float", str: "str", list: "list[Any]"}


class FlowParameter(NamedTuple):
    """A parameter of the flow's function.

    Attributes:
        name: In Python.
        place: In params.yaml, as in `train.depth`; of data, its path in the project.
        value: What a run has that is given no other.
    """

    name: str
    place: str
    value: Any

    @property
    def annotation(self) -> str:
        """Its type in Python."""
        if isinstance(self.value, dict):
            return "dict[str, Any]"
        return _TYPES.get(type(self.value), "Any")


def value_parameters(pipeline: Pipeline, run: Sequence[Stage]) -> list[FlowParameter]:
    """Return the values of params.yaml that a run may be given others for.

    Not those that belong to stages which are not run, and so would change nothing.

    Args:
        pipeline: The project's.
        run: The stages that the flow runs.

    Raises:
        MlopsError: Two values would have one name.
    """
    used = [name for stage in run for name in stage.param_names]
    others = [
        name for stage in pipeline.stages.values() if stage not in run for name in stage.param_names
    ]
    found: dict[str, FlowParameter] = {}
    for place, value in _leaves(pipeline.values):
        if not _is_among(place, used) and _is_among(place, others):
            continue
        name = _identifier(place)
        if name in found:
            raise MlopsError(
                f"{pipeline.folder / PARAMS}: {found[name].place} and {place} would both be the "
                f"parameter {name}",
                hint="rename one of them",
            )
        found[name] = FlowParameter(name, place, value)
    return list(found.values())


def data_parameters(
    references: Mapping[str, str], others: Sequence[FlowParameter]
) -> list[FlowParameter]:
    """Return a parameter for each piece of data that the flow pulls.

    Args:
        references: Of the data, by path.
        others: Parameters whose names are taken.
    """
    taken = {parameter.name for parameter in others}
    parameters = []
    for path, reference in references.items():
        name = _SINGLE_DATA if len(references) == 1 else _identifier(path)
        while name in taken:
            name += "_data"
        taken.add(name)
        parameters.append(FlowParameter(name, path, reference))
    return parameters


def _leaves(values: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not isinstance(key, str) or "." in key:
            continue  # cannot be named by a dotted place; it stays in params.yaml as it is
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{place}{key}.")
        elif _is_plain(value):
            yield f"{place}{key}", value


def _is_plain(value: object) -> bool:
    """Return whether a value can travel as JSON."""
    if isinstance(value, int) and abs(value) >= _INTEGER_LIMIT:
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _is_among(place: str, names: Sequence[str]) -> bool:
    return any(
        place == name or place.startswith(f"{name}.") or name.startswith(f"{place}.")
        for name in names
    )


def _identifier(place: str) -> str:
    name = re.sub(r"\W+", "_", place, flags=re.ASCII).strip("_")
    if not name.isidentifier():
        name = f"param_{name}"
    return f"{name}_" if keyword.iskeyword(name) or name in _TAKEN else name
