import shutil
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.local.home import Home, State
from mlops.local.startup import choose_flow_dir, identify
from mlops.settings import LocalSettings


def _started(folder: Path) -> tuple[Home, State]:
    """Return a home as a start leaves it."""
    home = Home(folder)
    home.create()
    home.postgres.mkdir()
    state, _ = identify(home)
    home.save_state(state)
    return home, state


def test_a_platform_keeps_its_identity(tmp_path: Path) -> None:
    """The second start finds the first one's processes."""
    home, state = _started(tmp_path / "home")
    assert identify(home) == (state, [])


def test_a_moved_home_is_the_same_platform(tmp_path: Path) -> None:
    """Its processes are still found; the move is mentioned."""
    home, state = _started(tmp_path / "home")
    moved = Home(home.path.rename(tmp_path / "moved"))
    found, notes = identify(moved)
    assert found.instance == state.instance
    assert found.path == str(moved.path)
    assert notes == [f"moved here from {home.path}"]


def test_a_copied_home_is_another_platform(tmp_path: Path) -> None:
    """Starting or stopping the copy never touches the processes of the original."""
    home, state = _started(tmp_path / "home")
    copy = Home(Path(shutil.copytree(home.path, tmp_path / "copy")))
    found, notes = identify(copy)
    assert found.instance != state.instance
    assert str(home.path) in notes[0]


def test_a_copy_whose_database_lies_outside_is_refused(tmp_path: Path) -> None:
    """Two platforms on one database would destroy it."""
    home, _ = _started(tmp_path / "home")
    home.postgres.rename(tmp_path / "room")
    home.postgres.symlink_to(tmp_path / "room")
    copy = Home(Path(shutil.copytree(home.path, tmp_path / "copy", symlinks=True)))
    with pytest.raises(MlopsError, match="a copy of"):
        identify(copy)


def test_flow_dir_is_the_one_asked_for_then_the_one_watched_then_the_checkouts(
    tmp_path: Path,
) -> None:
    """A second `up` from elsewhere does not change what the scheduler watches."""
    home, _ = _started(tmp_path / "home")
    flows = tmp_path / "checkout" / "flows"
    flows.mkdir(parents=True)
    nothing = LocalSettings(mlops_home=home.path)
    checkout = nothing.model_copy(update={"mlops_checkout": flows.parent})
    asked = checkout.model_copy(update={"flow_dir": tmp_path})
    assert choose_flow_dir(home, asked, "/watched") == str(tmp_path)
    assert choose_flow_dir(home, checkout, "/watched") == "/watched"
    assert choose_flow_dir(home, checkout, "") == str(flows)


def test_a_flow_dir_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A misspelt FLOW_DIR is named before anything is started."""
    home, _ = _started(tmp_path / "home")
    settings = LocalSettings(mlops_home=home.path, flow_dir=tmp_path / "none")
    with pytest.raises(MlopsError, match="none: no such folder"):
        choose_flow_dir(home, settings, "")
