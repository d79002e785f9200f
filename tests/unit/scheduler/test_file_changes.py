from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mlops.scheduler.file_changes import file_changes


def wait_until_told(changes: Iterator[set[str]], path: Path) -> None:
    """Wait until a path is among the changes, which are told at least five times a second."""
    assert any(str(path) in changed for changed in islice(changes, 150)), f"{path} is not told"


def test_folder_that_takes_the_place_of_another_is_watched(tmp_path: Path) -> None:
    """A root that was moved away is told, and then what changes in the one put there."""
    root = tmp_path / "flows"
    root.mkdir()
    changes = file_changes(root)
    wait_until_told(changes, root)
    root.rename(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new").rename(root)
    wait_until_told(changes, root)  # the watching of the old one ends
    wait_until_told(changes, root)  # and that of the new one begins
    (root / "flow.yaml").touch()
    wait_until_told(changes, root / "flow.yaml")
