import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc_remote import DvcRemote, Host, files_below, md5
from embedded.small_disk import fill, small_disk
from fault_proxy import FaultProxy, Request
from ordinary_rights import ordinary_rights

from mlops.data.cache import is_stamped
from mlops.data.delivery import Options
from mlops.data.fetch import LARGE_BYTES, PART_BYTES, WHOLE_BYTES
from mlops.data.reference import Reference
from mlops.errors import MlopsError
from mlops.storage import ObjectStore

FILES = {"a.csv": b"a", "sub/b.csv": b"bb", "sub/deep/c": b"", "sub/same": b"a"}
BIG = os.urandom(LARGE_BYTES + PART_BYTES * 3 // 2)


def data_requests(proxy: FaultProxy) -> list[Request]:
    return [each for each in proxy.requests if each.method == "GET" and "list-type" not in each[1]]


def test_folder_comes_once(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """A folder comes whole; the second run gets it without a request, as does its third file."""
    reference = remote.put_folder(FILES)
    first = host.pull(reference, tmp_path / "run" / "data")
    assert files_below(tmp_path / "run" / "data") == FILES
    assert (first.files, first.bytes, first.downloaded_files) == (4, 4, 3)
    with FaultProxy(host.url) as proxy:
        second = host.pull(reference, tmp_path / "other", url=proxy.url)
        host.pull(remote.put(b"bb"), tmp_path / "one.csv", url=proxy.url)
        assert proxy.requests == []
    assert files_below(tmp_path / "other") == FILES
    assert (tmp_path / "one.csv").read_bytes() == b"bb"
    assert (second.files, second.downloaded_files, second.downloaded_bytes) == (4, 0, 0)


def test_links_are_read_only_and_outlive_the_cache(
    remote: DvcRemote, host: Host, tmp_path: Path
) -> None:
    """What is placed shares the cache's room, cannot be written to, and stays without it."""
    host.pull(remote.put_folder(FILES), tmp_path / "data")
    placed = tmp_path / "data" / "sub" / "b.csv"
    assert placed.stat().st_mode & 0o222 == 0
    assert placed.stat().st_mtime == host.file(b"bb").stat().st_mtime
    host.file(b"bb").unlink()
    assert placed.read_bytes() == b"bb"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


@pytest.mark.parametrize("size", [0, WHOLE_BYTES, WHOLE_BYTES + 1])
def test_file_of_any_size_comes(remote: DvcRemote, host: Host, tmp_path: Path, size: int) -> None:
    """A file is the same, whichever way its size makes it come."""
    body = os.urandom(size)
    assert host.pull(remote.put(body), tmp_path / "file").downloaded_bytes == size
    assert (tmp_path / "file").read_bytes() == body


@pytest.mark.parametrize("ranges", [True, False])
def test_large_file_goes_on(remote: DvcRemote, host: Host, tmp_path: Path, ranges: bool) -> None:
    """An interrupted large file goes on before its gaps, whichever status parts are sent with."""
    reference = remote.put(BIG)
    with (
        FaultProxy(host.url, healthy_requests=4, partial_status=ranges) as broken,
        pytest.raises(MlopsError, match="does not answer"),
    ):
        host.pull(reference, tmp_path / "big", url=broken.url)
    assert not (tmp_path / "big").exists()
    partial = host.cache / "partial" / reference.hash
    assert partial.exists()
    # As the pull is killed that has written the sixth part before the fourth.
    partial.write_bytes(BIG[: 3 * PART_BYTES] + bytes(2 * PART_BYTES) + BIG[5 * PART_BYTES :][:9])
    with FaultProxy(host.url, partial_status=ranges) as proxy:
        host.pull(reference, tmp_path / "big", url=proxy.url)
        # All but the two parts before the window; each that is at first refused, once more.
        assert len(data_requests(proxy)) in ({4} if ranges else range(5, 9))
    assert (tmp_path / "big").read_bytes() == BIG
    assert not partial.exists()


def test_wrong_beginning_of_a_large_file_is_not_blamed_on_the_remote(
    remote: DvcRemote, host: Host, tmp_path: Path
) -> None:
    """A beginning that lost its bytes with the host's power is fetched again."""
    reference = remote.put(BIG)
    host.pull(remote.put(b"first"), tmp_path / "first")
    (host.cache / "partial" / reference.hash).write_bytes(bytes(5 * PART_BYTES))
    with FaultProxy(host.url, partial_status=True) as proxy:
        host.pull(reference, tmp_path / "big", url=proxy.url)
    assert (tmp_path / "big").read_bytes() == BIG


def test_interrupted_pull_goes_on(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """What came before the server went away is not fetched again; nothing half is in place."""
    files = {f"{number}": str(number).encode() for number in range(100)}
    reference = remote.put_folder(files)
    with (
        FaultProxy(host.url, healthy_requests=150) as broken,
        pytest.raises(MlopsError, match="does not answer"),
    ):
        host.pull(reference, tmp_path / "data", url=broken.url)
    assert not (tmp_path / "data").exists()
    done = host.pull(reference, tmp_path / "data")
    assert 0 < done.downloaded_files < 100
    assert files_below(tmp_path / "data") == files


def test_changed_cache_file_is_noticed(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """A run that wrote to its link has changed the cache: said, dropped and fetched again."""
    reference = remote.put_folder(FILES)
    host.pull(reference, tmp_path / "data")
    placed = tmp_path / "data" / "sub" / "b.csv"
    placed.chmod(0o644)
    placed.write_bytes(b"xx")
    if not placed.samefile(host.file(b"bb")):  # the file system makes reflinks
        os.utime(host.file(b"bb"))
    done = host.pull(reference, tmp_path / "other")
    assert files_below(tmp_path / "other") == FILES
    assert done.downloaded_files == 1
    assert [str(host.file(b"bb")) in note for note in host.recorder.notes] == [True]


def test_verify_reads_everything(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Damage that left no trace is found when asked for."""
    reference = remote.put_folder(FILES)
    host.pull(reference, tmp_path / "data")
    cached = host.file(b"bb")
    before = cached.stat()
    cached.chmod(0o644)
    cached.write_bytes(b"xx")
    os.utime(cached, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert host.pull(reference, tmp_path / "unseen").downloaded_files == 0
    assert host.pull(reference, tmp_path / "seen", Options(verify=True)).downloaded_files == 1
    assert files_below(tmp_path / "seen") == FILES


def test_damaged_object_is_named(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """An object with other bytes than its name says is named, and is nowhere kept."""
    reference = remote.put_folder(FILES)
    remote.put(b"xx", md5(b"bb"))
    key = remote.key(md5(b"bb"))
    with pytest.raises(MlopsError, match=rf"{key} \(sub/b.csv\): damaged in the remote") as error:
        host.pull(reference, tmp_path / "data")
    assert "dvc push" in error.value.hint
    assert not host.file(b"bb").exists()
    assert not (tmp_path / "data").exists()


def test_what_was_not_pushed_is_named(
    remote: DvcRemote, host: Host, tmp_path: Path, store: ObjectStore
) -> None:
    """A hash that is not in the remote, or some of a folder's files, is told before it begins."""
    never = Reference(bucket=store.bucket, path=remote.path, hash="0" * 32)
    with pytest.raises(MlopsError, match=f"{never}: is not in the remote") as error:
        host.pull(never, tmp_path / "data")
    assert "was it pushed? `dvc push`" in error.value.hint
    reference = remote.put_folder(FILES)
    store.delete([remote.key(md5(b"bb"))])
    with pytest.raises(MlopsError, match=r"1 of 4 files are not in the remote \(sub/b\.csv\)"):
        host.pull(reference, tmp_path / "data")
    assert not host.file(b"a").exists()


def test_many_missing_are_found_by_listing(
    remote: DvcRemote, host: Host, tmp_path: Path, store: ObjectStore
) -> None:
    """Of many objects in one shard the sizes come in one answer, and the missing are known."""
    bodies = [b for n in range(4000) if md5(b := str(n).encode()).startswith("7")][:200]
    shard = {b: f"{n}" for n, b in enumerate(b for b in bodies if md5(b).startswith("77"))}
    assert len(shard) > 4
    reference = remote.put_folder({name: body for body, name in shard.items()})
    gone = next(iter(shard))
    store.delete([remote.key(md5(gone))])
    with (
        FaultProxy(host.url) as proxy,
        pytest.raises(MlopsError, match=r"1 of \d+ files are not in the remote \(0\)"),
    ):
        host.pull(reference, tmp_path / "data", url=proxy.url)
    assert len(proxy.requests) < 5


@pytest.mark.parametrize("text", [b"one\r\ntwo\r\n", b"one\ntwo\n"])
def test_remote_of_dvc_2_is_read(
    store: ObjectStore, host: Host, tmp_path: Path, text: bytes
) -> None:
    """The older layout is found, with its hashes of texts, in which the ends of lines are alike."""
    old = DvcRemote(store, layout="")
    name = md5(text.replace(b"\r\n", b"\n"))
    old.put(text, name)
    reference = old.put_list([{"md5": name, "relpath": "x.txt"}])
    host.pull(reference, tmp_path / "data")
    host.pull(reference, tmp_path / "again", Options(verify=True))
    assert files_below(tmp_path / "again") == {"x.txt": text}


def test_target_that_is_right_is_left(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Data that is there already, by whomever, is left as it is, even with an empty cache."""
    reference = remote.put_folder(FILES)
    for path, body in FILES.items():
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(body)
    before = (tmp_path / "data" / "a.csv").stat().st_ino
    assert host.pull(reference, tmp_path / "data").downloaded_files == 0
    assert (tmp_path / "data" / "a.csv").stat().st_ino == before


def test_older_data_is_replaced(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """What an earlier pull has placed gives way, though it looks alike: same names, same sizes."""
    host.pull(remote.put_folder({"a": b"1", "gone": b"2"}), tmp_path / "data")
    host.pull(remote.put_folder({"a": b"3", "gone": b"4"}), tmp_path / "data")
    assert files_below(tmp_path / "data") == {"a": b"3", "gone": b"4"}
    host.pull(remote.put(b"now a file"), tmp_path / "data")
    assert (tmp_path / "data").read_bytes() == b"now a file"
    host.pull(remote.put_folder({}), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def add_file(data: Path) -> None:
    (data / "mine").write_text("work")


def change_file(data: Path) -> None:
    (data / "a.csv").chmod(0o644)
    (data / "a.csv").write_text("work")


def add_link(data: Path) -> None:
    (data / "mine").symlink_to("/etc")


@pytest.mark.parametrize("change", [add_file, change_file, add_link])
def test_work_of_others_is_kept(
    remote: DvcRemote, host: Host, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """What somebody has added or changed is refused, before anything is fetched, but by force."""
    data = tmp_path / "data"
    host.pull(remote.put_folder(FILES), data)
    change(data)
    before = files_below(data)
    newer = remote.put_folder({"a.csv": b"newer"})
    with pytest.raises(MlopsError, match="no pull has placed there") as error:
        host.pull(newer, data)
    assert "--force" in error.value.hint
    assert files_below(data) == before
    assert not host.file(b"newer").exists()
    host.pull(newer, data, Options(force=True))
    assert files_below(data) == {"a.csv": b"newer"}


def test_place_that_others_live_in_is_refused(
    remote: DvcRemote, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by force does data take the place of the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path(), tmp_path, Path("/")):
        with pytest.raises(MlopsError, match="lies in it"):
            host.pull(remote.put(b"x"), target, Options(force=True))


def test_two_pulls_at_once_fetch_once(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Of two runs that want the same data, one fetches it and the other waits for that."""
    files = {f"{number}": str(number).encode() for number in range(50)}
    reference = remote.put_folder(files)
    both = threading.Barrier(2, timeout=60)
    errors: list[BaseException] = []

    def pull(to: Path, url: str) -> None:
        try:
            both.wait()
            Host(tmp_path, url).pull(reference, to)
        except BaseException as error:  # noqa: BLE001  # told by the test
            errors.append(error)

    with FaultProxy(host.url) as proxy:
        threads = [
            threading.Thread(target=pull, args=(tmp_path / name, proxy.url)) for name in "xy"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        fetched = [each.target for each in data_requests(proxy) if ".dir" not in each.target]
    assert len(fetched) == len(set(fetched)) == 50
    assert files_below(tmp_path / "x") == files_below(tmp_path / "y") == files


def test_oldest_data_goes_first(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Above the limit what was not used for longest goes, and never what this pull needs."""
    bodies = [bytes([number]) * 400_000 for number in range(4)]
    references = [remote.put_folder({"file": body}) for body in bodies]
    for number in (0, 1, 0, 2):
        host.pull(references[number], tmp_path / f"run-{number}", limit_bytes=1_000_000)
    assert [host.file(body).exists() for body in bodies] == [True, False, True, False]
    assert files_below(tmp_path / "run-1") == {"file": bodies[1]}
    host.pull(references[3], tmp_path / "run-3", limit_bytes=1000)
    assert [host.file(body).exists() for body in bodies] == [False, False, False, True]
    assert any("MLOPS_DATA_CACHE_BYTES" in note for note in host.recorder.notes)


def test_leftovers_of_killed_pulls_go(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """What a killed pull has left, in the cache and beside the place, is removed."""
    host.pull(remote.put(b"1"), tmp_path / "one")
    leftover = host.cache / "incoming" / "half"
    leftover.write_bytes(b"?")
    beside = tmp_path / ".data.mlops-dead"
    beside.mkdir()
    (beside / "half").touch()
    os.utime(beside, (0, 0))
    host.pull(remote.put(b"2"), tmp_path / "data")
    assert not leftover.exists()
    assert not beside.exists()


def test_wrong_credentials_are_told(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Credentials that the server refuses are told with the variables to check."""
    with pytest.raises(MlopsError, match="refused these S3 credentials") as error:
        host.pull(remote.put(b"x"), tmp_path / "x", secret="old")
    assert "AWS_SECRET_ACCESS_KEY" in error.value.hint


@pytest.mark.requires("mount")
def test_full_disk_is_known_before(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Too little room is told with both numbers, before anything is fetched."""
    reference = remote.put_folder({"a": os.urandom(900_000), "b": os.urandom(900_000)})
    with small_disk(tmp_path / "disk") as filler:
        host.cache = tmp_path / "disk" / "cache"
        fill(filler, 1_000_000)
        with (
            FaultProxy(host.url) as proxy,
            pytest.raises(
                MlopsError, match=r"not enough space: 1,802,240 bytes are needed and 9\d\d,\d\d\d"
            ),
        ):
            host.pull(reference, tmp_path / "data", url=proxy.url)
        assert len(data_requests(proxy)) == 1  # the list
        filler.unlink()
        host.pull(reference, tmp_path / "data")


@pytest.mark.requires("mount")
def test_other_file_system_gets_copies(remote: DvcRemote, host: Host, tmp_path: Path) -> None:
    """Where links cannot lead the data is copied, and known there again."""
    body = os.urandom(1_000_000)
    older, newer = remote.put_folder({"a": body}), remote.put_folder({"a": body[::-1]})
    with small_disk(tmp_path / "disk") as filler:
        data = tmp_path / "disk" / "data"
        host.pull(older, data)
        assert is_stamped((data / "a").lstat())
        assert not (data / "a").samefile(host.file(body))
        inode = (data / "a").stat().st_ino
        host.pull(older, data)
        assert (data / "a").stat().st_ino == inode
        fill(filler, 500_000 + len(body))
        with pytest.raises(MlopsError, match="not enough space") as error:
            host.pull(newer, data)
        assert "file system" in error.value.hint
        assert files_below(data) == {"a": body}
        filler.unlink()
        host.pull(newer, data)
        assert files_below(data) == {"a": body[::-1]}


def test_folder_that_may_not_be_written_is_named(
    remote: DvcRemote, host: Host, tmp_path: Path
) -> None:
    """A cache, or a place, without the right to write is told with the mend."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    reference = remote.put(b"x")
    with ordinary_rights():
        with pytest.raises(MlopsError, match=r"closed: cannot be written: Permission") as error:
            host.pull(reference, closed / "sub" / "data")
        assert "another place" in error.value.hint
        host.cache = closed / "cache"
        with pytest.raises(MlopsError, match="the data cache cannot be written") as error:
            host.pull(reference, tmp_path / "data")
    assert "MLOPS_DATA_CACHE_DIR" in error.value.hint


def test_links_run_out(
    remote: DvcRemote, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has as many links as its file system allows is copied."""

    link = os.link

    # 65,000 real links, as on ext4, would take longer than all other tests.
    def refuse(source: str, path: str) -> None:
        if "probe" not in source:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, path)

    monkeypatch.setattr(os, "link", refuse)
    host.pull(remote.put_folder(FILES), tmp_path / "data")
    assert files_below(tmp_path / "data") == FILES
