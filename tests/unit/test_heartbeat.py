import logging
import os
import time
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.heartbeat import LIMIT_SECONDS, Heartbeat, check_heartbeat
from mlops.settings import HeartbeatSettings


@pytest.fixture
def settings(tmp_path: Path) -> HeartbeatSettings:
    return HeartbeatSettings(mlops_heartbeat_file=tmp_path / "heartbeat")


@pytest.fixture
def file(settings: HeartbeatSettings) -> Path:
    assert settings.mlops_heartbeat_file
    return settings.mlops_heartbeat_file


def test_process_that_beats_is_well(settings: HeartbeatSettings) -> None:
    """A beat makes the file, and the check is content."""
    Heartbeat(settings).beat()
    check_heartbeat(settings)


def test_process_that_never_beat_is_told(settings: HeartbeatSettings) -> None:
    """Without the file nothing was reached so far."""
    with pytest.raises(MlopsError, match="has not reached its servers yet"):
        check_heartbeat(settings)


@pytest.mark.parametrize("age", [LIMIT_SECONDS + 10, -LIMIT_SECONDS - 10])
def test_old_beat_is_told(settings: HeartbeatSettings, file: Path, age: float) -> None:
    """A beat of more than a minute ago does not count, nor one from the future."""
    file.touch()
    then = time.time() - age
    os.utime(file, (then, then))
    with pytest.raises(MlopsError, match=r"has not reached its servers for 7\d s"):
        check_heartbeat(settings)


def test_check_without_a_file_is_told() -> None:
    """A check needs to know the process's file."""
    with pytest.raises(MlopsError, match="MLOPS_HEARTBEAT_FILE: not set"):
        check_heartbeat(HeartbeatSettings(mlops_heartbeat_file=None))


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
