"""A file system that a test can fill; where none can be mounted, `requires("mount")` skips it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_BYTES = 8 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system on a new folder, and return a file that fills it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path, spared_bytes: int) -> None:
    """Leave that much space on a small disk."""
    filler.write_bytes(bytes(DISK_BYTES - spared_bytes))
