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
    kernel: Kernel = Kernel.RBF


class Tree(BaseModel):
    size: int
    parent: "Tree | None" = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    bark: str


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
    moment: datetime.datetime = None,
    hour: datetime.time = None,
    maybe_word: Literal["x", "y"] | None = None,
    word_or_count: Literal["x"] | int = 1,
    maybe_day: datetime.date | None = None,
    maybe_kernel: Kernel | None = None,
    maybe_share: Annotated[float, Field(gt=0)] | None = None,
    maybe_model: Model | None = None,
    tree: Tree | None = None,
    pet: Cat | Dog | None = None,
    told_pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None,
    model_or_size: Model | Tree = None,
    several: dict[str, Model] | list[Model] = [],
    raw: bytes = b"",
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
        ("day", "soon", "day: 'soon' is not a date (as in 2026-11-21)"),
        ("hour", "9:00", "hour: '9:00' is not a time with its offset (as in 10:00:00+08:00)"),
        ("raw", 3, "raw: 3 is not text of the format binary"),
        ("share", 2, "share: 2 is greater than the maximum of 1"),
        ("pair", [1], "pair: [1] is too short"),
    ],
)
def test_wrong_type_is_told(schema: dict[str, Any], name: str, value: Any, expected: str) -> None:
    """A value that the function's types do not take is named with what they take."""
    assert mistakes({name: value}, schema) == [f"parameters.{expected}"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("maybe_word", "z", "maybe_word: 'z' is not known; allowed: x, y, null"),
        ("maybe_word", 3, "maybe_word: 3 is not known; allowed: x, y, null"),
        ("word_or_count", "z", "word_or_count: 'z' is not known; allowed: x, an integer"),
        ("maybe_day", "soon", "maybe_day: 'soon' is not a date (as in 2026-11-21) or null"),
        ("maybe_kernel", "poly", "maybe_kernel: 'poly' is not known; allowed: rbf, linear, null"),
        ("maybe_share", -1, "maybe_share: -1 is less than or equal to the minimum of 0"),
        ("maybe_share", "all", "maybe_share: 'all' is not a number or null"),
        ("maybe_model", {"x": "a"}, "maybe_model: depth missing"),
        ("maybe_model", {"depth": "a"}, "maybe_model.depth: 'a' is not an integer"),
        ("maybe_model", 3, "maybe_model: 3 is not a mapping or null"),
        ("tree", {"size": 1, "parent": {}}, "tree.parent: size missing"),
        ("tree", {"size": 1, "parent": {"size": "x"}}, "tree.parent.size: 'x' is not an integer"),
        ("pet", {"kind": "cat"}, "pet: lives missing"),
        ("pet", {"kind": "cow"}, "pet.kind: 'cow' is not known; allowed: cat, dog"),
        ("pet", 3, "pet: 3 is not a mapping or null"),
        ("told_pet", {"kind": "dog", "bark": 1}, "told_pet.bark: 1 is not text (quote it)"),
        ("told_pet", {"kind": "cow"}, "told_pet.kind: 'cow' is not known; allowed: cat, dog"),
        (
            "model_or_size",
            {},
            "model_or_size: depth missing; or parameters.model_or_size: size missing",
        ),
        ("several", {"a": {"depth": "x"}}, "several.a.depth: 'x' is not an integer"),
        ("several", [{"depth": "x"}], "several.0.depth: 'x' is not an integer"),
    ],
)
def test_value_is_held_against_the_type_that_it_comes_closest_to(
    schema: dict[str, Any], name: str, value: Any, expected: str
) -> None:
    """Of several types the choices are named, or what is wrong in the one that is meant."""
    assert mistakes({name: value}, schema) == [f"parameters.{expected}"]


def test_moment_without_offset_is_answered_with_one(schema: dict[str, Any]) -> None:
    """A date-time that lacks its offset is refused with an example that has one."""
    (mistake,) = mistakes({"moment": "2026-11-21T10:00:00"}, schema)
    assert mistake.endswith("with its offset (as in 2026-11-21T10:00:00+08:00)")


def test_every_mistake_in_a_model_is_told_once(schema: dict[str, Any]) -> None:
    """Two wrong fields of a model are two lines, two missing ones are one."""
    assert mistakes({"maybe_model": {"depth": "a", "kernel": "poly"}}, schema) == [
        "parameters.maybe_model.depth: 'a' is not an integer",
        "parameters.maybe_model.kernel: 'poly' is not known; allowed: rbf, linear",
    ]
    assert mistakes({"pet": {"kind": "cow"}, "told_pet": {}}, schema)[1:] == [
        "parameters.told_pet: kind, lives missing; or parameters.told_pet: kind, bark missing"
    ]


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
        ("moment", "2026-11-21T10:00:00+08:00"),
        ("maybe_word", None),
        ("tree", {"size": 1, "parent": {"size": 2, "parent": None}}),
        ("told_pet", {"kind": "dog", "bark": "loud"}),
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
