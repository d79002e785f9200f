"""Builds the environment of flows without requirements from a hashed lock, for an image.

    python -m mlops.agent.prebuild FOLDER LOCK

No command of `mlops`: the image's build has only the modules that this one needs, so that a change
in any other one does not build the environment anew (flow_agent/Dockerfile).
"""

import sys
from pathlib import Path

from mlops.agent.environments import EnvironmentCache


def prebuild(folder: Path, lock: Path) -> None:
    """Build it where it is to stay.

    Args:
        folder: The cache that it becomes the only environment of.
        lock: What to install, with hashes.

    Raises:
        EnvironmentBuildError: It cannot be built.
    """
    cache = EnvironmentCache(folder.absolute(), limit_bytes=sys.maxsize)
    print(cache.prebuild(lock, print).folder)


if __name__ == "__main__":
    prebuild(Path(sys.argv[1]), Path(sys.argv[2]))
