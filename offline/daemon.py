"""The Docker daemon that keeps the images."""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from commands import Failure, run
from images import Image

LABEL = "mlops.offline.recipe"


@dataclass(frozen=True)
class Kept:
    """An image that the daemon has.

    Args:
        recipe: the hash of what it was made from; empty: it was not made here.
        size_bytes: its size, unpacked.
    """

    recipe: str
    size_bytes: int


def check() -> None:
    """Ask the daemon for a sign of life.

    Raises:
        Failure: it does not answer.
    """
    done = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise Failure(
            "the Docker daemon does not answer: start it, and see that you may use its socket "
            f"({''.join(said)})"
        )


def find(tag: str) -> Kept | None:
    """Look an image up; None: it is not there."""
    done = subprocess.run(
        ["docker", "image", "inspect", tag], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None
    found = json.loads(done.stdout)[0]
    return Kept((found["Config"]["Labels"] or {}).get(LABEL, ""), found["Size"])


def label(image: Image, plan_hash: str) -> str:
    """Return the recipe's hash: how the root file system is made, and the configuration."""
    return hashlib.sha256(repr((plan_hash, image.config)).encode()).hexdigest()


def load(archive: Path, image: Image, recipe: str) -> None:
    """Make an image from the archive of a root file system; all of it or nothing.

    Raises:
        Failure: Docker refused it.
    """
    changes = [*image.config, f"LABEL {LABEL}={recipe}"]
    options = [f"--change={change}" for change in changes]
    run(["docker", "import", *options, str(archive), image.tag])
