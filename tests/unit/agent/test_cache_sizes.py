import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops.agent.cache_sizes import CacheSizes
from mlops.agent.environment_store import EnvironmentRecord

OLD = 1_000_000_000  # seconds since the epoch


def write(path: Path, size: int) -> None:
    """Write a file into a folder that then looks as if it had been left alone for long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path.parent, (OLD, OLD + size))


def make(root: Path) -> CacheSizes:
    return CacheSizes(
        environments=root / "environments", code=root / "code", data=root / "data" / "md5"
    )


def test_caches_are_measured(tmp_path: Path) -> None:
    """Bundles, files and environments count with their bytes; what is not finished does not."""
    sizes = make(tmp_path)
    assert (sizes.environments(), sizes.code(), sizes.data()) == ((0, 0), (0, 0), (0, 0))
    write(tmp_path / "code" / "aa" / "flow.py", 10)
    write(tmp_path / "code" / "aa" / "deep" / "er.py", 5)
    write(tmp_path / "code" / ".tmp-1" / "bundle.py", 100)
    write(tmp_path / "data" / "md5" / "ab" / "1", 7)
    write(tmp_path / "data" / "md5" / "ab" / "2", 8)
    write(tmp_path / "data" / "md5" / "cd" / "3", 9)
    record = EnvironmentRecord(
        build="k-1", requirements="none", python_version="3.11.4", files=3, size_bytes=77
    )
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "k.json").write_text(record.model_dump_json())
    assert (sizes.environments(), sizes.code(), sizes.data()) == ((1, 77), (1, 15), (3, 24))


def test_only_what_has_changed_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is read again when files have come or gone, and forgotten when it is removed."""
    sizes = make(tmp_path)
    for name in ("ab", "cd"):
        write(tmp_path / "data" / "md5" / name / "1", 7)
    assert sizes.data() == (2, 14)
    looked_at: list[str] = []
    scan = os.scandir

    def note(path: str | Path) -> Iterator[os.DirEntry[str]]:
        looked_at.append(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", note)
    write(tmp_path / "data" / "md5" / "ab" / "2", 8)
    assert sizes.data() == (3, 22)
    root = str(tmp_path / "data" / "md5")
    assert looked_at == [root, f"{root}/ab"]
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "data" / "md5" / "ab")
    assert sizes.data() == (1, 7)
