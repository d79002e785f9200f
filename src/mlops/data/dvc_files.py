"""What DVC tracks, read from its own files: `*.dvc`, `dvc.lock` and `dvc.yaml`.

Only what is needed to find data, without DVC itself, which takes seconds to import and which
agents do not have.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator

from mlops.data.reference import DataHash
from mlops.data.remote import Layout
from mlops.errors import MlopsError

LOCK_NAME, PIPELINE_NAME, SUFFIX = "dvc.lock", "dvc.yaml", ".dvc"
_TEMPLATE = re.compile(r"\$\{[^}]*\}")


def _check_inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "://" in path or not pure.parts:
        raise ValueError("is outside of the project")
    return path


class TrackedOutput(BaseModel):
    """A file or folder that DVC tracks.

    Attributes:
        path: Relative to the project's folder, with forward slashes.
        hash: Of the data.
        layout: Where in a remote DVC has put it.
        remote: Its own remote's name; None: the project's default.
        source: The file that says all this.
        size: In bytes, if it is said.
        files: How many there are in a folder, if it is said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(_check_inside)]
    hash: DataHash
    layout: Layout
    remote: str | None = None
    source: str
    size: int | None = None
    files: int | None = None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Output(_Part):
    path: str
    md5: str | None = None
    hash: str | None = None
    size: int | None = None
    nfiles: int | None = None
    cache: bool = True
    push: bool = True
    remote: str | None = None


class _DvcFile(_Part):
    wdir: str = "."
    outs: tuple[_Output, ...] = ()


class _LockedStage(_Part):
    outs: tuple[_Output, ...] = ()


class _Lock(_Part):
    stages: dict[str, _LockedStage] = {}


class _Flags(_Part):
    """What dvc.yaml says of an output, and dvc.lock does not."""

    cache: bool = True
    push: bool = True
    remote: str | None = None


class _Stage(_Part):
    wdir: str = "."
    outs: dict[str, _Flags] = {}
    metrics: dict[str, _Flags] = {}
    plots: dict[str, _Flags] = {}

    @field_validator("outs", "metrics", "plots", mode="before")
    @classmethod
    def _by_path(cls, value: object) -> object:
        """Bring a list of paths, some with settings, to one form."""
        if not isinstance(value, list):
            return value
        return {
            path: flags or {}
            for item in value
            for path, flags in (item if isinstance(item, dict) else {str(item): {}}).items()
        }

    def flags(self, path: str) -> _Flags:
        """Return what is said of an output, whose path may be made from a template."""
        for declared, flags in {**self.outs, **self.metrics, **self.plots}.items():
            pattern = ".*".join(re.escape(part) for part in _TEMPLATE.split(declared))
            if re.fullmatch(pattern, path):
                return flags
        return _Flags()


class _Generator(_Part):
    """A stage of many: `foreach` with `do`, or `matrix` beside the stage's own words."""

    do: _Stage | None = None


class _Pipeline(_Part):
    stages: dict[str, dict[str, Any]] = {}


_Model = TypeVar("_Model", bound=BaseModel)


def read_dvc_file(text: bytes, source: str) -> list[TrackedOutput]:
    """Read a `.dvc` file.

    Args:
        text: What is in it.
        source: Its path in the project.

    Raises:
        MlopsError: It is not one of DVC's.
    """
    content = _parse(_DvcFile, text, source)
    return _tracked([(out, _Flags()) for out in content.outs], source, content.wdir)


def read_lock(text: bytes, source: str, pipeline: bytes | None) -> list[TrackedOutput]:
    """Read a `dvc.lock`.

    Args:
        text: What is in it.
        source: Its path in the project.
        pipeline: What is in the `dvc.yaml` beside it, if there is one.

    Raises:
        MlopsError: It is not one of DVC's.
    """
    beside = str(PurePosixPath(source).with_name(PIPELINE_NAME))
    declared = _parse(_Pipeline, pipeline or b"{}", beside).stages
    outputs: list[TrackedOutput] = []
    for name, locked in _parse(_Lock, text, source).stages.items():
        raw = declared.get(name) or declared.get(name.partition("@")[0]) or {}
        try:
            stage = _Generator.model_validate(raw).do or _Stage.model_validate(raw)
        except ValidationError as error:
            raise _not_understood(beside, error) from None
        outs = [(out, stage.flags(out.path)) for out in locked.outs]
        outputs += _tracked(outs, source, stage.wdir)
    return outputs


def _tracked(outs: list[tuple[_Output, _Flags]], source: str, wdir: str) -> list[TrackedOutput]:
    """Return those outputs whose data DVC keeps in a remote."""
    found = []
    for out, flags in outs:
        is_kept = out.cache and out.push and flags.cache and flags.push
        if out.md5 is None or not is_kept or "://" in out.path or out.path.startswith("/"):
            continue
        try:
            found.append(
                TrackedOutput(
                    path=_join(PurePosixPath(source).parent / wdir, out.path),
                    hash=out.md5,
                    layout="files/md5" if out.hash == "md5" else "legacy",
                    remote=out.remote or flags.remote,
                    source=source,
                    size=out.size,
                    files=out.nfiles,
                )
            )
        except ValidationError as error:
            raise _not_understood(f"{source}: {out.path}", error) from None
    return found


def _join(folder: PurePosixPath, path: str) -> str:
    """Join two paths, of which the second may begin with `../`."""
    parts: list[str] = []
    for part in (folder / path).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _parse(model: type[_Model], text: bytes, source: str) -> _Model:
    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        return model.model_validate({} if content is None else content)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise MlopsError(f"{source}: not YAML: {first}") from None
    except ValidationError as error:
        raise _not_understood(source, error) from None


def _not_understood(source: str, error: ValidationError) -> MlopsError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return MlopsError(
        f"{source}: not understood: {where}: {first['msg']}", hint="`dvc status` says more"
    )
