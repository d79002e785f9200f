import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dvc_remote import DvcRemote, files_below
from fault_proxy import FaultProxy
from s3_server import ACCESS_KEY, SECRET_KEY

import mlops.data
from mlops.data import DataError, pull

CALL = "import sys, mlops.data; mlops.data.pull(*sys.argv[1:])"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a flow run finds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("MLOPS_DATA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"mlops.attempt": "1"}))


def test_call_returns_the_folder(remote: DvcRemote, tmp_path: Path) -> None:
    """A flow gets the folder, and the MLflow runs after it are tagged with the reference."""
    reference = remote.put_folder({"a": b"1"})
    assert pull(str(reference), tmp_path / "data") == tmp_path / "data"
    assert files_below(tmp_path / "data") == {"a": b"1"}
    assert json.loads(os.environ["MLFLOW_RUN_CONTEXT"]) == {
        "mlops.attempt": "1",
        reference.label: str(reference),
    }


def test_context_of_others_is_let_be(
    remote: DvcRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run context that is not the agent's is not changed."""
    for context in ("", '{"theirs": "1"}', "junk"):
        monkeypatch.setenv("MLFLOW_RUN_CONTEXT", context)
        pull(str(remote.put(b"1")), tmp_path / "data")
        assert os.environ["MLFLOW_RUN_CONTEXT"] == context


def test_error_is_one_message(
    remote: DvcRemote, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is wrong and the mend come as one error; the child's secret arguments are none."""
    reference = str(remote.put(b"1"))[:-4] + "0000"
    with pytest.raises(DataError) as error:
        pull(reference, tmp_path / "data")
    assert str(error.value).startswith(f"{reference}: is not in the remote")
    assert "dvc push" in str(error.value)
    assert capfd.readouterr().out == ""
    assert json.loads(os.environ["MLFLOW_RUN_CONTEXT"]) == {"mlops.attempt": "1"}


def test_missing_interpreter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is not there is named with its variable."""
    monkeypatch.setenv("MLOPS_DATA_PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(DataError, match=r"no-python: cannot be started.*MLOPS_DATA_PYTHON"):
        pull("s3://x/y@" + "0" * 32, tmp_path / "data")


def test_modules_of_the_flow_are_not_taken(
    remote: DvcRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the flow's folder or on its path does not get into the child."""
    for name in ("here", "path"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("MLOPS_DATA_PYTHON", sys.executable)
    assert pull(str(remote.put(b"1")), "data") == tmp_path / "here" / "data"


def test_progress_is_handed_on(
    remote: DvcRemote, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the child tells of its progress is on this process's stderr."""
    pull(str(remote.put_folder({"a": b"1"})), tmp_path / "data")
    assert "data: downloading data: 1 file," in capfd.readouterr().err


def test_call_needs_nothing_but_python_3_9() -> None:
    """The module is read by Python 3.9 and imports only what that brings along."""
    source = Path(str(mlops.data.__file__)).read_text()
    ast.parse(source, feature_version=(3, 9))
    code = "import sys, mlops.data; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bare = subprocess.run(
        [sys.executable, "-c", code.replace(", mlops.data", "")],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    known = {name.partition(".")[0] for name in bare.stdout.split()} | sys.stdlib_module_names
    assert imported - known == {"mlops"}


def children_of(place: Path) -> list[psutil.Process]:
    """Return the processes that pull to a place, but for the one that has called."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(place) in (process.info["cmdline"] or []) and CALL not in process.info["cmdline"]
    ]


def wait_until_gone(place: Path) -> None:
    deadline = time.monotonic() + 30
    while children_of(place):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


@pytest.fixture
def frozen(s3_url: str) -> Iterator[FaultProxy]:
    """A server that never answers."""
    with FaultProxy(s3_url, "hang", healthy_requests=0) as proxy:
        yield proxy


def start(command: list[str], proxy: FaultProxy) -> subprocess.Popen[str]:
    """Start a command and wait until it asks the server."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"AWS_ENDPOINT_URL_S3": proxy.url},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not proxy.requests:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no request"
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_child_ends_with_its_caller(
    remote: DvcRemote, tmp_path: Path, frozen: FaultProxy, sent: signal.Signals
) -> None:
    """However a flow's process ends, its pull ends too, even when the server is silent."""
    place = tmp_path / "data"
    caller = start(["-c", CALL, str(remote.put(b"1")), str(place)], frozen)
    assert children_of(place)
    caller.send_signal(sent)
    caller.communicate(timeout=30)
    wait_until_gone(place)
    assert not place.exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_ends_at_once(
    remote: DvcRemote, tmp_path: Path, frozen: FaultProxy, sent: signal.Signals, code: int
) -> None:
    """A signal ends the command while the server is silent, and leaves nothing beside the place."""
    place = tmp_path / "run" / "data"
    place.parent.mkdir()
    command = ["-m", "mlops", "data", "pull", str(remote.put(b"1")), "--to", str(place)]
    process = start(command, frozen)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert list(place.parent.iterdir()) == []
