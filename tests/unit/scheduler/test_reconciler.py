import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from gate import Gate
from ordinary_rights import ordinary_rights
from pathspec import GitIgnoreSpec
from s3_server import ACCESS_KEY, SECRET_KEY

from mlops import __version__
from mlops.prefect_api import VERSION_HEADER
from mlops.scheduler import flow_folder
from mlops.scheduler.deployments import wanted_fields
from mlops.scheduler.reconciler import Reconciler
from mlops.scheduler.source import Source
from mlops.scheduler.watched_folder import Pace
from mlops.settings import SchedulerSettings

HASTY = Pace(quiet=0, settled=0, look=0, first_retry=0, longest_retry=0)
FLOW_ID = UUID(int=1)


def settings_for(prefect: str, s3: str) -> SchedulerSettings:
    return SchedulerSettings(
        prefect_api_url=f"{prefect}/api",
        aws_endpoint_url_s3=s3,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        mlops_host_name="test",
    )


@contextmanager
def prefect_with(*deployments: dict[str, Any]) -> Iterator[str]:
    """Serve what a reconciler reads from Prefect; the real one takes ten seconds to start.

    Whatever it would write is refused.
    """
    answers = {
        "/api/deployments/filter": deployments,
        "/api/flows/filter": [{"id": str(FLOW_ID), "name": "main"}],
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header(VERSION_HEADER, __version__)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def write_flow(folder: Path, more: str = "") -> Path:
    folder.mkdir()
    (folder / "flow.yaml").write_text(
        "deployment: {flow_py_name: flow.py, flow_name: main, deploy_name: " + folder.name + "}\n"
        f"{more}\n"
    )
    (folder / "flow.py").write_text("from prefect import flow\n\n\n@flow\ndef main(): ...\n")
    return folder


def registered(folder: Path) -> dict[str, Any]:
    """Return the deployment that a flow folder asks for, as Prefect's API tells it."""
    flow = flow_folder.read(folder)
    return {
        "id": str(UUID(int=2)),
        "flow_id": str(FLOW_ID),
        "name": folder.name,
        "paused": False,
        "parameter_openapi_schema": {},
        "global_concurrency_limit": None,
        "schedules": [],
        **wanted_fields(flow, "prefect", Source("test", folder), None),
    }


def told(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if text in record.getMessage()]


def test_hundreds_of_retries_leave_nothing_behind_but_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While no server answers, neither open files nor memory nor the log grow."""
    with socket.socket() as taken:  # nothing listens there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        reconciler = Reconciler(
            settings_for(nobody, nobody), tmp_path, Pace(first_retry=0, longest_retry=0)
        )
        process = psutil.Process()
        for _ in range(50):
            reconciler.follow([])
        files, memory = process.num_fds(), process.memory_info().rss
        for _ in range(500):
            reconciler.follow([])
    assert process.num_fds() <= files
    assert process.memory_info().rss - memory < 2 << 20
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"trying again until it works: {nobody}/api" in line.getMessage()


def test_object_store_that_is_away_is_named_and_waited_for(
    tmp_path: Path, s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect alone does not do: the code is brought up when the object store is back."""
    caplog.set_level(logging.INFO)
    folder = write_flow(tmp_path / "s3-away")
    gate = Gate(s3_url)
    gate.close()
    with prefect_with(registered(folder)) as prefect:
        reconciler = Reconciler(settings_for(prefect, gate.url), tmp_path, HASTY)
        for _ in range(3):
            reconciler.follow([])
            assert not reconciler.is_well
        (line,) = told(caplog, "trying again until it works")
        assert f"the object store at {gate.url} does not answer" in line.getMessage()
        gate.open()
        reconciler.follow([])
        assert reconciler.is_well
    gate.close()
    assert "1 repaired" in told(caplog, "caught up after")[0].getMessage()


def test_folder_with_which_anything_is_wrong_stops_no_other(
    tmp_path: Path,
    s3_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What nobody foresaw is logged once with its traceback; the folder is tried on a change."""
    match_file = GitIgnoreSpec.match_file

    def failing(spec: GitIgnoreSpec, name: str) -> bool:
        """Fail as no library does that is known."""
        if name == "cursed":
            raise RuntimeError(name)
        return match_file(spec, name)

    monkeypatch.setattr(GitIgnoreSpec, "match_file", failing)
    (write_flow(tmp_path / "a", "colour: red") / "cursed").touch()
    (write_flow(tmp_path / "b") / ".prefectignore").write_text("!\n")
    write_flow(tmp_path / "c").chmod(0)
    write_flow(tmp_path / "d", "colour: red")
    with prefect_with() as prefect, ordinary_rights():
        reconciler = Reconciler(settings_for(prefect, s3_url), tmp_path, HASTY)
        for _ in range(3):
            reconciler.follow([])
        assert reconciler.is_well
        (failure,) = told(caplog, f"{tmp_path / 'a'}: not registered, and tried again")
        assert failure.exc_info
        for line in (
            f"{tmp_path / 'b' / '.prefectignore'}: line 1: '!' is not a pattern",
            f"{tmp_path / 'c'}: cannot be read: Permission denied",
            f"{tmp_path / 'd' / 'flow.yaml'}: colour: unknown key",
        ):
            (refusal,) = told(caplog, line)
            assert not refusal.exc_info
        (tmp_path / "a" / "cursed").unlink()
        reconciler.follow([])
        assert told(caplog, f"{tmp_path / 'a' / 'flow.yaml'}: colour: unknown key")
    (tmp_path / "c").chmod(0o755)


def test_root_that_cannot_be_listed_is_told_and_waited_for(
    tmp_path: Path, s3_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A lack of rights is named, not taken for a folder without flows."""
    caplog.set_level(logging.INFO)
    root = tmp_path / "flows"
    root.mkdir(mode=0)
    with prefect_with() as prefect, ordinary_rights():
        reconciler = Reconciler(settings_for(prefect, s3_url), root, HASTY)
        for _ in range(2):
            reconciler.follow([])
            assert not reconciler.is_well
        assert len(told(caplog, f"{root}: cannot be read: Permission denied; waiting for it")) == 1
        root.chmod(0o755)
        reconciler.follow([])
        assert reconciler.is_well
    assert told(caplog, f"{root} is there")
