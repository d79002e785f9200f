import sys
from pathlib import Path

import pytest

from mlops.agent.interpreters import find_interpreter, own_interpreter
from mlops.errors import MlopsError


def test_the_agents_own_python_is_the_default() -> None:
    """No version, and any that the agent's own Python satisfies, means that one."""
    own = own_interpreter()
    assert own.path == Path(sys.executable)
    assert find_interpreter(None) == own
    assert find_interpreter(f"{sys.version_info.major}.{sys.version_info.minor}") == own
    assert find_interpreter(own.version) == own


def test_a_missing_python_is_named_with_what_was_found() -> None:
    """A version that is not on the host is named, and so are those that are."""
    with pytest.raises(MlopsError) as raised:
        find_interpreter("3.99")
    assert "3.99 is not on this host" in str(raised.value)
    assert own_interpreter().version in str(raised.value)
    assert "MLOPS_PYTHON_DOWNLOADS" in raised.value.hint


@pytest.mark.parametrize("request_", ["", "--help", "3.12; rm"])
def test_what_is_no_version_is_refused(request_: str) -> None:
    """A request that uv could take for something else never reaches it."""
    with pytest.raises(MlopsError, match="not a version"):
        find_interpreter(request_)
