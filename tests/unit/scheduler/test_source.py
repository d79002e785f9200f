from pathlib import Path

import pytest

from mlops.scheduler.source import Source


@pytest.mark.parametrize(
    "source",
    [
        Source("box", Path("/srv/flows/a")),
        Source("box", Path("/srv/flows/a"), gone=True),
        Source("gone", Path("/srv/gone here:/a b/ü\n")),
    ],
)
def test_source_survives_its_text(source: Source) -> None:
    """What is written into a deployment's path is read back as it was."""
    assert Source.parse(str(source)) == source


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "/srv/flows/a",
        "flows/a",
        "box:flows/a",
        ":/srv/flows/a",
        "gone /srv/flows/a",
        "away box:/srv/flows/a",
        "C:\\flows\\a",
    ],
)
def test_other_paths_name_no_source(path: str) -> None:
    """A path that `prefect deploy` or a person wrote is not taken for a scheduler's."""
    assert Source.parse(path) is None


def test_folder_lies_below_a_root_under_either_of_its_names(tmp_path: Path) -> None:
    """A link on the way makes no difference, also when the folder itself is gone."""
    root = tmp_path / "real"
    root.mkdir()
    link = tmp_path / "link"
    link.symlink_to(root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "out").symlink_to(elsewhere)
    for folder in (root, link, root / "gone", link / "gone", root / "out"):
        assert Source("box", folder).is_below(root)
        assert Source("box", folder).is_below(link)
    for folder in (tmp_path, elsewhere, tmp_path / "real-too"):
        assert not Source("box", folder).is_below(root)
