"""A stage of a project's dvc.yaml.

Of its format (https://dvc.org/doc/user-guide/project-structure/dvcyaml-files) the parts are known
that a flow can be made of; a stage with others is refused, not guessed at.
"""

import posixpath
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mlops.errors import MlopsError

PARAMS = "params.yaml"
_VARIABLE = re.compile(r"\$\{\s*([\w.-]+)\s*\}")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_options(value: object) -> object:
    """Let `- path` and `- path: {cache: false}` look the same, as a mapping."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list):
        return {
            path: options or {}
            for each in value
            for path, options in (each.items() if isinstance(each, dict) else [(each, {})])
        }
    return value


class DvcPart(BaseModel):
    """A part of one of DVC's files."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # DVC's format, which grows


class OutputOptions(DvcPart):
    """What dvc.yaml says of an output."""

    cache: bool = True  # false: git keeps it, not DVC


Outputs = Annotated[dict[str, OutputOptions], BeforeValidator(_as_options)]


class Stage(DvcPart):
    """A stage of dvc.yaml, its paths relative to the project."""

    name: str
    cmd: Annotated[tuple[str, ...], BeforeValidator(_as_list)]
    wdir: str = "."
    deps: tuple[str, ...] = ()
    params: tuple[str | dict[str, list[str] | None], ...] = ()
    outs: Outputs = Field(default_factory=dict)
    metrics: Outputs = Field(default_factory=dict)
    plots: Outputs = Field(default_factory=dict)
    frozen: bool = False

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of what it makes."""
        return tuple(self._placed(path) for path in (*self.outs, *self.metrics, *self.plots))

    @cached_property
    def cached_paths(self) -> tuple[str, ...]:
        """Those of them that DVC keeps."""
        return tuple(
            self._placed(path)
            for made in (self.outs, self.metrics, self.plots)
            for path, options in made.items()
            if options.cache
        )

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The paths of what it reads; not what lies outside, at an address."""
        return tuple(self._placed(path) for path in self.deps if "://" not in path)

    @cached_property
    def param_names(self) -> tuple[str, ...]:
        """The values of params.yaml that it depends on, as in `train.depth`, or `train` for all."""
        return tuple(name for name in self.params if isinstance(name, str))

    def _placed(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.wdir, path))


def interpolate(text: str, values: Mapping[str, Any], where: str) -> str:
    """Put the values of params.yaml in the places of `${a.b}`, as DVC does.

    Raises:
        MlopsError: There is no such value, or it is none that can stand in a text.
    """
    return _VARIABLE.sub(lambda found: shown(value_at(values, found[1], where)), text)


def split_at_variables(text: str) -> list[str]:
    """Return a text's plain parts and, at the odd places, the names of its `${a.b}`."""
    return _VARIABLE.split(text)


def value_at(values: Mapping[str, Any], name: str, where: str) -> Any:
    """Return the value of params.yaml that `a.b` names.

    Raises:
        MlopsError: There is none; the message begins with `where`.
    """
    found: Any = values
    for key in name.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise MlopsError(f"{where}: {name} is not in {PARAMS}, and a flow knows nothing else")
        found = found[key]
    if isinstance(found, (Mapping, list)):
        raise MlopsError(f"{where}: {name} is more than one value")
    return found


def shown(value: Any) -> str:
    """Return a value as DVC writes it into a command."""
    return str(value).lower() if isinstance(value, bool) else str(value)
