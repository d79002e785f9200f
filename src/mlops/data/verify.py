"""Reading the cache again: what is not what its name says is dropped."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from mlops.data.cache import DataCache
from mlops.data.parallel import in_parallel
from mlops.data.remote import Layout

_THREADS = 4
_BLOCK_BYTES = 1 << 20


def drop_damaged(cache: DataCache, hashes: Sequence[str], layouts: Sequence[Layout]) -> None:
    """Drop files from the cache that are damaged on its disk, without a write that left a trace.

    Args:
        cache: Where.
        hashes: Which.
        layouts: Of the remotes that the data may come from.
    """

    def check(data_hash: str) -> None:
        if cache.size(data_hash) is None:
            return
        with contextlib.suppress(FileNotFoundError):
            path = Path(cache.path(data_hash))
            if data_hash != _md5(path) and (
                "legacy" not in layouts or data_hash != _md5_of_text(path)
            ):
                cache.drop(data_hash, "is damaged, though nobody has written to it")

    in_parallel(check, list(dict.fromkeys(hashes)), _THREADS)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _md5_of_text(path: Path) -> str:
    """Return the hash by which DVC 2 knows a text, whatever ends its lines."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block.replace(b"\r\n", b"\n"))
    return digest.hexdigest()
