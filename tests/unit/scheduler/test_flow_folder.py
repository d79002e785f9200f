"""Reading flow folders, also while somebody writes to them."""

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.scheduler import flow_folder
from mlops.scheduler.flow_files import FolderChangedError
from mlops.scheduler.spec import FlowYamlError

PARTS = 6
FLOW_YAML = """\
deployment:
  flow_py_name: flow.py
  flow_name: main
  deploy_name: moving
  pool_name: default-agent-pool
  queue_name: ml
"""


def write_generation(folder: Path, generation: int, *, renaming: bool = False) -> None:
    """Write the flow and its parts so that all of them name one generation."""
    function = "from prefect import flow\n\n\n@flow\ndef main():\n    pass\n"
    bodies = {f"part{n}.txt": f"{generation:09}\n" * 500 for n in range(PARTS)}
    for name, body in {"flow.yaml": FLOW_YAML, "flow.py": function, **bodies}.items():
        if renaming:
            (folder / f".{name}.new").write_text(body)
            (folder / f".{name}.new").rename(folder / name)
        else:
            (folder / name).write_text(body)


@contextmanager
def writer(folder: Path, rest_seconds: tuple[float, float], *, renaming: bool) -> Iterator[None]:
    """Write generations, with a rest after each, until the context ends."""
    ended = threading.Event()
    rests = random.Random(4)  # noqa: S311  # no secret

    def write() -> None:
        generation = 0
        while not ended.wait(rests.uniform(*rest_seconds)):
            generation += 1
            write_generation(folder, generation, renaming=renaming)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("renaming", [False, True])
def test_folder_is_never_read_in_the_middle(tmp_path: Path, renaming: bool) -> None:
    """However the writes and the reads fall together, all files read are of one generation."""
    write_generation(tmp_path, 0)
    read = 0
    deadline = time.monotonic() + 2.5
    with writer(tmp_path, (0.0, 0.3), renaming=renaming):
        while time.monotonic() < deadline:
            flow = flow_folder.read(tmp_path)
            parts = {f.sha256 for f in flow.bundle.manifest.files if f.path.startswith("part")}
            assert len(parts) == 1
            read += 1
    assert read > 3


def test_folder_that_never_rests_is_refused(tmp_path: Path) -> None:
    """What is written to all the time is given up within seconds, with the mend."""
    write_generation(tmp_path, 0)
    with (
        writer(tmp_path, (0.0, 0.02), renaming=False),
        pytest.raises(FolderChangedError, match="is written to all the time") as error,
    ):
        flow_folder.read(tmp_path)
    assert ".prefectignore" in error.value.hint


def test_file_in_an_ignored_place_does_not_disturb(tmp_path: Path) -> None:
    """A log that grows where .prefectignore says so is nothing to wait for."""
    write_generation(tmp_path, 0)
    (tmp_path / ".prefectignore").write_text("logs/\n")
    logs = tmp_path / "logs"
    logs.mkdir()
    with writer(logs, (0.0, 0.01), renaming=False):
        names = {file.path for file in flow_folder.read(tmp_path).bundle.manifest.files}
    assert names == {".prefectignore", "flow.py", "flow.yaml", *(f"part{n}.txt" for n in range(6))}


def test_time_of_another_machine_is_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from a server whose clock is ahead are read at once."""
    write_generation(tmp_path, 0)
    # A file's own time of change cannot be set: the clock is set back instead.
    now = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr("mlops.scheduler.flow_folder.time.time_ns", lambda: now)
    began = time.monotonic()
    flow_folder.read(tmp_path)
    assert time.monotonic() - began < flow_folder.REST_LIMIT_SECONDS


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*.py\n", "deployment.flow_py_name: flow.py is not part of the code: {}: line 1, '*.py',"),
        ("# none\n**\n", "deployment.flow_py_name: flow.py is not part of the code: {}: line 2"),
        ("*.txt\n", "requirements: requirements.txt is not part of the code: {}: line 1, '*.txt',"),
    ],
)
def test_code_without_what_a_run_begins_with_is_refused(
    tmp_path: Path, patterns: str, expected: str
) -> None:
    """The file is named that is left out, with the line that does it."""
    write_generation(tmp_path, 0)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".prefectignore").write_text(patterns)
    with pytest.raises(FlowYamlError) as caught:
        flow_folder.read(tmp_path)
    assert expected.format(tmp_path / ".prefectignore") in str(caught.value)


def test_flow_in_a_place_that_is_never_uploaded_is_refused(tmp_path: Path) -> None:
    """What the platform itself leaves out is named too."""
    write_generation(tmp_path, 0)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "flow.py").rename(tmp_path / ".venv" / "flow.py")
    (tmp_path / "flow.yaml").write_text(FLOW_YAML.replace("flow.py", ".venv/flow.py"))
    with pytest.raises(FlowYamlError, match=r"'\.venv/' is never uploaded; move the"):
        flow_folder.read(tmp_path)


def test_flow_and_requirements_are_found_however_they_are_written(tmp_path: Path) -> None:
    """Dots in a path make no difference; what uv.lock makes superfluous may be left out."""
    write_generation(tmp_path, 0)
    (tmp_path / "flow.yaml").write_text(FLOW_YAML.replace("flow.py", "./src/../flow.py"))
    (tmp_path / ".prefectignore").write_text("requirements.txt\n")
    (tmp_path / "src").mkdir()
    for name in ("requirements.txt", "pyproject.toml", "uv.lock"):
        (tmp_path / name).touch()
    flow_folder.read(tmp_path)


def test_folder_at_the_top_of_the_file_system_is_refused() -> None:
    """The whole machine is no flow, whatever lies there."""
    with pytest.raises(MlopsError, match="/: is the whole file system"):
        flow_folder.read(Path("/"))


@pytest.mark.parametrize("place", [b"caf\xe9", b"caf\xe9/flow"])
def test_folder_whose_path_is_not_utf8_is_refused(tmp_path: Path, place: bytes) -> None:
    """Neither S3 nor Prefect can be told of it; the folder is named, in text that prints."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + place))
    folder.mkdir(parents=True)
    write_generation(folder, 0)
    with pytest.raises(MlopsError, match="the folder's path is not UTF-8") as caught:
        flow_folder.read(folder)
    assert "caf\\udce9" in str(caught.value)
    assert caught.value.hint == "rename the folder"


def test_flow_yaml_that_does_not_count_is_told(tmp_path: Path) -> None:
    """Of two in one folder the other is named, and those below, also when there are mistakes."""
    write_generation(tmp_path, 0)
    assert flow_folder.warnings(flow_folder.check(tmp_path)) == []
    for place in ("config", "b", "a/config", "deep/er"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(tmp_path / "flow.yaml", tmp_path / place)
    top, counts = tmp_path / "flow.yaml", tmp_path / "config" / "flow.yaml"
    inner = "a/config/flow.yaml, b/flow.yaml"
    both, hidden = flow_folder.warnings(flow_folder.check(tmp_path))
    assert both == f"{counts}: counts, and {top} does not; remove the one that is not meant"
    assert hidden.startswith(f"{counts}: makes one flow of the whole folder;")
    assert hidden.endswith(f" these are not flows then: {inner}")
    (tmp_path / "flow.py").unlink()
    with pytest.raises(FlowYamlError) as caught:
        flow_folder.check(tmp_path)
    assert [both, hidden] == str(caught.value).splitlines()[-2:]
