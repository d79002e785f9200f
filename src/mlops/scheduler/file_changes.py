"""What the file system tells of changes below a folder, for as long as one cares to listen.

A hint and no more: the system does not tell when a link leads elsewhere, when the folder itself
is replaced, or of files that another machine writes to a network file system.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from watchfiles import watch

TICK_MILLISECONDS = 200
STEP_MILLISECONDS = 50  # watchfiles looks so often whether the system told of something
POLL_MILLISECONDS = 1000  # where every file has to be looked at

logger = logging.getLogger(__name__)
_Identity = tuple[str, int, int]  # path, device, inode


def file_changes(root: Path) -> Iterator[set[str]]:
    """Yield the paths that changed, or none at each tick; never ends.

    The root itself is among them when the watching begins or ends, as when the root is replaced:
    anything may have changed then. `WATCHFILES_FORCE_POLLING` makes watchfiles look at every
    file, which also finds what others write to a network file system.

    Args:
        root: Absolute path of a folder. It may be missing, and come and go.
    """
    polling: bool | None = None  # None: as the environment says
    ignoring: bool | None = None
    while True:
        watched = _places(root)
        if watched:
            anything = {str(root)}  # told when the watching has begun: nothing is lost between
            try:
                for changes in watch(
                    root,
                    watch_filter=None,
                    step=STEP_MILLISECONDS,
                    debounce=STEP_MILLISECONDS,
                    rust_timeout=TICK_MILLISECONDS,
                    yield_on_timeout=True,
                    force_polling=polling,
                    poll_delay_ms=POLL_MILLISECONDS,
                    ignore_permission_denied=ignoring,
                ):
                    yield anything | {path for _, path in changes}
                    anything.clear()
                    if _places(root) != watched:
                        break
            except PermissionError:
                # Not from the start: it makes watchfiles silent about every other error too.
                ignoring = True
            except (OSError, RuntimeError) as error:  # RuntimeError: watchfiles' own kind
                if not polling and _places(root) == watched:
                    polling = True
                    logger.warning(
                        "%s: looking at every file once a second, as the system cannot watch "
                        "them: %s; to be told of changes, raise fs.inotify.max_user_watches "
                        "or fs.inotify.max_user_instances and start again",
                        root,
                        str(error).partition(" about [")[0],
                    )
                time.sleep(POLL_MILLISECONDS / 1000)
            yield {str(root)}
        else:
            time.sleep(TICK_MILLISECONDS / 1000)
            yield set()


def _places(root: Path) -> set[_Identity]:
    """Return what the watching depends on: the folder and those to which links in it lead.

    Empty when the folder is not there.
    """
    try:
        with os.scandir(root) as entries:
            links = [entry.path for entry in entries if entry.is_symlink()]
    except OSError:
        return set()
    return {place for path in (str(root), *links) for place in _identity(path)}


def _identity(path: str) -> Iterator[_Identity]:
    try:
        found = Path(path).stat()
    except OSError:
        return
    yield path, found.st_dev, found.st_ino
