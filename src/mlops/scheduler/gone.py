"""Deployments whose flow folder is gone: found, paused by the watcher, deleted by `prune`."""

import stat
from pathlib import Path
from typing import NamedTuple

import httpx

from mlops.prefect_api import PrefectApi, RefusedRequestError
from mlops.scheduler import flow_folder
from mlops.scheduler.deployments import Deployment, read_all
from mlops.scheduler.spec import find_flow_yaml


class GoneDeployment(NamedTuple):
    """A deployment that its folder does not ask for any more.

    Attributes:
        name: Its full name, `flow/deployment`.
        deployment: As Prefect holds it.
        reason: What became of the folder.
    """

    name: str
    deployment: Deployment
    reason: str

    @property
    def is_active(self) -> bool:
        """Whether it is to be paused.

        One that was paused in the UI stays as it is, then and later; and so does one that was
        resumed there after it had been paused here.
        """
        source = self.deployment.source
        return not self.deployment.paused and source is not None and not source.gone


def find_gone(api: PrefectApi, scheduler: str, root: Path) -> list[GoneDeployment]:
    """Return the deployments that were registered from below a folder and are gone there.

    One whose folder has mistakes is not gone: it stays until they are mended.

    Args:
        api: The Prefect server.
        scheduler: Name of this scheduler; what others registered is theirs.
        root: One flow folder, or a folder of them.
    """
    root = root.absolute()
    found = []
    for name, deployment in read_all(api).items():
        source = deployment.source
        if deployment.code is None or source is None or source.scheduler != scheduler:
            continue
        if not source.is_below(root):
            continue
        if reason := why_gone(source.folder, name):
            found.append(GoneDeployment(name, deployment, reason))
    return sorted(found, key=lambda gone: gone.name)


def why_gone(folder: Path, name: str) -> str:
    """Return why a folder is not that deployment's any more; empty if it still is.

    Whatever cannot be read just now counts as still there.
    """
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return f"{folder} is no folder any more"
        if find_flow_yaml(folder) is None:
            return f"{folder} has no flow.yaml any more"
        current = flow_folder.check(folder).name
    except (FileNotFoundError, NotADirectoryError):
        return f"{folder} is gone"
    except Exception:  # noqa: BLE001  # its registration says what is wrong with it
        return ""
    return "" if current == name else f"{folder} is now {current}"


def pause(api: PrefectApi, gone: GoneDeployment) -> bool:
    """Pause a deployment until its folder is back; return whether it was there and active."""
    source = gone.deployment.source
    if source is None or not gone.is_active:
        return False
    # In one request: a pause without the mark would outlast the folder's return.
    fields = {"paused": True, "path": str(source._replace(gone=True))}
    try:
        api.send("PATCH", f"/deployments/{gone.deployment.id}", fields)
    except RefusedRequestError as error:
        if error.status_code != httpx.codes.NOT_FOUND:  # somebody deleted it meanwhile
            raise
        return False
    return True
