import json
import os
from pathlib import Path

import pytest
from ordinary_rights import ordinary_rights

from mlops import cli
from mlops.scheduler.template import create_flow


@pytest.fixture(autouse=True)
def _no_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")


def test_check_goes_on_after_any_bad_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read, be understood or be named is a mistake of its own folder."""
    for name in ("a-locked", "b-ignoring", "z-good"):
        create_flow(tmp_path, name)
    (tmp_path / "a-locked").chmod(0)
    (tmp_path / "b-ignoring" / ".prefectignore").write_text("[z-a]\n")
    create_flow(tmp_path, "c").folder.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/c-\xe9")))
    with ordinary_rights():
        assert cli.run(["flows", "check", str(tmp_path)]) == 1
    (tmp_path / "a-locked").chmod(0o755)
    said = capsys.readouterr()
    for told in (
        f"{tmp_path / 'a-locked'}: cannot be read: Permission denied",
        f"{tmp_path / 'b-ignoring' / '.prefectignore'}: line 1: '[z-a]' is not a pattern",
        "c-\\udce9': the folder's path is not UTF-8",
    ):
        assert told in said.err
    assert said.out == f"{tmp_path / 'z-good'}: good (z-good/z-good)\n"


def test_check_says_where_no_flow_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a flow, no folder, and one that may not be listed are told apart."""
    (tmp_path / "locked").mkdir(mode=0)
    (tmp_path / "empty").mkdir()
    with ordinary_rights():
        for name, told in (
            ("empty", "no flow here"),
            ("gone", "no such folder"),
            ("locked", "cannot be read: Permission denied"),
        ):
            assert cli.run(["flows", "check", str(tmp_path / name)]) == 1
            assert f"mlops: {tmp_path / name}: {told}" in capsys.readouterr().err


def test_check_warns_of_flows_that_another_hides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flow.yaml that was put into FLOW_DIR itself is told, with what it hides."""
    inner = create_flow(tmp_path, "inner")
    for file in inner.files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert cli.run(["flows", "check", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["folder"] == str(tmp_path)
    (warning,) = row["warnings"]
    assert warning.startswith(f"{tmp_path / 'flow.yaml'}: makes one flow of the whole folder")
    assert warning.endswith("these are not flows then: inner/flow.yaml")
