from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.scheduler.entrypoint import read_function

CODE = '''\
from __future__ import annotations

import a_package_that_is_not_installed
from enum import Enum
from typing import Literal

from models import Options
from prefect import flow, task

raise RuntimeError("flow files are read, not run")

class Kind(Enum):
    small = "small"
    large = "large"

DEFAULT = 4

@flow(name="Training of things", retries=2)
def train_it(
    size: int,
    kind: Kind = Kind.small,
    mode: Literal["fast", "slow"] = "fast",
    *,
    options: Options = Options(),
    factor: float = DEFAULT,
    note: "str | None" = None,
):
    """Train it.

    Args:
        size: How much of it.
    """

@flow
def my_second(): ...

def helper(): ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow folder whose code cannot be imported, and a sibling module that can."""
    (tmp_path / "flow.py").write_text(CODE)
    (tmp_path / "models.py").write_text(
        "import pydantic\n\nclass Options(pydantic.BaseModel):\n    depth: int = 3\n"
    )
    return tmp_path


def test_schema_is_read_without_running_the_code(folder: Path) -> None:
    """Types, defaults, choices and descriptions of the parameters reach the schema."""
    function = read_function(folder, "flow.py", "train_it")
    properties = function.parameter_schema["properties"]
    assert function.flow_name == "Training of things"
    assert function.parameters == ("size", "kind", "mode", "options", "factor", "note")
    assert function.parameter_schema["required"] == ["size"]
    assert properties["size"]["type"] == "integer"
    assert properties["size"]["description"] == "How much of it."
    assert properties["mode"]["enum"] == ["fast", "slow"]
    assert properties["options"]["default"] == {"depth": 3}
    assert properties["factor"]["default"] == 4
    assert function.parameter_schema["definitions"]["Kind"]["enum"] == ["small", "large"]


def test_name_without_an_argument_is_the_functions(folder: Path) -> None:
    """`def my_second` is the flow `my-second`, as Prefect has it."""
    assert read_function(folder, "flow.py", "my_second").flow_name == "my-second"


def test_siblings_of_two_flows_are_kept_apart(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each flow's schema is made from its own `models.py`."""
    read_function(folder, "flow.py", "train_it")
    other = tmp_path_factory.mktemp("other")
    (other / "flow.py").write_text(CODE)
    (other / "models.py").write_text(
        "import pydantic\n\nclass Options(pydantic.BaseModel):\n    width: int = 5\n"
    )
    function = read_function(other, "flow.py", "train_it")
    assert function.parameter_schema["properties"]["options"]["default"] == {"width": 5}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "no such function; allowed: train_it, my_second"),
        ("helper", "has no @flow decorator; allowed: train_it, my_second"),
    ],
)
def test_wrong_function_is_named_with_the_right_ones(
    folder: Path, name: str, expected: str
) -> None:
    """A function that is missing or no flow is refused, naming the flows of the file."""
    with pytest.raises(MlopsError) as caught:
        read_function(folder, "flow.py", name)
    assert expected in str(caught.value)


def test_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    """A file that is not Python is refused with the line."""
    (tmp_path / "flow.py").write_text("def main(:\n")
    with pytest.raises(MlopsError, match=r"flow\.py: line 1: not Python"):
        read_function(tmp_path, "flow.py", "main")


def test_sibling_that_fails_is_named(folder: Path) -> None:
    """A module that the signature needs and that raises is reported, not a traceback."""
    (folder / "models.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(MlopsError, match="its parameters cannot be read: RuntimeError: broken"):
        read_function(folder, "flow.py", "train_it")
