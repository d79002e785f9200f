"""A flow folder, read and checked without any server."""

import os
import time
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlops.bundles import BundleFile, EnvironmentNeeds
from mlops.errors import MlopsError
from mlops.scheduler.entrypoint import (
    FlowFunction,
    SignatureError,
    read_function,
    read_parameter_schema,
)
from mlops.scheduler.flow_files import (
    Bundle,
    FolderChangedError,
    left_out_by,
    read_folder,
    snapshot,
)
from mlops.scheduler.flow_files import state as flow_state
from mlops.scheduler.names import name_mistake
from mlops.scheduler.parameters import mistakes, prepare_to_check, unset_required
from mlops.scheduler.schedule import concerns
from mlops.scheduler.spec import FlowSpec, FlowYamlError, overlooked, read_spec

READ_ATTEMPTS = 5
# Without a write, before a folder is read: what comes in one go is not taken for all of it.
REST_SECONDS = 0.1
REST_LIMIT_SECONDS = 3.0
LARGE_FILE_BYTES = 50 << 20


class CheckedFlow(NamedTuple):
    """A flow folder whose flow.yaml and flow function have no mistakes of their own."""

    spec: FlowSpec
    function: FlowFunction

    @property
    def names(self) -> tuple[str, str]:
        """The flow's name and the deployment's."""
        return self.function.flow_name, self.spec.content.deployment.deploy_name

    @property
    def name(self) -> str:
        """The deployment's full name in Prefect, `flow/deployment`."""
        return "/".join(self.names)


class ReadFlow(NamedTuple):
    """A checked flow with its files, all read at a moment when nothing was written to them.

    Attributes:
        checked: The flow.
        bundle: Its files.
        state: The folder's at that moment; another one means that it was written to since.
    """

    checked: CheckedFlow
    bundle: Bundle
    state: Hashable


def check(folder: Path) -> CheckedFlow:
    """Check a flow folder.

    Raises:
        FlowYamlError: flow.yaml has mistakes; all of them are named.
    """
    spec = read_spec(folder)
    section = spec.content.deployment
    try:
        function = read_function(spec.folder, section.flow_py_name, section.flow_name)
    except MlopsError as error:
        raise FlowYamlError(spec.path, [error.message]) from error
    if mistake := name_mistake(function.flow_name):
        raise FlowYamlError(spec.path, [f"deployment.flow_name: the flow's name {mistake}"])
    return CheckedFlow(spec=spec, function=function)


def check_parameters(flow: ReadFlow) -> dict[str, Any]:
    """Hold flow.yaml's parameters against the function's signature.

    Returns:
        The JSON Schema of the function's parameters.

    Raises:
        FlowYamlError: The signature cannot be read, or a value does not fit it.
        FolderChangedError: It may be the signature of another version than was read.
    """
    try:
        return _fitting_schema(flow.checked)
    finally:  # a mistake may be another version's too
        if flow_state(flow.bundle.folder) != flow.state:
            raise FolderChangedError(f"{flow.bundle.folder}: changed while it was read")


def _fitting_schema(checked: CheckedFlow) -> dict[str, Any]:
    parameters = checked.spec.content.parameters
    # Then both processes import Prefect at the same time.
    meanwhile = (prepare_to_check,) if parameters else ()
    try:
        schema = read_parameter_schema(checked.spec.folder, checked.function, *meanwhile)
    except SignatureError as error:
        raise FlowYamlError(checked.spec.path, [error.message]) from error
    wrong = [*_unknown_parameters(checked), *mistakes(parameters, schema)]
    if wrong:
        raise FlowYamlError(checked.spec.path, wrong)
    return schema


def _unknown_parameters(checked: CheckedFlow) -> list[str]:
    function = checked.function
    if function.open_ended:
        return []
    return [
        f"parameters.{name}: {checked.spec.content.deployment.flow_name} has no such parameter"
        f"; allowed: {', '.join(function.parameters) or 'none'}"
        for name in checked.spec.content.parameters
        if name not in function.parameters
    ]


def unset_parameters(checked: CheckedFlow, schema: Mapping[str, Any]) -> list[str]:
    """Return a warning if scheduled runs will fail for want of a parameter."""
    spec = checked.spec
    unset = unset_required(spec.content.parameters, schema) if spec.schedule else []
    if not unset:
        return []
    names = ", ".join(unset)
    return [f"{spec.path}: parameters: without a value for {names} every scheduled run fails"]


def warnings(checked: CheckedFlow) -> list[str]:
    """Return what is likely not meant, though it is allowed."""
    spec = checked.spec
    found = overlooked(spec.folder, spec.path)
    if spec.schedule is not None:
        found += [f"scheduler: {concern}" for concern in concerns(spec.schedule)]
    return [f"{spec.path}: {each}" for each in found]


def large_files(files: Iterable[BundleFile], folder: Path) -> list[str]:
    """Return a warning for each file that should rather be tracked as data."""
    return [
        f"{folder / file.path}: {file.size / 1e6:.0f} MB go up with the code each time "
        f"the folder changes; track data with DVC (`dvc add {file.path}`) and list the file in "
        ".prefectignore"
        for file in files
        if file.size >= LARGE_FILE_BYTES
    ]


def read(folder: Path) -> ReadFlow:
    """Check and hash a flow folder when it rests; one that changes meanwhile is read again.

    Raises:
        FlowYamlError: flow.yaml has mistakes; all of them are named.
        FolderChangedError: It changes all the time.
        MlopsError: Something in it cannot be read or cannot be part of a bundle.
    """
    _refuse_place(folder)
    for _ in range(READ_ATTEMPTS):
        state = _rest(folder)
        try:
            checked, bundle = _read_once(folder)
        except MlopsError:
            # A file that is being emptied shows its new size at once, its new time after that.
            time.sleep(REST_SECONDS)
            if flow_state(folder) == state:
                raise
        else:
            if flow_state(folder) == state:
                return ReadFlow(checked, bundle, state)
    raise _restless(folder)


def _refuse_place(folder: Path) -> None:
    """Make sure that a folder has a name for S3, and a path that Prefect can be told."""
    path = os.path.abspath(folder)  # noqa: PTH100  # pathlib keeps ".."
    if not Path(path).name:
        raise MlopsError(
            f"{path}: is the whole file system", hint="move the flow to a folder of its own"
        )
    try:
        path.encode()
    except UnicodeEncodeError:
        raise MlopsError(
            f"{path!r}: the folder's path is not UTF-8", hint="rename the folder"
        ) from None


def _rest(folder: Path) -> Hashable:
    """Wait until nothing was written to a folder for a while, and return its state."""
    deadline = time.monotonic() + REST_LIMIT_SECONDS
    while True:
        try:
            state = snapshot(folder)
        except MlopsError as error:
            return str(error)
        now = time.time_ns()
        # A time to come is another machine's, whose clock tells nothing.
        past = [file.changed_ns for file in state.values() if file.changed_ns <= now]
        left = REST_SECONDS - (now - max(past, default=0)) / 1e9
        if left <= 0:
            return tuple(state.items())
        if time.monotonic() > deadline:
            raise _restless(folder)
        time.sleep(left)


def _restless(folder: Path) -> FolderChangedError:
    return FolderChangedError(
        f"{folder}: is written to all the time",
        hint="register it again when the writing has ended; put logs and results elsewhere, "
        "or list them in .prefectignore",
    )


def _read_once(folder: Path) -> tuple[CheckedFlow, Bundle]:
    checked = check(folder)
    content = checked.spec.content
    requirements = checked.spec.folder / content.requirements
    needs = EnvironmentNeeds(
        requirements=content.requirements if requirements.is_file() else None,
        python=content.python,
        gpus=content.gpus or 0,
        warm=content.warm,
    )
    bundle = read_folder(checked.spec.folder, needs)
    _refuse_incomplete(checked.spec, bundle)
    return checked, bundle


def _refuse_incomplete(spec: FlowSpec, bundle: Bundle) -> None:
    """Make sure that the files without which no run begins are in the bundle.

    Raises:
        FlowYamlError: One is left out.
    """
    files = {file.path for file in bundle.manifest.files}
    needed = {"deployment.flow_py_name": spec.content.deployment.flow_py_name}
    requirements = bundle.manifest.needs.requirements
    # These two win over a file that is not named.
    is_project = {"pyproject.toml", "uv.lock"} <= files
    if requirements and ("requirements" in spec.content.model_fields_set or not is_project):
        needed["requirements"] = requirements
    wrong = []
    for key, written in needed.items():
        name = os.path.normpath(written)
        if name not in files:
            reason = left_out_by(spec.folder, name) or "is not among the folder's files"
            wrong.append(f"{key}: {written} is not part of the code: {reason}")
    if wrong:
        raise FlowYamlError(spec.path, wrong)
