from pathlib import Path

import pytest

from mlops.bundles import EnvironmentNeeds
from mlops.errors import MlopsError
from mlops.scheduler.flow_files import left_out_by, read_folder, state

NONE = EnvironmentNeeds()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small flow folder."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "flow.py").write_text("print()\n")
    (tmp_path / "pkg" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "pkg" / "run.sh").chmod(0o755)
    return tmp_path


def paths(folder: Path) -> list[str]:
    return [file.path for file in read_folder(folder, NONE).manifest.files]


def test_hash_follows_content_not_time(folder: Path) -> None:
    """The same files give the same hash; a byte, a name, a mode or a need gives another."""
    first = read_folder(folder, NONE).manifest.content_hash
    (folder / "flow.py").touch()
    assert read_folder(folder, NONE).manifest.content_hash == first
    seen = {first, read_folder(folder, EnvironmentNeeds(python="3.12")).manifest.content_hash}
    (folder / "pkg" / "run.sh").chmod(0o644)
    seen.add(read_folder(folder, NONE).manifest.content_hash)
    (folder / "flow.py").write_text("print(1)\n")
    seen.add(read_folder(folder, NONE).manifest.content_hash)
    (folder / "flow.py").rename(folder / "flow2.py")
    seen.add(read_folder(folder, NONE).manifest.content_hash)
    assert len(seen) == 5


def test_exclusions_leave_out_what_is_not_code(folder: Path) -> None:
    """Caches and environments stay behind; data that git ignores comes along."""
    for name in (".git/config", ".venv/bin/python", "__pycache__/x.pyc", "data/big.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".gitignore").write_text("data/\n")
    assert paths(folder) == [".gitignore", "data/big.csv", "flow.py", "pkg/run.sh"]


def test_prefectignore_is_honoured(folder: Path) -> None:
    """Patterns of .prefectignore exclude, and can include again."""
    (folder / ".prefectignore").write_text("*.sh\n!keep.sh\n")
    (folder / "keep.sh").write_text("")
    assert paths(folder) == [".prefectignore", "flow.py", "keep.sh"]


def test_prefectignore_may_begin_with_a_mark(folder: Path) -> None:
    """The byte order mark that Windows' editors write is no part of the first pattern."""
    (folder / ".prefectignore").write_bytes(b"\xef\xbb\xbf*.sh\r\n")
    assert paths(folder) == [".prefectignore", "flow.py"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("data/\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"data/\n\nd\xe9j\xe0 vu/\n", "line 3: not UTF-8"),
        (b"# what is no code\n\n!\n", "line 3: '!' is not a pattern"),
        (b"\\\n", r"line 1: '\\' is not a pattern"),
        (b"data\n**\\\n", r"line 2: '**\\' is not a pattern"),
        (b"[z-a]\n", "line 1: '[z-a]' is not a pattern"),
    ],
)
def test_prefectignore_with_a_mistake_is_refused(
    folder: Path, content: bytes, expected: str
) -> None:
    """The file and the line are named, with the mend; the folder's state is that mistake."""
    (folder / ".prefectignore").write_bytes(content)
    with pytest.raises(MlopsError) as caught:
        read_folder(folder, NONE)
    assert caught.value.message.startswith(f"{folder / '.prefectignore'}: {expected}")
    assert caught.value.hint
    broken = state(folder)
    (folder / ".prefectignore").unlink()
    assert state(folder) != broken


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        ("", "flow.py", ""),
        ("*.py\n!flow.py\n", "flow.py", ""),
        ("# all\n\n*.py\n", "flow.py", "line 3, '*.py', leaves it out"),
        ("pkg\n", "pkg/flow.py", "line 1, 'pkg', leaves it out"),
        ("!.venv/lib\n", ".venv/lib/flow.py", "'.venv/' is never uploaded; move the file"),
    ],
)
def test_pattern_that_leaves_a_file_out_is_told(
    folder: Path, patterns: str, name: str, expected: str
) -> None:
    """The last one that fits the file or a folder on its way counts, as in git."""
    (folder / ".prefectignore").write_text(patterns)
    told = left_out_by(folder, name)
    assert expected in told
    assert bool(told) == bool(expected)


def test_link_to_a_file_is_its_content(folder: Path) -> None:
    """A linked file is part of the bundle with its bytes."""
    (folder / "linked.py").symlink_to(folder / "flow.py")
    files = {file.path: file.sha256 for file in read_folder(folder, NONE).manifest.files}
    assert files["linked.py"] == files["flow.py"]


@pytest.mark.parametrize(
    ("target", "expected"), [("nowhere", "a dangling link"), ("pkg", "folder")]
)
def test_link_that_a_bundle_cannot_hold_is_refused(
    folder: Path, target: str, expected: str
) -> None:
    """A dangling link and a link to a folder are named, with the way out."""
    (folder / "odd").symlink_to(folder / target)
    with pytest.raises(MlopsError, match=expected):
        read_folder(folder, NONE)
