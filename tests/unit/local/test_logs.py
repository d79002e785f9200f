from pathlib import Path

import pytest

from mlops.errors import UsageError
from mlops.local.home import Home
from mlops.local.logs import follow_logs, last_lines, log_files


def test_last_lines_are_the_last(tmp_path: Path) -> None:
    """Only as many as asked for; a log that is not there has none."""
    log = tmp_path / "x.log"
    log.write_text("one\ntwo\nthree\n")
    assert last_lines(log, 2) == ["two", "three"]
    assert last_lines(log, 0) == []
    assert last_lines(tmp_path / "none.log", 5) == []


def test_an_unknown_service_is_wrong_usage(tmp_path: Path) -> None:
    """The known ones are named."""
    assert list(log_files(Home(tmp_path), "s3")) == ["s3"]
    assert "supervisor" in log_files(Home(tmp_path), None)
    with pytest.raises(UsageError, match="mlflow"):
        log_files(Home(tmp_path), "mlfow")


def test_following_yields_whole_new_lines_and_survives_rotation(tmp_path: Path) -> None:
    """Lines come once, when they are complete, and from the new file after a rotation."""
    log = tmp_path / "x.log"
    log.write_text("old and long\n")
    lines = follow_logs({"x": log})
    with log.open("a") as file:
        file.write("new\npar")
        file.flush()
        assert next(lines) == ("x", "new")
        file.write("tial\n")
        file.flush()
        assert next(lines) == ("x", "partial")
    log.rename(tmp_path / "x.log.1")
    log.write_text("fresh\n")
    assert next(lines) == ("x", "fresh")
