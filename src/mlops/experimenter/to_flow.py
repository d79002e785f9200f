"""From a project to a flow folder that runs its stages on an agent, with the same data."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from mlops.data.dvc_config import DvcConfig
from mlops.data.dvc_files import LOCK_NAME, PIPELINE_NAME, SUFFIX
from mlops.data.remote import find_remote
from mlops.errors import MlopsError
from mlops.experimenter.flow_parameters import data_parameters, value_parameters
from mlops.experimenter.flow_source import FLOW_FILE, python_text, yaml_text
from mlops.experimenter.git import source_files, try_git
from mlops.experimenter.pipeline import Pipeline, read_pipeline
from mlops.experimenter.stage import PARAMS
from mlops.experimenter.stage_choice import StageChoice, choose_stages
from mlops.settings import S3Settings
from mlops.storage import ObjectNotFoundError, ObjectStore

FLOW_YAML = "flow.yaml"
# Of a project's files, what its stages do not need.
_LEFT_OUT = {PIPELINE_NAME, LOCK_NAME, ".dvcignore", ".gitignore", "README.md"}
_LEFT_OUT_FOLDERS = {".dvc", "notebooks", "tests"}
_LEFT_OUT_KINDS = {SUFFIX, ".ipynb"}
# DVC's own library finds parameters and data by this file.
_DVC_CONFIG = "# So that `import dvc.api` works here, without git.\n[core]\n    no_scm = true\n"
_IMPORTS_DVC = re.compile(r"^\s*(from|import)\s+dvc\b", re.MULTILINE)
_GOOD_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)


class ProjectFlow(BaseModel):
    """What `create_project_flow` made.

    Attributes:
        folder: The flow folder.
        stages: The names of the stages that a run runs, in order.
        data: The references of the data that it pulls, by path.
        warnings: What may not be as it is meant.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    stages: tuple[str, ...]
    data: dict[str, str]
    warnings: tuple[str, ...]


def create_project_flow(
    project: Path, parent: Path, name: str | None, chosen: Sequence[str]
) -> ProjectFlow:
    """Make a flow folder of a project.

    It is made aside and renamed into place: all of it is there, or nothing. S3 is asked whether
    the data is there.

    Args:
        project: The project's folder.
        parent: Where to make the flow folder.
        name: Of the flow folder and the deployment; default: the project's name.
        chosen: Which outputs are pulled; see `choose_stages`.

    Raises:
        MlopsError: The folder is there, nothing was reproduced, the data was not pushed, or the
            pipeline has what a flow cannot have.
    """
    project_name = DvcConfig(project).remote(None).path.rpartition("/")[2] or project.name
    name = name or project_name
    if not _GOOD_NAME.fullmatch(name):
        raise MlopsError(f"the name {name!r} has more than letters, digits, '.', '_' and '-'")
    folder = parent.absolute() / name
    if os.path.lexists(folder):
        raise MlopsError(f"{folder}: is there already", hint="choose another name with --name")
    if not folder.parent.is_dir():
        raise MlopsError(
            f"{folder.parent}: no such folder", hint="name the flows' folder with --in"
        )
    files = source_files(project)
    pipeline = read_pipeline(project)
    choice = choose_stages(pipeline, chosen)
    references = _pushed_data(pipeline, choice)
    values = value_parameters(pipeline, choice.stages)
    data = data_parameters(references, values)
    texts = {
        FLOW_FILE: python_text(project_name, choice.stages, data, values, pipeline.values),
        FLOW_YAML: yaml_text(project_name, name, [*data, *values]),
    }
    copied = [path for path in files if _is_needed(path, pipeline)]
    if in_the_way := sorted(set(map(str, copied)) & {*texts, f"config/{FLOW_YAML}"}):
        raise MlopsError(f"{project / in_the_way[0]}: a flow's own file has this name; rename it")
    try:
        # One level down, where a scheduler does not take a half-written folder for a flow.
        with tempfile.TemporaryDirectory(prefix=".mlops-new-", dir=folder.parent) as aside:
            made = Path(aside, "flow")
            _write(made, project, copied, texts)
            made.rename(folder)
    except OSError as error:
        raise MlopsError(f"{folder}: cannot be made: {error.strerror}") from error
    return ProjectFlow(
        folder=folder,
        stages=tuple(stage.name for stage in choice.stages),
        data=references,
        warnings=(*_changes(pipeline), *_not_committed(project)),
    )


def _pushed_data(pipeline: Pipeline, choice: StageChoice) -> dict[str, str]:
    """Return the references of the data, by path, all of which is in S3.

    DVC pushes a folder's own entry after all that is in it: asking for that one is enough.
    """
    settings = S3Settings.from_environment()
    references = {}
    for path in choice.data:
        if path not in pipeline.data:
            raise MlopsError(
                f"{pipeline.folder / LOCK_NAME}: does not know {path}: it was not made yet",
                hint="dvc repro && dvc push",
            )
        output, _, reference = pipeline.data[path]
        try:
            find_remote(ObjectStore(settings, reference.bucket), reference, [output.layout])
        except ObjectNotFoundError:
            place = f"s3://{reference.bucket}/{reference.path}"
            raise MlopsError(f"{path}: its data is not in {place} yet", hint="dvc push") from None
        references[path] = str(reference)
    return references


def _is_needed(path: Path, pipeline: Pipeline) -> bool:
    """Return whether a file goes with the flow; results, which git may keep, do not."""
    made = {made for stage in pipeline.stages.values() for made in stage.paths}
    return not (
        path.name in _LEFT_OUT
        or path.suffix in _LEFT_OUT_KINDS
        or path.parts[0] in _LEFT_OUT_FOLDERS
        or any(PurePosixPath(path).is_relative_to(result) for result in made)
    )


def _write(made: Path, project: Path, files: Sequence[Path], texts: Mapping[str, str]) -> None:
    uses_dvc = False
    for path in files:
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / path, made / path)
        if path.suffix == ".py":
            text = (made / path).read_text(encoding="utf-8", errors="replace")
            uses_dvc = uses_dvc or bool(_IMPORTS_DVC.search(text))
    made.mkdir(exist_ok=True)
    for name, text in texts.items():
        (made / name).write_text(text, encoding="utf-8")
    if uses_dvc:
        (made / ".dvc").mkdir()
        (made / ".dvc" / "config").write_text(_DVC_CONFIG)


def _changes(pipeline: Pipeline) -> Iterator[str]:
    """Say what has changed since the stages ran: data and metrics are those of before."""
    for name, locked in pipeline.locked.items():
        if name not in pipeline.stages:
            continue
        for place, value in locked.params.get(PARAMS, {}).items():
            if _value(pipeline, place) != value:
                yield f"{PARAMS}: {place} has changed since `dvc repro` ran the stage {name}"
        for dep in locked.deps:
            path = pipeline.folder / pipeline.stages[name].wdir / dep.path
            if dep.md5 and path.suffix == ".py" and path.is_file() and _md5(path) != dep.md5:
                yield f"{dep.path}: has changed since `dvc repro` ran the stage {name}"


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _value(pipeline: Pipeline, place: str) -> object:
    found: object = pipeline.values
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _not_committed(project: Path) -> Iterator[str]:
    """Say what git does not have, where there is git."""
    done = try_git(project, "status", "--porcelain", "--", ".")
    if done.returncode == 0 and done.stdout.strip():
        yield "the project has changes that are not committed: the flow has them, git has not"
