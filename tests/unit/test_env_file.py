import json
import subprocess
from pathlib import Path

import pytest

from mlops.env_file import read_env_file, set_missing, write_private_files
from mlops.errors import MlopsError

# Each as it stands in a file, and what it means.
VALUES = {
    "PLAIN": ("abc", "abc"),
    "COMMENTED": ("a#b # c", "a#b"),
    "SINGLE": ("'a $b \"c\" # d'", 'a $b "c" # d'),
    "QUOTE": (r"'it\'s'", "it's"),
    "DOUBLE": ('"a b"', "a b"),
    "LIST": ('["0","1"]', '["0","1"]'),
    "EMPTY": ("", ""),
}
ODD_VALUES = {
    "DOLLAR": "/a $b/${c}",
    "QUOTES": """it's "so" """,
    "HASH": " # no comment",
    "LETTERS": "/Größe/日本",
    "LIST": '["0","1"]',
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def compose_reads(folder: Path, names: list[str]) -> dict[str, str]:
    """Return what Compose makes of the `.env` in a folder."""
    environment = "".join(f"      {name}: ${{{name}}}\n" for name in names)
    (folder / "compose.yaml").write_text(
        f"services:\n  a:\n    image: a\n    environment:\n{environment}"
    )
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(done.stdout)["services"]["a"]["environment"]
    # It prints what could be given to it again.
    return {name: value.replace("$$", "$") for name, value in read.items()}


def test_values_as_compose_writes_them(tmp_path: Path) -> None:
    """Quotes, comments and `export` mean what they mean to Compose."""
    text = "# first\n" + "".join(f"export {n}={raw}\n" for n, (raw, _) in VALUES.items())
    file = read_env_file(write(tmp_path / ".env", text))
    assert file.values == {name: meaning for name, (_, meaning) in VALUES.items()}
    assert file.text == text


@pytest.mark.requires("docker")
def test_compose_agrees(tmp_path: Path) -> None:
    """Compose reads these values as we do, and those that we write as they were meant."""
    text = "".join(f"{n}={raw}\n" for n, (raw, _) in VALUES.items())
    odd = {f"ODD_{name}": value for name, value in ODD_VALUES.items()}
    write(tmp_path / ".env", set_missing(text, odd))
    meant = {name: meaning for name, (_, meaning) in VALUES.items()} | odd
    assert compose_reads(tmp_path, list(meant)) == meant


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Blanks, quotes, dollars and letters of all kinds survive."""
    file = read_env_file(write(tmp_path / ".env", set_missing("", ODD_VALUES)))
    assert file.values == ODD_VALUES
    assert not file.expanded


@pytest.mark.parametrize("value", ["a\nB=c", "a\\b", "a\tb"])
def test_what_cannot_be_written(value: str) -> None:
    """A value that would be read back as something else is refused."""
    with pytest.raises(MlopsError, match="A: a backslash or control character"):
        set_missing("", {"A": value})


def test_only_missing_values_are_set() -> None:
    """A value stays, an empty one is filled in its place, a missing name comes last."""
    text = "# mine\nA=1\n\nexport B= # why\nC=''\nOTHER=x  # y"
    assert set_missing(text, {"A": "9", "B": "2", "C": "3", "D": "4"}) == (
        "# mine\nA=1\n\nexport B=2 # why\nC=3\nOTHER=x  # y\nD=4\n"
    )


def test_setting_again_changes_nothing() -> None:
    """Setting the same values twice is setting them once."""
    once = set_missing("A =\nB", {"A": "1", "B": "2", "C": ""})
    assert set_missing(once, {"A": "1", "B": "2", "C": ""}) == once


@pytest.mark.parametrize("raw", ["$b", '"a $b"', "a${b}"])
def test_what_compose_would_expand_is_known(raw: str, tmp_path: Path) -> None:
    """A dollar outside single quotes does not stand for itself."""
    assert read_env_file(write(tmp_path / ".env", f"A={raw}\n")).expanded == {"A"}


def test_from_windows(tmp_path: Path) -> None:
    """A byte order mark and CRLF are no part of names and values."""
    path = tmp_path / ".env"
    path.write_bytes(b"\xef\xbb\xbfA=1\r\nB=2\r\n")
    path.chmod(0o600)
    assert read_env_file(path).values == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\nB='open\n", "line 2: not understood"),
        (b"A=1\nso it is\n", "line 2: not understood"),
        (b"A=1\n\n# again\n\n\nB=2\nexport A=\n", "A: twice, in lines 1 and 7"),
        (b"\n\nA=1\n\nA=1\n", "A: twice, in lines 3 and 5"),
        (b"A=\xff\n", "not UTF-8 text"),
    ],
)
def test_file_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    """What is no env file is refused, with the line."""
    path = tmp_path / ".env"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(MlopsError, match=message):
        read_env_file(path)


def test_folder_in_its_place(tmp_path: Path) -> None:
    """A folder of that name, as Docker makes for a missing file, is told."""
    (tmp_path / ".env").mkdir()
    with pytest.raises(MlopsError, match="cannot be read: Is a directory"):
        read_env_file(tmp_path / ".env")


def test_written_for_the_owner_only(tmp_path: Path) -> None:
    """A new file has mode 0600, and nothing else is left beside it."""
    write_private_files({tmp_path / "a": "1", tmp_path / "b": "2"})
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == dict.fromkeys(
        "ab", 0o600
    )


def test_link_stays_a_link(tmp_path: Path) -> None:
    """What a link leads to is written, so that secrets may lie elsewhere."""
    link = tmp_path / ".env"
    link.symlink_to(tmp_path / "elsewhere")
    write_private_files({link: "A=1\n"})
    assert link.is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "A=1\n"


def test_all_or_none(tmp_path: Path) -> None:
    """When one file cannot be written the others stay as they are."""
    first = write(tmp_path / "first", "A=1\n")
    with pytest.raises(MlopsError, match=r"gone/second: cannot be written: No such file"):
        write_private_files({first: "A=2\n", tmp_path / "gone" / "second": ""})
    assert first.read_text() == "A=1\n"
    assert list(tmp_path.iterdir()) == [first]
