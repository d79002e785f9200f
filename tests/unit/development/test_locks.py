from pathlib import Path

import pytest

from mlops.development import locks
from mlops.uv_program import find_uv

PROJECT = Path(__file__).parents[3]
OWN_PINS = {"optuna"}  # of examples; no role has it
LOCKS = PROJECT / "requirements"


def test_locks_agree_on_versions() -> None:
    """No package has different versions in two locks."""
    known: dict[str, str] = {}
    for name in locks.NAMES:
        for package, version in locks.locked_versions((LOCKS / f"{name}.txt").read_text()).items():
            assert known.setdefault(package, version) == version, f"{package} in {name}.txt"


def test_the_server_goes_without_what_it_does_not_import() -> None:
    """What MLflow demands and its server does not import is left out there, and only there."""
    server = locks.locked_versions((LOCKS / "server.txt").read_text())
    union = locks.locked_versions((LOCKS / "test.txt").read_text())
    assert not set(locks.LEFT_OUT["server"]) & set(server)
    assert {"matplotlib", "pyarrow", "skops"} <= set(union)


def test_a_checkout_goes_without_torch() -> None:
    """The environment of a checkout does not hold torch and CUDA."""
    assert "torch" not in locks.locked_versions((LOCKS / "test.txt").read_text())


@pytest.mark.parametrize("name", locks.NAMES)
def test_locks_hold_hashes_and_no_addresses(name: str) -> None:
    """A lock names packages and hashes, never where they come from."""
    text = (LOCKS / f"{name}.txt").read_text()
    packages = [line for line in text.splitlines() if line[0] not in " #"]
    assert packages
    assert all("==" in line and line.endswith(" \\") for line in packages)
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("example", locks.PINNED_EXAMPLES)
def test_examples_follow_the_locks(example: str) -> None:
    """What the examples pin is what the locks hold, and so is in uv's cache."""
    texts = [(LOCKS / f"{name}.txt").read_text() for name in ("torch", "experimenter", "local")]
    versions = {name: v for text in texts for name, v in locks.locked_versions(text).items()}
    text = (PROJECT / example).read_text()
    assert locks.follow_lock(text, versions) == text
    assert set(locks.locked_versions(text)) <= set(versions) | OWN_PINS


def test_follow_lock_changes_pins_only() -> None:
    """Comments, ranges and packages that are not locked stay as they are."""
    text = "# note==1\na==1.0  # why\nb>=2\nc==3\nd[e,f]==4\n"
    followed = locks.follow_lock(text, {"a": "1.5", "b": "9", "d": "5"})
    assert followed == "# note==1\na==1.5  # why\nb>=2\nc==3\nd[e,f]==5\n"


def test_versions_by_python_are_left_out() -> None:
    """A package locked at one version per Python is not one version."""
    text = (
        "a==1 ; python_full_version < '3.12' \\\na==2 ; python_full_version >= '3.12' \\\nb==3 \\\n"
    )
    assert locks.locked_versions(text) == {"b": "3"}


@pytest.mark.requires("package-index")
def test_locks_are_up_to_date() -> None:
    """The locks are what pyproject.toml asks for."""
    expected = locks.expected_files(PROJECT, uv=find_uv())
    assert locks.stale_files(PROJECT, expected) == []
