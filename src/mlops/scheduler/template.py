"""A new flow folder from the template in `new_flow/`, which is a flow folder itself."""

import builtins
import json
import keyword
import os
import re
import tempfile
import unicodedata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError
from mlops.scheduler.names import name_mistake
from mlops.scheduler.spec import LOCATIONS, find_flow_yaml

TEMPLATE = Path(__file__).with_name("new_flow")
FILES = ("flow.yaml", "flow.py", "requirements.txt")
# As the template writes them: the function, and in quotes the deployment and the experiment.
_PLACEHOLDERS = re.compile(r'(?P<name>"my flow")|my_flow')
_TAKEN = {*dir(builtins), "flow", "mlflow", "steps", "rate", "position", "step"}
_FUNCTION_CHARACTERS = 60


class NewFlow(BaseModel):
    """A flow folder that was made.

    Attributes:
        folder: The folder.
        name: Of the deployment that it will be, `flow/deployment`.
        files: The paths of what lies in it.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    name: str
    files: tuple[Path, ...]


def function_name(name: str) -> str:
    """Return a name for the function of a flow, as near to the folder's as Python allows."""
    # NFKC is the form in which Python knows an identifier, however it is written.
    words = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name.lower()))
    words = words[:_FUNCTION_CHARACTERS].strip("_") or "main"
    if words in _TAKEN or keyword.iskeyword(words) or not words.isidentifier():
        words = f"flow_{words}"
    return words if words.isidentifier() else "main"


def create_flow(parent: Path, name: str) -> NewFlow:
    """Make a flow folder that registers and runs.

    It is made aside and renamed into place, so that a scheduler that watches its parent sees
    all of it or nothing.

    Args:
        parent: Where to make it.
        name: The folder's name, which becomes the deployment's and the experiment's.

    Raises:
        MlopsError: The name is not good, the folder is there, or its parent is not.
    """
    _refuse_bad_name(name)
    folder = parent.resolve() / name
    if os.path.lexists(folder):
        raise MlopsError(f"{folder}: is there already", hint="choose another name")
    if find_flow_yaml(folder.parent):
        raise MlopsError(f"{folder.parent}: is a flow itself", hint="make the new one beside it")
    if not folder.parent.is_dir():
        raise MlopsError(f"{folder.parent}: no such folder", hint="make it first, or set FLOW_DIR")
    function, quoted = function_name(name), json.dumps(name, ensure_ascii=False)
    try:
        # One level down, where the watcher does not take a half-written folder for a flow.
        with tempfile.TemporaryDirectory(prefix=".mlops-new-", dir=folder.parent) as aside:
            made = Path(aside, "flow")
            made.mkdir()
            for file_name in FILES:
                text = (TEMPLATE / file_name).read_text(encoding="utf-8")
                text = _PLACEHOLDERS.sub(lambda found: quoted if found["name"] else function, text)
                (made / file_name).write_text(text, encoding="utf-8")
            made.rename(folder)
    except OSError as error:
        raise MlopsError(f"{folder}: cannot be made: {error.strerror}") from error
    return NewFlow(
        folder=folder,
        name=f"{function.replace('_', '-')}/{name}",
        files=tuple(folder / file_name for file_name in FILES),
    )


def _refuse_bad_name(name: str) -> None:
    mistake = name_mistake(name)
    if any(str(location.parent) == name for location in LOCATIONS):
        raise MlopsError(
            f"the name {name!r} would make one flow of the folder that it lies in",
            hint="choose another name",
        )
    if mistake is None and name[:1] in ".-":
        mistake = f"{name!r} starts with {name[0]!r}, and would be a hidden folder or an option"
    if mistake:
        good = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "my-flow"
        raise MlopsError(f"the name {mistake}", hint=f"a good name is {good}")
