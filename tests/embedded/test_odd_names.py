"""Names of folders and files as people choose them."""

import json
import os
from pathlib import Path

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, write_flow

FOLDERS = (
    "with space",
    " leading and trailing ",
    "dots.in.it",
    "...",
    "-rf",
    "日本語",
    "Ünïcödé",
    "$(touch pwned)",
    "`id`; rm *",
    "a'b\"c",
    "<script>alert(1)<script>",
    "100%",
    "a%20b",
    "q?x=1#y",
    "back\\slash",
    "plus+and&",
    "{braces}[1]*",
    "~",
    "new\nline",
    "x" * 255,
    "é" * 127,
)
FILES = (
    "with space.txt",
    "日本語.csv",
    "$(x).txt",
    "a%20b.txt",
    "q?#.txt",
    "back\\slash.txt",
    "'quote\".txt",
    "<b>&.txt",
    "plus+.txt",
    "...",
    ".hidden",
    "deep/" * 40 + "file",
)


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def write_named(folder: Path, name: str, files: dict[str, str] | None = None) -> Path:
    """Make a flow folder of any name; its flow and deployment have a plain one."""
    plain = write_flow(folder.parent / "plain", "pass", files={})
    text = (plain / "flow.yaml").read_text().replace("deploy_name: plain", f"deploy_name: {name}")
    (plain / "flow.yaml").write_text(text)
    for path, content in (files or {}).items():
        (plain / path).parent.mkdir(parents=True, exist_ok=True)
        (plain / path).write_text(content)
    return plain.rename(folder)


def test_folders_of_any_name_are_registered_apart(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Whatever a folder is called, its code gets a place of its own in S3, and is found again."""
    for index, name in enumerate(FOLDERS):
        write_named(tmp_path / name, f"named-{index}")
    done = platform.cli("flows", "register", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    registered = json.loads(done.stdout)
    assert {Path(row["folder"]).name for row in registered} == set(FOLDERS)
    places = {row["code_uri"].removeprefix("s3://prefect/") for row in registered}
    assert len({place.split("/")[1] for place in places}) == len(FOLDERS)
    for place in places:
        assert f"{place}.mlops-manifest.json" in servers.objects("prefect", place)
    again = json.loads(platform.cli("flows", "register", str(tmp_path), "--json").stdout)
    assert {row["action"] for row in again} == {"unchanged"}


def test_files_of_any_name_reach_the_run(platform: Platform, tmp_path: Path) -> None:
    """A run opens its files by the names that they have in the folder, however that is called."""
    folder = write_named(
        tmp_path / "$(touch pwned) <b>'ü %20", "odd-files", dict.fromkeys(FILES, "content")
    )
    code = (
        (folder / "flow.py")
        .read_text()
        .replace("    pass", f"    assert all(open(f).read() == 'content' for f in {FILES!r})")
    )
    (folder / "flow.py").write_text(code)
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    done = platform.cli("flows", "run", "odd-files", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.glob("**/pwned"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"tab\there", "has a control character"),
        (b"latin-\xe9.txt", "is not UTF-8"),
        (b"/".join([b"y" * 250] * 4), "too long for an S3 key"),
    ],
    ids=["control", "latin-1", "long"],
)
def test_file_that_cannot_be_an_object_is_refused(
    platform: Platform, servers: Servers, tmp_path: Path, name: bytes, expected: str
) -> None:
    """A name that S3 cannot hold is named, before anything is uploaded, with the way out."""
    folder = write_named(tmp_path / "refused", "refused")
    path = os.fsencode(folder) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  # bytes
    with open(path, "w") as file:  # noqa: PTH123  # bytes
        file.write("x")
    done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 1
    assert expected in done.stderr
    assert "or list it in .prefectignore" in done.stderr
    assert servers.objects("prefect", "flows/refused/") == {}


def test_relative_paths_name_the_same_folder(
    platform: Platform, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a folder is reached, its code lies under its own name."""
    folder = write_flow(tmp_path / "dotted", "pass")
    monkeypatch.chdir(folder)
    for target in (".", "./", "../dotted", "../dotted/../dotted"):
        done = platform.cli("flows", "register", target, "--json")
        (row,) = json.loads(done.stdout)
        assert row["folder"] == str(folder)
        assert row["code_uri"].startswith("s3://prefect/flows/dotted/")
        assert row["action"] == ("created" if target == "." else "unchanged")
    assert servers.deployment("dotted")["path"].endswith(f":{folder}")


def test_second_folder_of_a_registered_name_is_refused(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A folder elsewhere of the same flow and deployment is refused while the first is there."""
    first = write_flow(tmp_path / "here" / "twin", "pass")
    second = write_flow(tmp_path / "there" / "twin", "print('other')")
    platform.cli("flows", "register", str(first))
    before = servers.deployment("twin")["pull_steps"]
    refused = platform.cli("flows", "register", str(second))
    assert refused.returncode == 1
    assert f"{first} and {second} are both the deployment twin/twin" in refused.stderr
    assert servers.deployment("twin")["pull_steps"] == before

    first.rename(tmp_path / "moved-away")
    (tmp_path / "moved-away" / "flow.yaml").unlink()
    moved = platform.cli("flows", "register", str(second))
    assert moved.returncode == 0, moved.stderr
    assert "was registered from" in moved.stderr
    assert servers.deployment("twin")["path"].endswith(f":{second}")
