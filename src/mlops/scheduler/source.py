"""Where a deployment was registered from, as its `path` in Prefect tells.

Prefect does not use the path of a deployment that has pull steps; its UI shows it.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple, Self

_PATH = re.compile(r"(?P<gone>gone )?(?P<scheduler>[^:/\s]+):(?P<folder>/.*)", re.DOTALL)


class Source(NamedTuple):
    """A flow folder on one of the machines that register flows.

    Attributes:
        scheduler: Name of the scheduler, by default of its host.
        folder: Absolute path of the folder there, under the name by which it was registered:
            links are not followed, as they may lead elsewhere tomorrow.
        gone: The scheduler paused the deployment because the folder was not there any more, and
            will resume it when it is back.
    """

    scheduler: str
    folder: Path
    gone: bool = False

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """Return the source that a deployment's path names, or None if it names none."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        return cls(match["scheduler"], Path(match["folder"]), gone=bool(match["gone"]))

    def is_below(self, root: Path) -> bool:
        """Return whether the folder is a given one or lies in it, whichever names they go by.

        Args:
            root: Absolute path.
        """
        roots = {root, Path(os.path.realpath(root))}
        folders = {
            self.folder,
            Path(os.path.realpath(self.folder)),
            # It may itself be a link that leads out.
            Path(os.path.realpath(self.folder.parent), self.folder.name),
        }
        return any(folder.is_relative_to(each) for folder in folders for each in roots)

    def __str__(self) -> str:
        return f"{'gone ' if self.gone else ''}{self.scheduler}:{self.folder}"
