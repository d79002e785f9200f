"""A project's pipeline: the stages of dvc.yaml, what dvc.lock says of their last run, and the data.

Read without DVC, whose own import takes seconds and which a checkout does not have.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops.data.dvc_files import LOCK_NAME, PIPELINE_NAME, SUFFIX
from mlops.data.project import DvcProject, ReferredOutput
from mlops.errors import MlopsError
from mlops.experimenter.stage import (
    PARAMS,
    DvcPart,
    Stage,
    interpolate,
    split_at_variables,
    value_at,
)

_TEMPLATES = {"do", "foreach", "matrix"}
_Model = TypeVar("_Model", bound=BaseModel)


class LockedPath(DvcPart):
    """What a stage read: a file, or a folder."""

    path: str
    md5: str | None = None


class LockedStage(DvcPart):
    """What a stage read when it ran last."""

    deps: tuple[LockedPath, ...] = ()
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _LockFile(DvcPart):
    stages: dict[str, LockedStage] = Field(default_factory=dict)


class Pipeline(BaseModel):
    """The stages of a project, and the data that DVC keeps of it.

    Attributes:
        folder: The project.
        stages: By name, in the order of dvc.yaml.
        locked: What dvc.lock says of each.
        data: What DVC keeps, by path.
        values: params.yaml.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    stages: dict[str, Stage]
    locked: dict[str, LockedStage]
    data: dict[str, ReferredOutput]
    values: dict[str, Any]

    @cached_property
    def added(self) -> tuple[str, ...]:
        """The paths of what was tracked with `dvc add`."""
        return tuple(p for p, found in self.data.items() if found.output.source.endswith(SUFFIX))

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The paths of all that DVC keeps, or will when the stages have run."""
        made = [path for stage in self.stages.values() for path in stage.cached_paths]
        return (*made, *self.added)


def read_pipeline(project: Path) -> Pipeline:
    """Read the pipeline of a project.

    Raises:
        MlopsError: There is no dvc.yaml, nothing was reproduced, or a file is not understood.
    """
    path = project / PIPELINE_NAME
    if not path.is_file():
        raise MlopsError(f"{project}: has no {PIPELINE_NAME}, whose stages a flow is made of")
    if not (project / LOCK_NAME).is_file():
        raise MlopsError(
            f"{project}: has no {LOCK_NAME}: nothing was made yet", hint="dvc repro && dvc push"
        )
    values = _load(project / PARAMS) if (project / PARAMS).is_file() else {}
    declared = _load(path).get("stages") or {}
    lock = _parse(project / LOCK_NAME, _LockFile, _load(project / LOCK_NAME))
    return Pipeline(
        folder=project,
        stages={name: _read_stage(path, name, each, values) for name, each in declared.items()},
        locked=lock.stages,
        data={each.output.path: each for each in DvcProject(project).outputs([])},
        values=values,
    )


def _read_stage(path: Path, name: str, content: Any, values: Mapping[str, Any]) -> Stage:
    where = f"{path}: stages.{name}"
    if isinstance(content, dict) and _TEMPLATES & set(content):
        found = ", ".join(sorted(_TEMPLATES & set(content)))
        raise MlopsError(f"{where}: has {found}", hint="write its stages out, one by one")
    stage: Stage = _parse(path, Stage, {"name": name, **content}, f"stages.{name}.")
    resolved: dict[str, Any] = {
        "wdir": interpolate(stage.wdir, values, where),
        "deps": tuple(interpolate(each, values, where) for each in stage.deps),
    }
    for kind in ("outs", "metrics", "plots"):
        resolved[kind] = {
            interpolate(each, values, where): options
            for each, options in getattr(stage, kind).items()
        }
    for command in stage.cmd:
        for variable in split_at_variables(command)[1::2]:
            value_at(values, variable, where)
    return Stage(**(stage.model_dump() | resolved))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MlopsError(f"{path}: not understood: {error}") from None
    if not isinstance(content or {}, dict):
        raise MlopsError(f"{path}: is no mapping")
    return content or {}


class _PlainLoader(yaml.SafeLoader):
    """Leaves dates as they are written, and takes 1e-3 for a number, as DVC and flow.yaml do."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _parse(path: Path, model: type[_Model], content: Any, prefix: str = "") -> _Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MlopsError(f"{path}: {prefix}{place}: {first['msg']}") from None
