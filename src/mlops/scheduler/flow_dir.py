"""Flow folders as they are just now, as far as it takes to notice a change."""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mlops.scheduler import flow_files
from mlops.scheduler.spec import find_flow_yaml


class Identity(NamedTuple):
    """Tells a folder from another one at the same path, such as what is mounted there."""

    device: int
    inode: int


def identity(folder: Path) -> Identity | None:
    """Return which folder is at a path; None if there is none, or it cannot be reached."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino)


def touched(folders: set[Path], paths: set[str]) -> set[Path]:
    """Return the folders that paths lie in, as these may go through a link or around it."""
    places = defaultdict(set)
    for folder in folders:
        places[str(folder)].add(folder)
        places[os.path.realpath(folder)].add(folder)
    above = {place for path in paths for place in (path, *map(str, Path(path).parents))}
    return {folder for place in above & places.keys() for folder in places[place]}


def state(folder: Path) -> int:
    """Return a number that changes when a file of a flow folder is written to."""
    try:
        flow_yaml = find_flow_yaml(folder)  # which need not be part of the code
        written = flow_yaml.stat().st_mtime_ns if flow_yaml else 0
        return hash((written, flow_files.state(folder)))
    except Exception as error:  # noqa: BLE001  # whatever it is, its registration reports it
        return hash(repr(error))
