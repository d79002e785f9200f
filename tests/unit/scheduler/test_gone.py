from pathlib import Path

import pytest
from ordinary_rights import ordinary_rights

from mlops.scheduler.gone import why_gone

NAME = "main/nightly"
FLOW_YAML = "deployment: {flow_py_name: flow.py, flow_name: main, deploy_name: nightly}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The flow folder of the deployment `NAME`."""
    made = tmp_path / "flow"
    made.mkdir()
    (made / "flow.yaml").write_text(FLOW_YAML)
    (made / "flow.py").write_text("from prefect import flow\n\n\n@flow\ndef main(): ...\n")
    return made


def test_folder_is_gone_when_it_is_not_that_deployment_any_more(folder: Path) -> None:
    """Under another name, without flow.yaml, no folder any more, and not there at all."""
    assert why_gone(folder, NAME) == ""
    assert why_gone(folder, "main/other") == f"{folder} is now {NAME}"
    (folder / "flow.yaml").unlink()
    assert why_gone(folder, NAME) == f"{folder} has no flow.yaml any more"
    assert why_gone(folder / "flow.py", NAME) == f"{folder / 'flow.py'} is no folder any more"
    assert why_gone(folder / "inner", NAME) == f"{folder / 'inner'} is gone"
    assert why_gone(folder / "flow.py" / "x", NAME) == f"{folder / 'flow.py' / 'x'} is gone"


def test_folder_that_cannot_be_read_is_not_gone(folder: Path) -> None:
    """Neither mistakes in it nor a lack of rights mean that it left."""
    folder.chmod(0)
    with ordinary_rights():
        assert why_gone(folder, NAME) == ""
        assert why_gone(folder / "inner", NAME) == ""
    folder.chmod(0o755)
    (folder / "flow.py").write_text("def main(:\n")
    assert why_gone(folder, NAME) == ""
    (folder / "flow.yaml").write_text("]")
    assert why_gone(folder, NAME) == ""
