"""The download of the example project, from a server of the test's own."""

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedded.small_disk import fill, small_disk

SCRIPT = Path(__file__).parents[3] / "dev-projects" / "green_taxi" / "src" / "download.py"
MONTHS = ("2021-01", "2021-02")
NAMES = [f"green_tripdata_{month}.parquet" for month in MONTHS]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The project's script, as a module."""
    spec = importlib.util.spec_from_file_location("green_taxi_download", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with both months."""
    folder = tmp_path / "published"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        pq.write_table(pa.table({"trip": range(1000 + number)}), folder / name)
    return folder


@pytest.fixture
def address(
    script: ModuleType, published: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[http.server.ThreadingHTTPServer]:
    """The commission's server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    serve = functools.partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(script, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says too much of the length of one that is called short."""

    def log_message(self, *_: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if keyword == "Content-Length" and Path(str(self.directory), "cut-off").exists():
            value = str(int(value) + 10)
        super().send_header(keyword, value)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_fetched(folder: Path, published: Path) -> None:
    assert names_in(folder) == NAMES
    for name in NAMES:
        assert (folder / name).read_bytes() == (published / name).read_bytes()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.usefixtures("address")
def test_months_are_fetched(
    script: ModuleType, published: Path, tmp_path: Path, given: bool
) -> None:
    """The folder holds the months' files and nothing that was left there before."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for left in ("green_tripdata_2020-12.parquet", f".{NAMES[0]}.part", NAMES[1]):
        (raw / left).write_bytes(b"half of something")
    script.fetch(MONTHS, raw, str(published) if given else None)
    assert_fetched(raw, published)


@pytest.mark.usefixtures("address")
def test_whole_file_is_kept(
    script: ModuleType, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there and whole is not fetched a second time; a broken-off run is gone on with."""
    raw = tmp_path / "raw"
    hidden = (published / NAMES[1]).rename(tmp_path / "hidden")
    with pytest.raises(script.DownloadError, match="is this month published"):
        script.fetch(MONTHS, raw, None)
    assert names_in(raw) == NAMES[:1]
    hidden.rename(published / NAMES[1])
    script.fetch(MONTHS, raw, None)
    assert f"{raw / NAMES[0]}: is there" in capsys.readouterr().out
    assert_fetched(raw, published)


@pytest.mark.usefixtures("address")
def test_what_breaks_off_leaves_nothing(
    script: ModuleType, published: Path, tmp_path: Path
) -> None:
    """A file of which the server sends less than it has said is not kept."""
    (published / "cut-off").touch()
    with pytest.raises(script.DownloadError, match="broke off after"):
        script.fetch(MONTHS, tmp_path / "raw", None)
    assert names_in(tmp_path / "raw") == []


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.usefixtures("address")
def test_other_file_is_refused(
    script: ModuleType, published: Path, tmp_path: Path, given: bool
) -> None:
    """The page of a network's log-in, say, is not taken for the data."""
    (published / NAMES[0]).write_text("<html>Please log in</html>")
    with pytest.raises(script.DownloadError, match="is no Parquet file, begins with b'<html>"):
        script.fetch(MONTHS, tmp_path / "raw", str(published) if given else None)
    assert names_in(tmp_path / "raw") == []


def test_unreachable_address_is_told_with_the_way_round(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a way to the server the message names the address and GREEN_TAXI_DATA."""
    monkeypatch.setattr(script, "ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(script.DownloadError, match=r"127\.0\.0\.1:9/.*set GREEN_TAXI_DATA"):
        script.fetch(MONTHS, tmp_path / "raw", None)


def test_missing_file_of_the_folder_is_named(script: ModuleType, tmp_path: Path) -> None:
    """A folder without the file is named as it stands in GREEN_TAXI_DATA."""
    with pytest.raises(script.DownloadError, match=f"{tmp_path}/{NAMES[0]}: no such file"):
        script.fetch(MONTHS, tmp_path / "raw", str(tmp_path))


@pytest.mark.requires("root", "mount")
def test_full_disk_is_told(script: ModuleType, published: Path, tmp_path: Path) -> None:
    """A disk without room is named, with what is free, and nothing half-written stays."""
    with small_disk(tmp_path / "disk") as filler:
        fill(filler, 4096)
        with pytest.raises(script.DownloadError, match="No space left on device; 0 MB are free"):
            script.fetch(MONTHS, tmp_path / "disk" / "raw", str(published))
        assert names_in(tmp_path / "disk" / "raw") == []


def test_script_ends_with_one_line(tmp_path: Path) -> None:
    """Run as the stage runs it, a mistake is one line and exit code 1."""
    (tmp_path / "params.yaml").write_text("months: {train: '2021-01', validate: '2021-02'}\n")
    done = subprocess.run(
        [sys.executable, SCRIPT],
        cwd=tmp_path,
        env=os.environ | {"GREEN_TAXI_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("download: ")
    assert done.stderr.count("\n") == 1
