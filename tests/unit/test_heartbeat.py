import logging
import time
from pathlib import Path

import pytest

from mlops.container_health import check_heartbeat
from mlops.heartbeat import Heartbeat
from mlops.settings import HeartbeatSettings


@pytest.fixture
def settings(tmp_path: Path) -> HeartbeatSettings:
    return HeartbeatSettings(mlops_heartbeat_file=tmp_path / "heartbeat")


@pytest.fixture
def file(settings: HeartbeatSettings) -> Path:
    assert settings.mlops_heartbeat_file
    return settings.mlops_heartbeat_file


def test_process_that_beats_is_well(settings: HeartbeatSettings, file: Path) -> None:
    """A beat makes the file, and the check is content."""
    Heartbeat(settings).beat()
    check_heartbeat(str(file))


def test_file_is_touched_every_few_seconds_only(settings: HeartbeatSettings, file: Path) -> None:
    """Beats that follow each other closely cost nothing."""
    heartbeat = Heartbeat(settings)
    heartbeat.beat()
    file.unlink()
    heartbeat.beat()
    assert not file.exists()


def test_beat_that_cannot_be_noted_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the file cannot be written the process goes on, and its log says why."""
    settings = HeartbeatSettings(mlops_heartbeat_file=tmp_path / "missing" / "heartbeat")
    with caplog.at_level(logging.WARNING):
        Heartbeat(settings).beat()
    assert "no heartbeat: [Errno 2]" in caplog.text


def test_process_knows_how_it_is(
    settings: HeartbeatSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unwell before the first beat, well after one, and unwell a minute later."""
    heartbeat = Heartbeat(settings)
    assert heartbeat.problem == "has not reached its servers yet"
    assert heartbeat.last is None
    heartbeat.beat()
    assert heartbeat.problem is None
    later = time.monotonic() + 61  # as no test can wait so long
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert heartbeat.problem == "has not reached its servers for 61 s"
    assert heartbeat.last is not None
    assert heartbeat.last.seconds_ago == pytest.approx(61, abs=1)
