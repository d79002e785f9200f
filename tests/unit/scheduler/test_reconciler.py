import logging
import socket
from pathlib import Path

import psutil
import pytest

from mlops.scheduler.reconciler import Reconciler
from mlops.scheduler.watched_folder import Pace
from mlops.settings import SchedulerSettings


def test_hundreds_of_retries_leave_nothing_behind_but_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While no server answers, neither open files nor memory nor the log grow."""
    with socket.socket() as taken:  # nothing listens there, and nobody else can
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        settings = SchedulerSettings(
            prefect_api_url=f"{nobody}/api",
            aws_endpoint_url_s3=nobody,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        reconciler = Reconciler(settings, tmp_path, Pace(first_retry=0, longest_retry=0))
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
