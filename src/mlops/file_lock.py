"""Locks on files, which the kernel releases when their last holder is gone, killed or not."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def try_lock(path: Path, *, create: bool = False) -> Iterator[bool]:
    """Lock a file for ourselves alone, if nobody holds it; yields whether that is so.

    Args:
        path: The file.
        create: Whether to make it when it is missing.

    Raises:
        FileNotFoundError: It is missing.
    """
    with _opened(path, create=create) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def share_lock(path: Path, *, create: bool = False) -> Iterator[int]:
    """Keep others from locking a file for themselves; waits for one who does.

    Yields the file's descriptor. A process that inherits it (`pass_fds`) holds the lock for as long
    as it lives, even when this one is killed: it is never unlocked, only closed.

    Args:
        path: The file.
        create: Whether to make it when it is missing.

    Raises:
        FileNotFoundError: It is missing.
    """
    with _opened(path, create=create) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor


@contextlib.contextmanager
def _opened(path: Path, *, create: bool) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
