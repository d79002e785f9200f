import os
import sys
from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema

from mlops.errors import MlopsError
from mlops.scheduler.entrypoint import SignatureError, read_function, read_parameter_schema

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


def test_schema_is_read_without_the_rest_of_the_code(folder: Path) -> None:
    """Types, defaults, choices and descriptions of the parameters reach the schema."""
    function = read_function(folder, "flow.py", "train_it")
    schema = read_parameter_schema(folder, function)
    properties = schema["properties"]
    assert function.flow_name == "Training of things"
    assert function.parameters == ("size", "kind", "mode", "options", "factor", "note")
    assert schema["required"] == ["size"]
    assert properties["size"]["type"] == "integer"
    assert properties["size"]["description"] == "How much of it."
    assert properties["mode"]["enum"] == ["fast", "slow"]
    assert properties["options"]["default"] == {"depth": 3}
    assert properties["factor"]["default"] == 4
    assert schema["definitions"]["Kind"]["enum"] == ["small", "large"]


def test_schema_without_parameters_is_prefects(tmp_path: Path) -> None:
    """It is known without Prefect, whose own is the same, also where `**kwargs` are taken."""
    for signature in ("", "*values, **more"):
        code = f"from prefect import flow\n\n@flow\ndef main({signature}): ...\n"
        (tmp_path / "flow.py").write_text(code)
        schema = read_parameter_schema(tmp_path, read_function(tmp_path, "flow.py", "main"))
        assert schema == parameter_schema(lambda: None).model_dump(mode="json")


def test_signature_is_not_loaded_in_this_process(tmp_path: Path) -> None:
    """What a signature refers to runs elsewhere, and not in the flow folder."""
    (tmp_path / "flow.py").write_text(
        "import os\nfrom prefect import flow\n\n"
        "@flow\ndef main(process=os.getpid(), written=open('left', 'w').close()): ...\n"
    )
    schema = read_parameter_schema(tmp_path, read_function(tmp_path, "flow.py", "main"))
    assert schema["properties"]["process"]["default"] != os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["flow.py"]
    assert not Path("left").exists()


@pytest.mark.parametrize(
    ("imports", "decorator", "expected"),
    [
        ("from prefect import flow as f", '@f(name="as given")', "as given"),
        ("from prefect import flow as f", "@f", "the-one"),
        ("import prefect", '@prefect.flow(name="as given")', "as given"),
        ("import prefect as p", '@p.flow(name="as given")', "as given"),
        ("from company import traced_flow", "@traced_flow", "the-one"),
    ],
)
def test_flow_is_known_under_any_name(
    tmp_path: Path, imports: str, decorator: str, expected: str
) -> None:
    """However the decorator is imported, the flow's name is what it says."""
    (tmp_path / "flow.py").write_text(f"{imports}\n\n{decorator}\ndef the_one(): ...\n")
    assert read_function(tmp_path, "flow.py", "the_one").flow_name == expected


@pytest.mark.parametrize(
    ("imports", "decorator"),
    [
        ("from prefect import task", "@task"),
        ("import prefect", "@prefect.task(retries=2)"),
        ("import functools", "@functools.cache"),
        ("from functools import cache as c", "@c"),
    ],
)
def test_other_decorators_make_no_flow(tmp_path: Path, imports: str, decorator: str) -> None:
    """A task, or a function with a decorator of Python's own, is refused."""
    (tmp_path / "flow.py").write_text(f"{imports}\n\n{decorator}\ndef main(): ...\n")
    with pytest.raises(MlopsError, match="has no @flow decorator"):
        read_function(tmp_path, "flow.py", "main")


def test_every_kind_of_parameter_is_read(tmp_path: Path) -> None:
    """Positional-only parameters are fields like the others; *args and **kwargs are none."""
    (tmp_path / "flow.py").write_text(
        "from prefect import flow\n\n@flow\ndef main(a, /, b=2, *args, c=3, **kwargs): ...\n"
    )
    schema = read_parameter_schema(tmp_path, read_function(tmp_path, "flow.py", "main"))
    assert sorted(schema["properties"]) == ["a", "b", "c"]
    assert schema["required"] == ["a"]


def test_types_of_a_star_import_are_read(tmp_path: Path) -> None:
    """Types that come in by `from … import *` reach the schema."""
    (tmp_path / "flow.py").write_text(
        "from typing import *\nfrom prefect import flow\n\n"
        '@flow\ndef main(mode: Literal["fast", "slow"] = "fast"): ...\n'
    )
    schema = read_parameter_schema(tmp_path, read_function(tmp_path, "flow.py", "main"))
    assert schema["properties"]["mode"]["enum"] == ["fast", "slow"]


BLOCKS = """\
import contextlib
import sys

try:
    from no_such_module import Literal
except ImportError:
    from typing import Literal

if sys.version_info >= (3, 0):
    from pydantic import BaseModel

    class Size(BaseModel):
        depth: int = 3

    class Options(BaseModel):
        size: Size = Size()

with contextlib.suppress(ImportError):
    from enum import Enum
    import no_such_module

try:
    import no_such_module

    STEPS = 10
except ImportError:
    STEPS = 20

RATE: float = 0.5


class Kind(Enum):
    small = "small"


if True:
    from prefect import flow as deployed

    @deployed(name="in a block")
    def main(
        mode: Literal["fast", "slow"] = "fast",
        kind: Kind = Kind.small,
        options: Options = Options(),
        steps: int = STEPS,
        rate: float = RATE,
    ): ...


if __name__ == "__main__":

    @deployed
    def alone(): ...
"""


def test_names_bound_in_blocks_are_read(tmp_path: Path) -> None:
    """Types and defaults that `try`, `if` and `with` bind reach the schema, and so do flows."""
    (tmp_path / "flow.py").write_text(BLOCKS)
    function = read_function(tmp_path, "flow.py", "main")
    assert function.flow_name == "in a block"
    schema = read_parameter_schema(tmp_path, function)
    assert schema["properties"]["mode"]["enum"] == ["fast", "slow"]
    assert schema["definitions"]["Kind"]["enum"] == ["small"]
    assert schema["properties"]["options"]["default"] == {"size": {"depth": 3}}
    assert schema["properties"]["steps"]["default"] == 20
    assert schema["properties"]["rate"]["default"] == 0.5


def test_flow_of_a_program_alone_is_none(tmp_path: Path) -> None:
    """What is defined when the file is run as a program is not there when it is imported."""
    (tmp_path / "flow.py").write_text(BLOCKS)
    with pytest.raises(MlopsError, match="no such function; allowed: main"):
        read_function(tmp_path, "flow.py", "alone")


def test_name_without_an_argument_is_the_functions(folder: Path) -> None:
    """`def my_second` is the flow `my-second`, as Prefect has it."""
    assert read_function(folder, "flow.py", "my_second").flow_name == "my-second"


def test_siblings_of_two_flows_are_kept_apart(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each flow's schema is made from its own `models.py`."""
    read_parameter_schema(folder, read_function(folder, "flow.py", "train_it"))
    other = tmp_path_factory.mktemp("other")
    (other / "flow.py").write_text(CODE)
    (other / "models.py").write_text(
        "import pydantic\n\nclass Options(pydantic.BaseModel):\n    width: int = 5\n"
    )
    schema = read_parameter_schema(other, read_function(other, "flow.py", "train_it"))
    assert schema["properties"]["options"]["default"] == {"width": 5}


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


def test_parameter_that_prefect_refuses_is_named(tmp_path: Path) -> None:
    """Prefect would refuse the file only in the run."""
    (tmp_path / "flow.py").write_text(
        "from prefect import flow\n\n@flow\ndef main(size, *, wait_for=None): ...\n"
    )
    with pytest.raises(MlopsError, match="wait_for: a parameter's name that Prefect keeps"):
        read_function(tmp_path, "flow.py", "main")


def test_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    """A file that is not Python is refused with the line."""
    (tmp_path / "flow.py").write_text("def main(:\n")
    with pytest.raises(MlopsError, match=r"flow\.py: line 1: not Python"):
        read_function(tmp_path, "flow.py", "main")


def test_newer_syntax_is_told_with_the_mend(tmp_path: Path) -> None:
    """What this Python does not read may be right for the flow's; the message says where to."""
    (tmp_path / "flow.py").write_text("def main[T, = ](): ...\n")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(MlopsError) as caught:
        read_function(tmp_path, "flow.py", "main")
    assert f"not Python {version}, with which flows are read: " in str(caught.value)
    assert "; newer syntax belongs in a module that the file imports" in str(caught.value)


def test_file_with_a_nul_byte_has_no_line(tmp_path: Path) -> None:
    """A file that is no text at all is refused without a line's number."""
    (tmp_path / "flow.py").write_bytes(b"x = 1\0")
    with pytest.raises(MlopsError, match=r"flow\.py: not Python .* null bytes"):
        read_function(tmp_path, "flow.py", "main")


def test_signature_that_ends_its_process_is_named(folder: Path) -> None:
    """A module that ends the process is a mistake of that flow, told with its file."""
    (folder / "models.py").write_text("import os\n\nos._exit(3)\n")
    with pytest.raises(SignatureError, match=r"flow\.py:train_it: .* with exit code 3"):
        read_parameter_schema(folder, read_function(folder, "flow.py", "train_it"))


def test_sibling_that_fails_is_named(folder: Path) -> None:
    """A module that the signature needs and that raises is reported, not a traceback."""
    (folder / "models.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(MlopsError, match="its parameters cannot be read: RuntimeError: broken"):
        read_parameter_schema(folder, read_function(folder, "flow.py", "train_it"))
