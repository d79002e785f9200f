"""Placing data from the cache where a run wants it: as reflinks, hard links or copies.

All of it is made beside the place and renamed there: a place holds all of the data or nothing.
What was placed has the cache's stamps, by which a later pull knows it: such data it may replace,
and nobody else's.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlops.data.cache import DataCache, is_stamped, seal
from mlops.data.content import DataFile
from mlops.data.parallel import in_parallel
from mlops.errors import MlopsError

_CLONE = 0x40049409  # FICLONE of linux/fs.h: the same blocks, and copies when one is written to
_NOT_HERE = {
    errno.EXDEV,
    errno.EMLINK,
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EINVAL,
    errno.ENOSYS,
}
_MARK = ".mlops-"  # in the names of folders beside a place
_YOUNG_SECONDS = 60.0
_THREADS = 4

Put = Callable[[str, str], None]  # brings a file of the cache to a path


class _DifferentError(Exception):
    """A place holds something else."""


class Place:
    """Where data is to be.

    Args:
        path: The file or folder.
        files: What is to be there; one without a path is the place itself.
        cache: Where it comes from.
    """

    def __init__(self, path: Path, files: Sequence[DataFile], cache: DataCache) -> None:
        self.path = path
        self._files = files
        self._cache = cache
        self._found = _walk(path)

    @property
    def size(self) -> int:
        """How many bytes are there now."""
        return sum(status.st_size for status in self._found.values())

    def is_right(self) -> bool:
        """Return whether exactly this data is there.

        Hard links into the cache are known by that; other files are read.
        """
        if not os.path.lexists(self.path) or self._found.keys() != {f.path for f in self._files}:
            return False
        if self.path.is_symlink() or self.path.is_dir() is (self._files_are_one()):
            return False

        def compare(file: DataFile) -> None:
            status = self._found[file.path]
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(status, os.stat(self._cache.path(file.md5))):  # noqa: PTH116
                    if is_stamped(status):
                        return
                    raise _DifferentError
            path = self.path / file.path if file.path else self.path
            if path.is_symlink() or not path.is_file() or _md5(path) != file.md5:
                raise _DifferentError

        try:
            in_parallel(compare, self._files, _THREADS)
        except (_DifferentError, FileNotFoundError):
            return False
        return True

    def refuse_foreign(self) -> None:
        """Refuse a place with anything that no pull has placed there, or that was changed.

        Raises:
            MlopsError: There is such a thing.
        """
        for name, status in sorted(self._found.items()):
            if not is_stamped(status):
                what = f"holds {name}, which" if name else "is there, and"
                raise MlopsError(
                    f"{self.path}: {what} no pull has placed there, or which was changed since",
                    hint="move it away, choose another place with --to, "
                    "or replace all that is there with --force",
                )

    @contextmanager
    def prepare(self) -> Iterator["Bench"]:
        """Make a folder beside the place, in which the data is put together.

        Raises:
            MlopsError: Nothing can be written there.
        """
        parent = self.path.parent
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        prefix = f".{self.path.name}{_MARK}"
        with _errors(parent):
            _sweep(parent, prefix)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # by which a sweep knows that it is in use
        try:
            yield Bench(self.path, folder, self._files, self._cache)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def _files_are_one(self) -> bool:
        return len(self._files) == 1 and not self._files[0].path


class Bench:
    """A folder beside a place. See `Place.prepare`.

    Args:
        target: The place.
        folder: The folder beside it.
        files: What is to be there.
        cache: Where it comes from.
    """

    def __init__(
        self, target: Path, folder: Path, files: Sequence[DataFile], cache: DataCache
    ) -> None:
        self.folder = folder
        self._target = target
        self._files = files
        self._cache = cache
        self._put = self._choose()

    @property
    def is_copying(self) -> bool:
        """Whether the data takes its room once more here."""
        return self._put is _copy

    def place(self) -> None:
        """Put the data together and rename it to its place; what was there goes.

        Raises:
            FileNotFoundError: A file has gone from the cache.
            MlopsError: It cannot be written.
        """
        made = self.folder / "new"
        with _errors(self._target):
            if not self._files or self._files[0].path:
                made.mkdir()
            folders: set[str] = set()
            for file in self._files:
                parent = file.path.rpartition("/")[0]
                if parent and parent not in folders:
                    (made / parent).mkdir(parents=True, exist_ok=True)
                    folders.add(parent)
                path = f"{made}/{file.path}" if file.path else str(made)
                self._put_file(self._cache.path(file.md5), path)
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._replace(made)

    def _put_file(self, source: str, path: str) -> None:
        try:
            self._put(source, path)
        except OSError as error:
            if error.errno not in _NOT_HERE or self._put is _copy:
                raise
            _copy(source, path)  # one file may have as many links as the file system allows

    def _replace(self, made: Path) -> None:
        old = self.folder / "old"
        is_there = os.path.lexists(self._target)
        if is_there:
            self._target.rename(old)
        try:
            made.rename(self._target)
        except OSError:
            if is_there:
                old.rename(self._target)
            raise

    def _choose(self) -> Put:
        """Find out by a try how files get from the cache to here."""
        probe = self._cache.temporary(f"probe-{self.folder.name}")
        with self._cache.errors():
            Path(probe).write_bytes(b"?")
        try:
            for put in (_clone, _link):
                try:
                    put(probe, str(self.folder / put.__name__))
                except OSError:
                    continue
                return put
        finally:
            Path(probe).unlink(missing_ok=True)
        return _copy


def _clone(source: str, path: str) -> None:
    with open(source, "rb") as original, open(path, "xb") as clone:  # noqa: PTH123
        fcntl.ioctl(clone.fileno(), _CLONE, original.fileno())
        seal(clone.fileno())


def _link(source: str, path: str) -> None:
    os.link(source, path)


def _copy(source: str, path: str) -> None:
    Path(path).unlink(missing_ok=True)
    shutil.copyfile(source, path)
    with open(path, "rb") as copy:  # noqa: PTH123
        seal(copy.fileno())


def _walk(path: Path) -> dict[str, os.stat_result]:
    """Return everything but folders below a path, by its relative path; a file's own is empty."""
    found: dict[str, os.stat_result] = {}
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found[""] = path.lstat()
        return found
    folders = [("", str(path))]
    with _errors(path):
        while folders:
            prefix, folder = folders.pop()
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    folders.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    found[f"{prefix}{entry.name}"] = entry.stat(follow_symlinks=False)
    return found


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed pulls have left beside this place."""
    oldest = time.time() - _YOUNG_SECONDS
    for folder in parent.glob(f"{_escaped(prefix)}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime > oldest:  # its owner may be about to lock it
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn a file system's refusal into an error that names the place and the mend."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MlopsError(
            f"{path}: cannot be written: {error.strerror}",
            hint="free space there" if error.errno == errno.ENOSPC else "choose another place",
        ) from error
