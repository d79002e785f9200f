"""Fetching objects of a remote into the cache: in parallel, each verified by its MD5.

Small objects are read by many threads, one request each: measured with 10,000 of 20 kB, threads
take the same time as obstore's asynchronous interface and less of the processor, and are simpler.
A large one is read in parts by several threads at once; its hash and the file grow in order, so
that what an interrupted fetch has left is a beginning, from which the next one goes on.
"""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mlops.data.cache import DataCache, seal
from mlops.data.content import DamagedDataError, DataFile
from mlops.data.parallel import in_parallel
from mlops.data.remote import THREADS, Remote
from mlops.storage import BrokenObjectError, NoRangesError

WHOLE_BYTES = 1 << 20  # an object up to here is one request and one block of memory
LARGE_BYTES = 32 << 20  # from here on it is read in parts
PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 8
_BLOCK_BYTES = 1 << 20
_ATTEMPTS = 3  # at an object whose transfer breaks off


class Progress(Protocol):
    """Is told how a pull goes on, from several threads."""

    def note(self, line: str) -> None:
        """Take a line for people."""

    def begin(self, files: int, size: int) -> None:
        """Learn how many files and bytes are to come."""

    def advance(self, files: int, size: int) -> None:
        """Learn how many files and bytes have come since the last call."""


class Fetch:
    """Brings files from a remote to a cache.

    Args:
        remote: From where.
        cache: To where.
        progress: Is told what has come.
    """

    def __init__(self, remote: Remote, cache: DataCache, progress: Progress) -> None:
        self._remote = remote
        self._cache = cache
        self._progress = progress

    def run(self, files: Iterable[DataFile], sizes: Mapping[str, int]) -> None:
        """Fetch files; what has come before an error stays in the cache.

        Args:
            files: What, each hash once.
            sizes: The size in bytes of each hash.

        Raises:
            DamagedDataError: An object is not what its name says.
            MlopsError: The object store does not answer or refuses, or the cache cannot be written.
        """
        small = [file for file in files if sizes[file.md5] < LARGE_BYTES]
        large = [file for file in files if sizes[file.md5] >= LARGE_BYTES]
        in_parallel(lambda file: self._fetch_small(file, sizes[file.md5]), small, THREADS)
        # One after another, for memory's sake.
        in_parallel(lambda file: self._fetch_large(file, sizes[file.md5]), large, 1)

    def _fetch_small(self, file: DataFile, size: int) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                if size <= WHOLE_BYTES:
                    self._fetch_whole(file)
                else:
                    self._fetch_blocks(file)
                break
            except BrokenObjectError:
                if attempt == _ATTEMPTS - 1:
                    raise
        self._progress.advance(1, size)

    def _fetch_whole(self, file: DataFile) -> None:
        body = self._remote.store.read(self._remote.key(file.md5))
        digest = _md5(body)
        if digest != file.md5 and not self._is_of_old_dvc([body], file.md5):
            raise self._damaged(file, digest)
        self._cache.add(file.md5, body)

    def _fetch_blocks(self, file: DataFile) -> None:
        temporary = Path(self._cache.temporary(file.md5))
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with self._cache.errors(), temporary.open("wb", buffering=0) as target:
                for block in self._remote.store.blocks(self._remote.key(file.md5)):
                    digest.update(block)
                    _write(target.fileno(), memoryview(block))
                self._check(file, digest.hexdigest(), temporary)
                seal(target.fileno())
            self._cache.admit(str(temporary), file.md5)
        finally:
            temporary.unlink(missing_ok=True)

    def _fetch_large(self, file: DataFile, size: int) -> None:
        with self._open_partial(file.md5) as descriptor:
            if self._cache.size(file.md5) is not None:  # another pull has fetched it meanwhile
                self._progress.advance(1, size)
                return
            digest, resumed = self._fetch_rest(file, size, descriptor)
            if resumed and digest != file.md5:
                # It may be the beginning that is wrong: the host may have lost power meanwhile.
                self._restart(descriptor)
                digest, _ = self._fetch_rest(file, size, descriptor)
            if digest != file.md5 and not self._is_of_old_dvc(_blocks(descriptor), file.md5):
                self._restart(descriptor)
                raise self._damaged(file, digest)
            seal(descriptor)
            self._cache.admit(str(self._cache.partial(file.md5)), file.md5)
        self._progress.advance(1, 0)

    @contextmanager
    def _open_partial(self, md5: str) -> Iterator[int]:
        """Open a large file's beginning, alone; wait for whoever fetches it already."""
        path = self._cache.partial(md5)
        with self._cache.errors():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _fetch_rest(self, file: DataFile, size: int, descriptor: int) -> tuple[str, bool]:
        """Read what is missing of a large file.

        Returns:
            The hash of all of it, and whether some of it was there before.
        """
        with self._cache.errors():
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, 0)
        digest = hashlib.md5(usedforsecurity=False)
        begun = 0
        for known in _blocks(descriptor):
            digest.update(known)
            begun += len(known)
            self._progress.advance(0, len(known))
        try:
            for part in self._parts(file, begun, size):
                self._take(part, descriptor, digest)
        except NoRangesError:
            # Then all of it is read in one stream, by which nothing can be gone on with.
            self._restart(descriptor)
            begun, digest = 0, hashlib.md5(usedforsecurity=False)
            for block in self._remote.store.blocks(self._remote.key(file.md5)):
                self._take(memoryview(block), descriptor, digest)
        return digest.hexdigest(), begun > 0

    def _restart(self, descriptor: int) -> None:
        """Throw away what has come of a large file."""
        with self._cache.errors():
            self._progress.advance(0, -os.fstat(descriptor).st_size)
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)

    def _parts(self, file: DataFile, begun: int, size: int) -> Iterator[memoryview]:
        """Yield the parts of an object from some byte on, in order; several are on their way."""
        key = self._remote.key(file.md5)
        pool = ThreadPoolExecutor(_PARTS_AT_ONCE)
        coming: deque[Future[memoryview]] = deque()

        def read(start: int) -> memoryview:
            length = min(PART_BYTES, size - start)
            for _ in range(_ATTEMPTS - 1):
                try:
                    return memoryview(self._remote.store.read_part(key, start, length))
                except BrokenObjectError:
                    continue
            return memoryview(self._remote.store.read_part(key, start, length))

        try:
            for start in range(begun, size, PART_BYTES):
                coming.append(pool.submit(read, start))
                if len(coming) == _PARTS_AT_ONCE:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, part: memoryview, descriptor: int, digest: "hashlib._Hash") -> None:
        digest.update(part)
        with self._cache.errors():
            _write(descriptor, part)
        self._progress.advance(0, len(part))

    def _check(self, file: DataFile, digest: str, written: Path) -> None:
        if digest == file.md5:
            return
        with written.open("rb") as opened:
            if not self._is_of_old_dvc(_blocks(opened.fileno()), file.md5):
                raise self._damaged(file, digest)

    def _is_of_old_dvc(self, blocks: Iterable[bytes], md5: str) -> bool:
        """Return whether DVC 2 gave a text this hash: it hashed all ends of lines alike."""
        if self._remote.layout != "legacy":
            return False
        digest = hashlib.md5(usedforsecurity=False)
        for block in blocks:
            digest.update(block.replace(b"\r\n", b"\n"))
        return digest.hexdigest() == md5

    def _damaged(self, file: DataFile, digest: str) -> DamagedDataError:
        name = f" ({file.path})" if file.path else ""
        return DamagedDataError(
            f"{self._remote.uri(file.md5)}{name}: damaged in the remote, the MD5 of its bytes is "
            f"{digest}",
            hint="remove that object, and `dvc push` from where the data is good",
        )


def unique(files: Sequence[DataFile], hashes: Iterable[str]) -> list[DataFile]:
    """Return one file for each of some hashes."""
    by_hash = {file.md5: file for file in reversed(files)}
    return [by_hash[each] for each in hashes]


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _blocks(descriptor: int) -> Iterator[bytes]:
    """Read a file from its beginning to its end."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    while block := os.read(descriptor, _BLOCK_BYTES):
        yield block
