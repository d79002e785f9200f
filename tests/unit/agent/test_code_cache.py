"""The cache of code, against a real S3 server."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops.agent.code_cache import CodeCache
from mlops.bundles import (
    MANIFEST_NAME,
    BundleError,
    EnvironmentNeeds,
    prefix_of,
    read_folder,
    upload,
)
from mlops.errors import MlopsError
from mlops.settings import S3Settings
from mlops.storage import ObjectStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A bucket on an S3 server of its own."""
    root = tmp_path_factory.mktemp("s3")
    (root / "prefect").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
    server = subprocess.Popen(
        [program, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}", str(root)],
        env=os.environ | {"RCLONE_AUTH_KEY": '"test-access,test-secret"'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings = S3Settings.from_environment(
        aws_endpoint_url_s3=f"http://127.0.0.1:{port}",
        aws_access_key_id="test-access",
        aws_secret_access_key="test-secret",
    )
    bucket = ObjectStore(settings, "prefect")
    deadline = time.monotonic() + 15
    try:
        while not _answers(bucket):
            assert time.monotonic() < deadline, "the S3 server does not answer"
        yield bucket
    finally:
        server.terminate()
        server.wait()


def _answers(bucket: ObjectStore) -> bool:
    try:
        bucket.sizes("")
    except MlopsError:
        return False
    return True


@pytest.fixture
def prefix(store: ObjectStore, tmp_path: Path) -> str:
    """A bundle in the bucket, different in every test."""
    folder = tmp_path / "flow"
    (folder / "sub").mkdir(parents=True)
    (folder / "flow.py").write_text(f"print({str(tmp_path)!r})\n")
    (folder / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "sub" / "run.sh").chmod(0o755)
    manifest = read_folder(folder, EnvironmentNeeds())
    assert upload(folder, manifest, store)
    assert not upload(folder, manifest, store)
    return prefix_of(folder.name, manifest.content_hash)


@pytest.fixture
def cache(tmp_path: Path) -> CodeCache:
    return CodeCache(tmp_path / "cache")


def test_bundle_is_downloaded_once_and_read_only(
    store: ObjectStore, prefix: str, cache: CodeCache
) -> None:
    """A bundle comes with its bytes and modes, and the second time from the disk."""
    folder, _ = cache.ensure(store, prefix)
    assert os.access(folder / "sub" / "run.sh", os.X_OK)
    assert not os.access(folder / "flow.py", os.X_OK)
    assert all(p.stat().st_mode & 0o222 == 0 for p in folder.rglob("*") if p.is_file())
    store.write(f"{prefix}/flow.py", b"changed")
    again, _ = cache.ensure(store, prefix)
    assert again == folder
    assert (folder / "flow.py").read_text().startswith("print")


def test_view_is_private_and_removed(store: ObjectStore, prefix: str, cache: CodeCache) -> None:
    """What a run writes stays in its own view, which goes with it."""
    folder, _ = cache.ensure(store, prefix)
    with cache.private_view(folder) as view, cache.private_view(folder) as other:
        (view / "flow.py").write_text("mine")
        (view / "sub" / "new").write_text("mine")
        assert (other / "flow.py").read_text().startswith("print")
        assert not (view / MANIFEST_NAME).exists()
    assert not view.exists()
    assert (folder / "flow.py").read_text().startswith("print")
    assert not (folder / "sub" / "new").exists()


def test_damaged_object_is_refused(store: ObjectStore, prefix: str, cache: CodeCache) -> None:
    """An object whose bytes are not the manifest's is named, and nothing is kept."""
    store.write(f"{prefix}/flow.py", b"damaged")
    with pytest.raises(BundleError, match=r"flow\.py: damaged.*manifest"):
        cache.ensure(store, prefix)
    assert not any((cache.root / "code").iterdir())


def test_forged_manifest_is_refused(store: ObjectStore, prefix: str, cache: CodeCache) -> None:
    """A manifest that is not the one that the prefix names is refused."""
    store.write(f"{prefix}/{MANIFEST_NAME}", b'{"format":1,"files":[]}')
    with pytest.raises(BundleError, match="damaged, its bytes do not match its name"):
        cache.ensure(store, prefix)


def test_unfinished_upload_is_not_seen(store: ObjectStore, cache: CodeCache) -> None:
    """A prefix without a manifest holds no code."""
    prefix = prefix_of("half", "0" * 64)
    store.write(f"{prefix}/flow.py", b"half")
    with pytest.raises(BundleError, match="no complete code here"):
        cache.ensure(store, prefix)


def test_tampered_cache_is_loaded_again(store: ObjectStore, prefix: str, cache: CodeCache) -> None:
    """A cached bundle with a file missing is replaced."""
    folder, _ = cache.ensure(store, prefix)
    folder.chmod(0o755)
    (folder / "flow.py").unlink()
    folder, _ = cache.ensure(store, prefix)
    assert (folder / "flow.py").exists()
