"""The data cache of a host: files by hash, verified once, shared by all runs.

A file that is in place is whole: it was written under another name, verified and renamed. It is
read-only, and its time of change is a stamp that follows from its size, so that any later write,
through a hard link of a run too, is seen without reading it.

    files/md5/ab/cdef...  the data, as in a cache of DVC's
    partial/<hash>        large files that are being fetched; an interrupted fetch goes on with them
    incoming/             small ones; only of pulls that run
    uses/<hash>           when a file or folder was last pulled, and its lock
    lock                  held by every pull, and by nobody else while files are removed
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlops.errors import MlopsError
from mlops.file_lock import share_lock, try_lock

_STAMP_FROM = 1_000_000_000  # 2001, in seconds: no file of today has it by chance
_STAMP_SPAN = 500_000_000
_READ_ONLY = 0o444
_EMPTY_FILE = "d41d8cd98f00b204e9800998ecf8427e"

Notify = Callable[[str], None]  # is given one line for people


def stamp_seconds(size: int) -> int:
    """Return the time of change that marks a verified file of that size in bytes."""
    return _STAMP_FROM + size % _STAMP_SPAN


def is_stamped(status: os.stat_result) -> bool:
    """Return whether a file is as it was when it was verified."""
    return stat.S_ISREG(status.st_mode) and status.st_mtime_ns == (
        stamp_seconds(status.st_size) * 10**9
    )


def seal(descriptor: int) -> None:
    """Mark an open file as verified, and make it read-only."""
    size = os.fstat(descriptor).st_size
    os.fchmod(descriptor, _READ_ONLY)
    os.utime(descriptor, (stamp_seconds(size), stamp_seconds(size)))


class DataCache:
    """Verified files by hash. Safe for threads and for several processes.

    Args:
        root: Its folder; made when missing.
        notify: Is told what became of damaged files.

    Raises:
        MlopsError: It cannot be made.
    """

    def __init__(self, root: Path, notify: Notify) -> None:
        self.root = root
        self._notify = notify
        self._files = str(root / "files" / "md5")
        self._token = secrets.token_hex(4)
        with self.errors():
            for name in ("files/md5", "partial", "incoming", "uses"):
                (root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a file system's refusal into an error that names the cache and the mend."""
        try:
            yield
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise MlopsError(
                f"{self.root}: the data cache cannot be written: {error.strerror}",
                hint="free space there; what was fetched stays, and the next pull goes on from it"
                if full
                else "let MLOPS_DATA_CACHE_DIR name a folder that you may write to",
            ) from error

    def path(self, data_hash: str) -> str:
        """Return where a hash's file is, or would be."""
        return f"{self._files}/{data_hash[:2]}/{data_hash[2:]}"

    def size(self, data_hash: str) -> int | None:
        """Return the size in bytes of a file that is here and untouched; None: it is not.

        One that was written to since it was verified is dropped.
        """
        path = self.path(data_hash)
        try:
            status = os.stat(path)  # noqa: PTH116  # ten thousand times
        except FileNotFoundError:
            return None
        if is_stamped(status) and (status.st_size or data_hash.startswith(_EMPTY_FILE)):
            return status.st_size
        self.drop(data_hash, "was changed since it was verified")
        return None

    def drop(self, data_hash: str, why: str) -> None:
        """Take a file out of the cache, and say so."""
        path = self.path(data_hash)
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
            self._notify(f"{path}: {why}; dropped from the cache, and fetched again")

    def read(self, data_hash: str) -> bytes | None:
        """Return a file's bytes, or None if it is not here."""
        if self.size(data_hash) is None:
            return None
        return Path(self.path(data_hash)).read_bytes()

    def temporary(self, data_hash: str) -> str:
        """Return a name, in this process only, under which a file may be written."""
        return f"{self.root}/incoming/{data_hash}.{self._token}"

    def partial(self, data_hash: str) -> Path:
        """Return where a large file is fetched to, by one process at a time."""
        return self.root / "partial" / data_hash

    def add(self, data_hash: str, body: bytes | memoryview) -> None:
        """Put a small file in place, whose bytes were verified."""
        temporary = self.temporary(data_hash)
        with self.errors():
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                rest = memoryview(body)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                seal(descriptor)
            finally:
                os.close(descriptor)
            self.admit(temporary, data_hash)

    def admit(self, written: str, data_hash: str) -> None:
        """Put a file in place that is verified and sealed."""
        path = self.path(data_hash)
        with self.errors():
            try:
                os.rename(written, path)  # noqa: PTH104
            except FileNotFoundError:
                Path(path).parent.mkdir(exist_ok=True)
                os.rename(written, path)  # noqa: PTH104

    @contextmanager
    def in_use(self, data_hash: str) -> Iterator[None]:
        """Hold the cache: nothing is removed meanwhile. Notes that this data is used now."""
        with contextlib.ExitStack() as stack:
            with self.errors():
                stack.enter_context(share_lock(self.root / "lock", create=True))
                self._use(data_hash).touch()
            yield

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the cache for oneself, if no pull holds it; yields whether that is so."""
        with contextlib.ExitStack() as stack:
            with self.errors():
                is_alone = stack.enter_context(try_lock(self.root / "lock", create=True))
            yield is_alone

    @contextmanager
    def fetching(self, data_hash: str) -> Iterator[None]:
        """Be the only one who fetches this data; a second one waits, and finds it here."""
        with self.errors():
            descriptor = os.open(self._use(data_hash), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._notify(f"waiting for another pull, which fetches {data_hash}, too")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Return those hashes, each once, whose files are not here."""
        return [each for each in dict.fromkeys(hashes) if self.size(each) is None]

    def _use(self, data_hash: str) -> Path:
        return self.root / "uses" / data_hash
