"""Bringing a bundle to S3: what is missing or damaged there, and the manifest last."""

import datetime as dt
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlops.bundles import MANIFEST_NAME, BundleFile, transfer
from mlops.errors import MlopsError
from mlops.scheduler.flow_files import Bundle, FolderChangedError
from mlops.storage import (
    PART_BYTES,
    TRANSFER_THREADS,
    BrokenObjectError,
    ObjectNotFoundError,
    ObjectStore,
    Progress,
    StoredObject,
)

READ_BYTES = 64 << 10


def goes_by_etags(bundle: Bundle) -> bool:
    """Return whether `missing_files` may trust an ETag, so that doubts are worth asking for."""
    return any(file.size > READ_BYTES for file in bundle.manifest.files)


def missing_files(
    bundle: Bundle, store: ObjectStore, doubted: dt.datetime | None = None
) -> list[BundleFile] | None:
    """Compare a bundle with what lies in S3.

    A small object, which most code is, is read. A larger one counts as there when its size and
    its ETag are right, which is the MD5 of a plain upload; with another kind of ETag it is read.
    So it is when its code was doubted after its manifest was written: an ETag may be of before
    the server's disk was damaged.

    Args:
        bundle: What should be there.
        store: The bucket for code.
        doubted: When a run last found this flow's code damaged.

    Returns:
        The files that are missing or damaged; None when not even the manifest is to be written.
        After a doubt it is, so that its time tells that the doubt is settled.

    Raises:
        MlopsError: The object store does not answer or refuses.
    """
    prefix = bundle.prefix
    present = {found.key: found for found in store.objects(prefix)}
    files = bundle.manifest.files
    key = f"{prefix}/{MANIFEST_NAME}"
    manifest = present.get(key)
    settled = doubted is None or (manifest is not None and manifest.last_modified > doubted)

    def is_there(file: BundleFile) -> bool:
        found = present.get(f"{prefix}/{file.path}")
        if found is None or found.size != file.size:
            return False
        trusted = settled and found.size > READ_BYTES and _has_etag(bundle, file, found)
        return trusted or _is_whole(store, found.key, file.sha256)

    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        there = list(pool.map(is_there, files))
    missing = [file for file, found in zip(files, there, strict=True) if not found]
    # The manifest's hash is the bundle's name.
    whole = manifest is not None and _is_whole(store, key, bundle.manifest.content_hash)
    return None if whole and settled and not missing else missing


def _has_etag(bundle: Bundle, file: BundleFile, found: StoredObject) -> bool:
    """Return whether an object's ETag is one that only this file's bytes have."""
    if "-" in found.etag:
        return found.etag == _etag_of_parts(bundle.folder / file.path)
    return found.etag == bundle.md5[file.path]


def _is_whole(store: ObjectStore, key: str, sha256: str) -> bool:
    try:
        return store.sha256(key) == sha256
    except (ObjectNotFoundError, BrokenObjectError):  # though a listing shows it
        return False


def _etag_of_parts(path: Path) -> str:
    """Return what S3 servers show of a file that was uploaded in parts."""
    parts = b""
    count = 0
    with path.open("rb") as file:
        while block := file.read(PART_BYTES):
            parts += hashlib.md5(block, usedforsecurity=False).digest()
            count += 1
    return f"{hashlib.md5(parts, usedforsecurity=False).hexdigest()}-{count}"


def upload(
    bundle: Bundle,
    files: list[BundleFile],
    store: ObjectStore,
    progress: Progress | None = None,
) -> None:
    """Bring files of a bundle to S3, in parallel, and its manifest last.

    Args:
        bundle: What is uploaded.
        files: Those of its files that are missing there.
        store: The bucket for code.
        progress: Is told how many bytes were sent, from several threads.

    Raises:
        FolderChangedError: A file is not what the manifest says any more.
        MlopsError: The object store does not answer or refuses.
    """

    def send(file: BundleFile) -> None:
        path = bundle.folder / file.path
        try:
            sent = store.upload(path, f"{bundle.prefix}/{file.path}", progress)
        except FileNotFoundError as error:
            raise FolderChangedError(f"{path}: went away while it was read") from error
        except OSError as error:
            raise MlopsError(f"{path}: cannot be read: {error.strerror}") from error
        if sent != file.sha256:
            raise FolderChangedError(f"{path}: changed while it was read")

    transfer(send, (file for file in files if file.size <= PART_BYTES))
    for file in files:  # whose parts are sent in parallel: one after another, for memory's sake
        if file.size > PART_BYTES:
            send(file)
    store.write(f"{bundle.prefix}/{MANIFEST_NAME}", bundle.manifest.to_bytes())
