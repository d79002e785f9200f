"""Two folders that are the same deployment, each of which would overwrite the other."""

import os
from collections.abc import Iterable
from pathlib import Path

from mlops.errors import MlopsError
from mlops.scheduler.deployments import Deployment
from mlops.scheduler.flow_folder import ReadFlow
from mlops.scheduler.gone import why_gone


class TwinError(MlopsError):
    """Two folders are the same deployment; both are named."""

    def __init__(self, first: Path, second: Path, name: str) -> None:
        super().__init__(
            f"{first} and {second} are both the deployment {name}",
            hint="change deployment.deploy_name in one of them, or remove it",
        )


def refuse_twin(
    flow: ReadFlow, deployment: Deployment | None, flows: Iterable[ReadFlow], scheduler: str
) -> None:
    """Make sure that no other folder is the same deployment.

    Where one of them is registered already, that one stays, also when it cannot be read just now.

    Args:
        flow: What is to be registered.
        deployment: What Prefect holds under its name.
        flows: What else is to be registered with it.
        scheduler: Our name; the folders of another's deployments cannot be looked at.

    Raises:
        TwinError: Another is.
    """
    name, folder = flow.checked.name, flow.bundle.folder
    owner = deployment.source if deployment else None
    if owner is not None and owner.scheduler == scheduler:
        if is_same(owner.folder, folder):
            return
        if not why_gone(owner.folder, name):
            raise TwinError(owner.folder, folder, name)
    for other in flows:
        if other.checked.name == name and not is_same(other.bundle.folder, folder):
            raise TwinError(other.bundle.folder, folder, name)


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same place."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)
