"""The scheduler's loop: flow folders are registered when they appear and when they change."""

import logging
from collections.abc import Callable
from pathlib import Path

from watchfiles import DefaultFilter, watch

from mlops.errors import MlopsError
from mlops.scheduler.register import Registration
from mlops.scheduler.spec import FlowYamlError, find_flow_yaml

RETRY_MILLISECONDS = 2000
QUIET_MILLISECONDS = 400  # a folder that is being copied is read when the writes have paused

logger = logging.getLogger(__name__)


def watch_folders(root: Path, register: Callable[[Path], Registration]) -> None:
    """Register the flow folders below `root` now and whenever they change; never returns.

    A flow with mistakes is reported and left as it was on the server; a server that does not
    answer is tried again until it does.

    Args:
        root: One flow folder, or a folder of them.
        register: Registers one folder.
    """
    pending = set(_folders(root))
    logger.info("watching %s: %d flow(s)", root, len(pending))
    outage: str | None = None
    outage = _register_all(pending, register, outage)
    for changes in watch(
        root,
        watch_filter=DefaultFilter(),
        step=QUIET_MILLISECONDS,
        rust_timeout=RETRY_MILLISECONDS,
        yield_on_timeout=True,
        raise_interrupt=True,
    ):
        changed = {Path(path) for _, path in changes}
        pending |= {
            folder
            for folder in _folders(root)
            if any(path.is_relative_to(folder) for path in changed)
        }
        outage = _register_all(pending, register, outage)


def _folders(root: Path) -> list[Path]:
    if find_flow_yaml(root):
        return [root]
    return [child for child in sorted(root.iterdir()) if find_flow_yaml(child)]


def _register_all(
    pending: set[Path], register: Callable[[Path], Registration], outage: str | None
) -> str | None:
    """Register what is pending, taking what is done out of it.

    Returns:
        The message of the error that keeps the rest waiting, or None. It is logged once.
    """
    for folder in sorted(pending):
        try:
            done = register(folder)
        except FlowYamlError as error:
            logger.error("%s", error)  # noqa: TRY400  # a user's mistake has no traceback
        except MlopsError as error:
            if str(error) != outage:
                logger.warning("%s: not registered, trying again: %s", folder, error)
            return str(error)
        else:
            for warning in done.warnings:
                logger.warning("%s", warning)
            logger.info("%s: %s (%s)", done.name, done.action, done.code_uri)
        pending.discard(folder)
    return None
