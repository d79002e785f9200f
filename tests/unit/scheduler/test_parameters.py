from typing import Any

import pytest

from mlops.scheduler.entrypoint import read_function, read_parameter_schema
from mlops.scheduler.parameters import mistakes, unset_required

CODE = """
import datetime
import enum
from typing import Annotated, Literal

from prefect import flow
from pydantic import BaseModel, Field


class Kernel(enum.Enum):
    RBF = "rbf"
    LINEAR = "linear"


class Model(BaseModel):
    depth: int
    name: str = "x"


@flow
def main(
    n: int,
    rate: float = 1.0,
    name: str = "a",
    fast: bool = False,
    limit: int | None = None,
    mixed: int | str = 1,
    sizes: list[int] = [],
    weights: dict[str, float] = {},
    word: Literal["x", "y"] = "x",
    kernel: Kernel = Kernel.RBF,
    model: Model = Model(depth=1),
    day: datetime.date = None,
    share: Annotated[float, Field(gt=0, le=1)] = 0.5,
    pair: tuple[int, str] = (1, "a"),
    free=None,
):
    pass
"""


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The schema that the Prefect server gets of a function with many kinds of parameters."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "flow.py").write_text(CODE)
    return read_parameter_schema(folder, read_function(folder, "flow.py", "main"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n", "abc", "n: 'abc' is not an integer"),
        ("n", 1.5, "n: 1.5 is not an integer"),
        ("n", None, "n: null is not an integer"),
        ("n", True, "n: true is not an integer"),
        ("rate", "fast", "rate: 'fast' is not a number"),
        ("name", 3, "name: 3 is not text (quote it)"),
        ("name", ["x" * 99], f"name: ['{'x' * 58}… is not text (quote it)"),
        ("fast", "yes", "fast: 'yes' is not true or false"),
        ("limit", "q", "limit: 'q' is not an integer or null"),
        ("mixed", [1], "mixed: [1] is not an integer or text (quote it)"),
        ("sizes", [1, "b"], "sizes.1: 'b' is not an integer"),
        ("sizes", 1, "sizes: 1 is not a list"),
        ("weights", {"a": "z"}, "weights.a: 'z' is not a number"),
        ("word", "z", "word: 'z' is not known; allowed: x, y"),
        ("kernel", "poly", "kernel: 'poly' is not known; allowed: rbf, linear"),
        ("model", {"depth": "t"}, "model.depth: 't' is not an integer"),
        ("model", {"name": "x"}, "model: depth missing"),
        ("model", 3, "model: 3 is not a mapping"),
        ("day", "soon", "day: 'soon' is not a date"),
        ("share", 2, "share: 2 is greater than the maximum of 1"),
        ("pair", [1], "pair: [1] is too short"),
    ],
)
def test_wrong_type_is_told(schema: dict[str, Any], name: str, value: Any, expected: str) -> None:
    """A value that the function's types do not take is named with what they take."""
    assert mistakes({name: value}, schema) == [f"parameters.{expected}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 3),
        ("rate", 3),
        ("limit", None),
        ("mixed", "a"),
        ("model", {"depth": 3}),
        ("day", "2026-11-21"),
        ("free", {"any": [None]}),
        ("kernel", "linear"),
        ("pair", [1, "a"]),
    ],
)
def test_right_type_is_accepted(schema: dict[str, Any], name: str, value: Any) -> None:
    """A good value is no mistake, whatever other parameters are required."""
    assert mistakes({name: value}, schema) == []


def test_all_are_told_at_once(schema: dict[str, Any]) -> None:
    """Every wrong value gets its line."""
    assert len(mistakes({"n": "x", "rate": "x", "fast": 1}, schema)) == 3


def test_required_without_value_is_found(schema: dict[str, Any]) -> None:
    """A parameter without default is unset until a value is given."""
    assert unset_required({"rate": 1.0}, schema) == ["n"]
    assert unset_required({"n": 1}, schema) == []
    assert unset_required({}, {"type": "object", "properties": {}}) == []
