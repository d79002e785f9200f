"""Fetching objects of a remote into the cache: in parallel, each verified by its MD5.

Small objects are read by many threads, one request each: measured with 10,000 of 20 kB, threads
take the same time as obstore's asynchronous interface and less of the processor, and are simpler.
A large one is read in parts by several threads, which write them at their places, and hashed in
order meanwhile. Parts are never far ahead of the hash, so that an interrupted fetch leaves all but
the last ones of what it has written, and the next one goes on from there.
"""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlops.data.cache import DataCache, seal
from mlops.data.content import DamagedDataError, DataFile
from mlops.data.parallel import in_parallel
from mlops.data.remote import THREADS, Remote
from mlops.storage import BrokenObjectError

if TYPE_CHECKING:
    import obstore

WHOLE_BYTES = 1 << 20  # an object up to here is one request and one block of memory
LARGE_BYTES = 32 << 20  # from here on it is read in parts
PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4  # of each large file
_LARGE_AT_ONCE = 2  # one core hashes less than a fast network brings
_BLOCK_BYTES = 256 << 10
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
        in_parallel(lambda file: self._fetch_large(file, sizes[file.md5]), large, _LARGE_AT_ONCE)

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
            with self._cache.errors(), temporary.open("wb") as target:
                for block in self._remote.store.blocks(self._remote.key(file.md5)):
                    digest.update(block)
                    target.write(block)
                target.flush()
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
                self._progress.advance(0, -size)
                os.ftruncate(descriptor, 0)
                digest, _ = self._fetch_rest(file, size, descriptor)
            if digest != file.md5 and not self._is_of_old_dvc(_blocks(descriptor), file.md5):
                os.ftruncate(descriptor, 0)
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
        digest = hashlib.md5(usedforsecurity=False)
        begun = self._keep_beginning(descriptor, size)
        for known in _blocks(descriptor):
            digest.update(known)
            self._progress.advance(0, len(known))
        parts = self._parts(file, begun, size, descriptor)
        self._hash(parts, begun, descriptor, digest)
        return digest.hexdigest(), begun > 0

    def _keep_beginning(self, descriptor: int, size: int) -> int:
        """Cut off what may have gaps of an interrupted fetch, and return the bytes that stay."""
        written = os.fstat(descriptor).st_size
        whole_parts = max(0, -(-written // PART_BYTES) - _PARTS_AT_ONCE)
        begun = whole_parts * PART_BYTES if written <= size else 0
        with self._cache.errors():
            os.ftruncate(descriptor, begun)
        return begun

    def _hash(
        self, ends: Generator[int], start: int, descriptor: int, digest: "hashlib._Hash"
    ) -> None:
        """Hash a file that grows, from the system's memory of what was just written."""
        with closing(ends):  # nobody writes any more when this is left
            for end in ends:
                while start < end:
                    block = os.pread(descriptor, min(_BLOCK_BYTES, end - start), start)
                    digest.update(block)
                    start += len(block)
                    self._progress.advance(0, len(block))

    def _parts(self, file: DataFile, begun: int, size: int, descriptor: int) -> Generator[int]:
        """Write an object in parts, several at once; yield up to where there is no gap."""
        pool = ThreadPoolExecutor(_PARTS_AT_ONCE)
        coming: deque[Future[int]] = deque()
        try:
            for start in range(begun, size, PART_BYTES):
                if len(coming) == _PARTS_AT_ONCE:
                    yield coming.popleft().result()
                length = min(PART_BYTES, size - start)
                coming.append(pool.submit(self._write_part, file, start, length, descriptor))
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _write_part(self, file: DataFile, start: int, length: int, descriptor: int) -> int:
        """Write a part of an object, and return where it ends."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(BrokenObjectError):
                return self._try_part(file, start, length, descriptor)
        return self._try_part(file, start, length, descriptor)

    def _try_part(self, file: DataFile, start: int, length: int, descriptor: int) -> int:
        at = start
        for block in self._remote.store.blocks(self._remote.key(file.md5), start, length):
            self._write(descriptor, block, at)
            at += len(block)
        if at != start + length:
            raise BrokenObjectError(f"{self._remote.uri(file.md5)}: ends after {at} bytes")
        return at

    def _write(self, descriptor: int, block: "obstore.Bytes | memoryview", at: int) -> None:
        data = memoryview(block)
        with self._cache.errors():
            while data:
                written = os.pwrite(descriptor, data, at)
                data, at = data[written:], at + written

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


def _blocks(descriptor: int) -> Iterator[bytes]:
    """Read a file from its beginning to its end."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    while block := os.read(descriptor, _BLOCK_BYTES):
        yield block
