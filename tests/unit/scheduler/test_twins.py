import shutil
from pathlib import Path
from typing import Any

import pytest
from ordinary_rights import ordinary_rights

from mlops.scheduler import flow_folder
from mlops.scheduler.deployments import Deployment
from mlops.scheduler.source import Source
from mlops.scheduler.template import create_flow
from mlops.scheduler.twins import TwinError, refuse_twin


def test_registered_folder_keeps_its_deployment_until_it_is_gone(tmp_path: Path) -> None:
    """A copy is refused, also while the first cannot be read, until that has left."""
    first = create_flow(tmp_path, "first").folder
    second = tmp_path / "second"
    shutil.copytree(first, second)
    flow = flow_folder.read(second)
    known: dict[str, Any] = {"path": str(Source("box", first))}  # all that is looked at
    deployment = Deployment.model_construct(**known)
    with pytest.raises(TwinError, match=f"{first} and {second} are both"):
        refuse_twin(flow, deployment, [], "box")
    first.chmod(0)
    with ordinary_rights(), pytest.raises(TwinError):
        refuse_twin(flow, deployment, [], "box")
    first.chmod(0o755)
    (first / "flow.yaml").unlink()
    refuse_twin(flow, deployment, [], "box")
    shutil.rmtree(first)
    refuse_twin(flow, deployment, [], "box")
