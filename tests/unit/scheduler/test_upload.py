"""Bringing bundles to a real S3 server, and finding what is wrong there."""

import datetime as dt
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Request
from s3_server import open_bucket

from mlops.bundles import MANIFEST_NAME, EnvironmentNeeds
from mlops.scheduler.flow_files import Bundle, FolderChangedError, read_folder
from mlops.scheduler.upload import missing_files, upload
from mlops.storage import PART_BYTES, ObjectStore

LARGE = PART_BYTES * 5 // 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flow folder with a file that goes up in parts; its name is different in every test."""
    folder = tmp_path / f"flow-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    (folder / "sub").mkdir(parents=True)
    (folder / "flow.py").write_text("print('flow')\n")
    (folder / "sub" / "data.txt").write_text("data")
    (folder / "large.bin").write_bytes(b"0123456789abcdef" * (LARGE // 16))
    return folder


def read(folder: Path) -> Bundle:
    return read_folder(folder, EnvironmentNeeds())


def bring(bundle: Bundle, store: ObjectStore) -> list[str] | None:
    """Upload what is missing, and return its names."""
    missing = missing_files(bundle, store)
    if missing is None:
        return None
    upload(bundle, missing, store)
    return [file.path for file in missing]


def writes(requests: list[Request]) -> list[str]:
    """Return the paths of the objects that were written, in their order."""
    return [request.target for request in requests if request.method == "PUT"]


def test_manifest_comes_last_and_large_files_in_parts(s3_url: str, folder: Path) -> None:
    """Nobody who finds a manifest finds a file missing; a large file is sent in parts."""
    bundle = read(folder)
    sent: list[int] = []
    with FaultProxy(s3_url) as proxy:
        store = open_bucket(proxy.url)
        upload(bundle, missing_files(bundle, store) or [], store, sent.append)
        targets = writes(proxy.requests)
    assert targets[-1] == f"/prefect/{bundle.prefix}/{MANIFEST_NAME}"
    assert sum("partNumber=" in target for target in targets) == 3
    assert sum(sent) == sum(file.size for file in bundle.manifest.files)


def test_unchanged_bundle_is_not_sent_again(store: ObjectStore, folder: Path) -> None:
    """Once it is there, nothing is missing, not even the manifest."""
    bundle = read(folder)
    assert bring(bundle, store) == ["flow.py", "large.bin", "sub/data.txt"]
    assert bring(bundle, store) is None


def test_unfinished_upload_is_completed(store: ObjectStore, folder: Path) -> None:
    """What an upload that broke off has left there is not sent again."""
    bundle = read(folder)
    store.write(f"{bundle.prefix}/sub/data.txt", b"data")
    assert bring(bundle, store) == ["flow.py", "large.bin"]
    assert bring(bundle, store) is None


DAMAGES: dict[str, Callable[[ObjectStore, str], object]] = {
    "other bytes": lambda store, key: store.write(key, b"9" + store.read(key)[1:]),
    "truncated": lambda store, key: store.write(key, store.read(key)[:-1]),
    "longer": lambda store, key: store.write(key, store.read(key) + b"9"),
    "empty": lambda store, key: store.write(key, b""),
    "deleted": lambda store, key: store.delete([key]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["sub/data.txt", "large.bin", MANIFEST_NAME])
def test_damage_is_found_and_mended(
    store: ObjectStore, folder: Path, name: str, damage: str
) -> None:
    """A damaged object, and no other file, is sent again, with the manifest after it."""
    bundle = read(folder)
    bring(bundle, store)
    DAMAGES[damage](store, f"{bundle.prefix}/{name}")
    assert bring(bundle, store) == ([] if name == MANIFEST_NAME else [name])
    assert store.sha256(f"{bundle.prefix}/large.bin") == _sha256(folder / "large.bin")
    assert bring(bundle, store) is None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def etag_of_parts(path: Path) -> str:
    """Return what S3 itself and MinIO show of a file in parts."""
    body = path.read_bytes()
    parts = [body[start : start + PART_BYTES] for start in range(0, len(body), PART_BYTES)]
    digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize("kind", ["of its parts", "of other parts", "of another kind", "opaque"])
def test_other_etags_than_md5_are_understood(s3_url: str, folder: Path, kind: str) -> None:
    """A large file whose ETag is not an MD5 counts as there when it is; it is read if need be."""
    bundle = read(folder)
    bring(bundle, open_bucket(s3_url))
    shown = {
        "of its parts": etag_of_parts(folder / "large.bin"),
        "of other parts": f"{'0' * 32}-9",
        "of another kind": "0" * 32,  # as of an object that the server encrypts
        "opaque": "CAE=",
    }[kind]
    md5 = bundle.md5["large.bin"].encode()
    with FaultProxy(s3_url, rewrite=lambda body: body.replace(md5, shown.encode())) as proxy:
        store = open_bucket(proxy.url)
        assert bring(bundle, store) is None
        read_back = Request("GET", f"/prefect/{bundle.prefix}/large.bin")
        assert (read_back in proxy.requests) == (kind != "of its parts")

        body = (folder / "large.bin").read_bytes()
        open_bucket(s3_url).write(f"{bundle.prefix}/large.bin", b"9" + body[1:])
        damaged = hashlib.md5(b"9" + body[1:], usedforsecurity=False).hexdigest().encode()
    with FaultProxy(s3_url, rewrite=lambda body: body.replace(damaged, b"CAE=")) as proxy:
        assert bring(bundle, open_bucket(proxy.url)) == ["large.bin"]


def test_doubted_bundle_is_read_until_its_manifest_is_newer(s3_url: str, folder: Path) -> None:
    """An ETag of before the damage is not believed after a doubt, which one upload settles."""
    bundle = read(folder)
    store = open_bucket(s3_url)
    bring(bundle, store)
    key = f"{bundle.prefix}/large.bin"
    body = b"9" + (folder / "large.bin").read_bytes()[1:]
    store.write(key, body)
    shown = hashlib.md5(body, usedforsecurity=False).hexdigest().encode()
    manifest = next(o for o in store.objects(bundle.prefix) if o.key.endswith(MANIFEST_NAME))
    before, after = (manifest.last_modified + dt.timedelta(hours=hours) for hours in (-1, 1))

    with FaultProxy(
        s3_url, rewrite=lambda body: body.replace(shown, bundle.md5["large.bin"].encode())
    ) as proxy:
        rotten = open_bucket(proxy.url)
        assert missing_files(bundle, rotten) is None
        assert missing_files(bundle, rotten, before) is None
        assert [file.path for file in missing_files(bundle, rotten, after) or []] == ["large.bin"]
    assert bring(bundle, store) == ["large.bin"]
    assert missing_files(bundle, store, before) is None
    assert missing_files(bundle, store, after) == []


@pytest.mark.parametrize("name", ["flow.py", "large.bin"])
@pytest.mark.parametrize("change", ["written to", "removed"])
def test_file_that_changes_meanwhile_is_not_published(
    store: ObjectStore, folder: Path, name: str, change: str
) -> None:
    """What was sent is held against the manifest, which is then not written."""
    bundle = read(folder)
    missing = missing_files(bundle, store) or []
    if change == "removed":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[::-1])
    with pytest.raises(FolderChangedError, match=re.escape(str(folder / name))):
        upload(bundle, missing, store)
    assert f"{bundle.prefix}/{MANIFEST_NAME}" not in {o.key for o in store.objects(bundle.prefix)}
