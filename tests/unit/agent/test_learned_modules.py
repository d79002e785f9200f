from pathlib import Path

import pytest

from mlops.agent.environments import Environment
from mlops.agent.learned_modules import ModuleMemory


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(
        key="abc",
        python=tmp_path / "bin" / "python",
        python_version="3.11.2",
        folder=tmp_path,
        requirements_hash="0" * 64,
        seconds=0,
    )


def test_modules_are_learned_in_order_and_kept(tmp_path: Path, environment: Environment) -> None:
    """Declared ones come first; what is known already is no news; another process reads it."""
    memory = ModuleMemory(tmp_path / "warm")
    assert memory.learn(environment, ["numpy", "numpy.linalg"])
    assert not memory.learn(environment, ["numpy.linalg"])
    memory.declare(environment, ["torch"])
    assert memory.learn(environment, ["pandas"])
    kept = ModuleMemory(tmp_path / "warm").read(environment)
    assert kept.to_import == ["torch", "numpy", "numpy.linalg", "pandas"]


def test_denied_modules_take_what_is_below_them_along(
    tmp_path: Path, environment: Environment
) -> None:
    """A package that must not be there is not imported through its submodules either."""
    memory = ModuleMemory(tmp_path / "warm")
    memory.learn(environment, ["grpc", "grpc.aio", "grpcio_status"])
    memory.deny(environment, {"grpc": "starts threads"})
    assert memory.read(environment).to_import == ["grpcio_status"]
    assert memory.read(environment).denied == {"grpc": "starts threads"}


def test_a_damaged_file_costs_the_memory_only(tmp_path: Path, environment: Environment) -> None:
    """The file is read as empty, and written anew."""
    memory = ModuleMemory(tmp_path / "warm")
    memory.learn(environment, ["numpy"])
    (tmp_path / "warm" / "abc.json").write_text("{")
    assert memory.read(environment).to_import == []
    assert memory.learn(environment, ["numpy"])
