"""The cache of code, against a real S3 server."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mlops.agent.code_cache import CodeCache
from mlops.bundles import MANIFEST_NAME, BundleError, EnvironmentNeeds, prefix_of
from mlops.errors import MlopsError
from mlops.scheduler.flow_files import read_folder
from mlops.scheduler.upload import missing_files, upload
from mlops.storage import ObjectStore


@pytest.fixture
def prefix(store: ObjectStore, tmp_path: Path) -> str:
    """A bundle in the bucket, different in every test."""
    folder = tmp_path / "flow"
    (folder / "sub").mkdir(parents=True)
    (folder / "flow.py").write_text(f"print({str(tmp_path)!r})\n")
    (folder / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "sub" / "run.sh").chmod(0o755)
    bundle = read_folder(folder, EnvironmentNeeds())
    upload(bundle, missing_files(bundle, store) or [], store)
    return bundle.prefix


@pytest.fixture
def cache(tmp_path: Path) -> CodeCache:
    return CodeCache(tmp_path / "cache", limit_bytes=10**9)


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


def test_the_least_recently_used_code_goes_unless_in_use(
    store: ObjectStore, prefix: str, cache: CodeCache
) -> None:
    """Above the limit a bundle goes, but not while it is leased, nor right after its use."""
    folder, _ = cache.ensure(store, prefix, is_for_run=False)
    cache.ensure(store, prefix)
    assert (cache.hits, cache.misses) == (1, 0)
    small = CodeCache(cache.root, limit_bytes=1)

    def age() -> None:
        for lease in (cache.root / "code-leases").iterdir():
            os.utime(lease, (0, 0))

    small.shrink()
    assert folder.exists()
    age()
    with cache.lease(folder):
        small.shrink()
        (entry,) = small.entries()
        assert (entry.folder, entry.in_use, entry.size_bytes > 1) == (folder, True, True)
    small.shrink()
    assert small.entries() == []
    with pytest.raises(MlopsError, match="was removed"), cache.lease(folder):
        pass
    again, _ = cache.ensure(store, prefix)
    assert (again, cache.misses) == (folder, 1)


def test_view_is_private_and_removed(store: ObjectStore, prefix: str, cache: CodeCache) -> None:
    """What a run writes stays in its own view, which goes with it."""
    folder, _ = cache.ensure(store, prefix)

    async def use() -> Path:
        async with cache.private_view(folder) as view, cache.private_view(folder) as other:
            (view / "flow.py").write_text("mine")
            (view / "sub" / "new").write_text("mine")
            assert (other / "flow.py").read_text().startswith("print")
            assert not (view / MANIFEST_NAME).exists()
        return view

    assert not anyio.run(use).exists()
    assert (folder / "flow.py").read_text().startswith("print")
    assert not (folder / "sub" / "new").exists()


def test_view_holds_up_nothing_else(
    tmp_path: Path, cache: CodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view is copied and removed, however large it is, outside the agent's own thread."""
    threads = []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            threads.append(threading.current_thread())
            return work(*arguments, **named)

        return call

    async def use() -> None:
        async with cache.private_view(tmp_path / "bundle"):
            assert len(threads) == 1

    (tmp_path / "bundle").mkdir()
    for name in ("copytree", "rmtree"):
        monkeypatch.setattr(shutil, name, noted(getattr(shutil, name)))
    anyio.run(use)
    assert len(threads) == 2
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("obstacle", ["parent", "file"])
def test_view_that_cannot_be_made_is_told(tmp_path: Path, cache: CodeCache, obstacle: str) -> None:
    """What is in the way of a run's copy is named, and no part of the copy is kept."""
    bundle, parent = tmp_path / "bundle", tmp_path / "parent"
    bundle.mkdir()
    if obstacle == "parent":
        parent.touch()
    else:
        (bundle / "gone").symlink_to("nothing")

    async def use() -> None:
        async with cache.private_view(bundle, parent):
            pass

    with pytest.raises(MlopsError, match=r"parent: the run's copy of the code cannot be made: \S"):
        anyio.run(use)
    assert obstacle == "parent" or not any(parent.iterdir())


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
    """A cached bundle with a file missing, or written to, is replaced."""
    folder, _ = cache.ensure(store, prefix)
    folder.chmod(0o755)
    (folder / "flow.py").unlink()
    folder, _ = cache.ensure(store, prefix)
    code = (folder / "flow.py").read_text()
    (folder / "flow.py").chmod(0o644)
    (folder / "flow.py").write_text(code.upper())  # of the same size
    folder, _ = cache.ensure(store, prefix)
    assert (folder / "flow.py").read_text() == code
