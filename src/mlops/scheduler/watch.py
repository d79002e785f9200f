"""The scheduler's loop: flow folders are registered when they appear and when they change.

A deployment whose folder vanishes is paused.
"""

import os
from pathlib import Path

import httpx

from mlops.errors import MlopsError
from mlops.heartbeat import Heartbeat
from mlops.prefect_api import check_server
from mlops.scheduler.file_changes import file_changes
from mlops.scheduler.parameters import prepare_to_check
from mlops.scheduler.reconciler import Reconciler
from mlops.settings import SchedulerSettings


def watch_folders(settings: SchedulerSettings) -> None:
    """Keep the deployments of the flow folders below `FLOW_DIR` as the folders are.

    Never returns. A folder with mistakes is reported and its deployment left as it was; servers
    that are away, and a `FLOW_DIR` that is, are waited for.

    Args:
        settings: Which folder, and where the servers are.

    Raises:
        MlopsError: The server is older than we are, refuses us, or is another one.
    """
    _check_server(settings)
    root = Path(os.path.abspath(settings.flow_dir))  # noqa: PTH100  # pathlib keeps ".."
    reconciler = Reconciler(settings, root)
    heartbeat = Heartbeat(settings)
    reconciler.follow([])
    prepare_to_check()  # ahead of the first change, which should not wait for it
    for changed in file_changes(root):
        reconciler.follow(changed)
        if reconciler.is_well:
            heartbeat.beat()


def _check_server(settings: SchedulerSettings) -> None:
    """Refuse to start where nothing could be registered; a server that is away may come back."""
    try:
        check_server(settings)
    except MlopsError as error:
        if not isinstance(error.__cause__, httpx.HTTPError):
            raise
