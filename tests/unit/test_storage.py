"""The S3 client against a real server."""

import hashlib
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from s3_server import open_bucket

from mlops.errors import MlopsError
from mlops.storage import PART_BYTES, ObjectNotFoundError, ObjectStore


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_file_goes_up_and_comes_back(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """A file of any size is the same after both ways, and its hash is told on each."""
    body = hashlib.shake_256(b"seed").digest(size)
    (tmp_path / "up").write_bytes(body)
    sent = store.upload(tmp_path / "up", "way/file")
    store.download("way/file", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == body
    assert sent == store.sha256("way/file") == hashlib.sha256(body).hexdigest()


def test_settings_win_over_the_environment(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of another S3 in the environment are not mixed in."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "of-another")
    store = open_bucket(s3_url)
    store.write("mine", b"1")
    assert store.read("mine") == b"1"


def test_listing_shows_everything_below_a_folder(store: ObjectStore) -> None:
    """More objects than the server lists at once are all found, with size and MD5."""
    for number in range(1100):
        store.write(f"many/{number}", str(number).encode())
    store.write("many-more", b"")
    found = {item.key: item for item in store.objects("many")}
    assert found.keys() == {f"many/{number}" for number in range(1100)}
    assert found["many/1000"].size == 4
    assert found["many/1000"].etag == hashlib.md5(b"1000", usedforsecurity=False).hexdigest()
    store.delete([*found, "many/never-was"])
    assert list(store.objects("many")) == []


@pytest.mark.parametrize(
    "key", ["plain", "with space", "ünïcödé", "a%2Fb", "a+b", "a&b<c>", "quote'\""]
)
def test_odd_names_are_kept(store: ObjectStore, key: str) -> None:
    """An object is listed and read under the name by which it was written."""
    store.write(f"odd/{key}", key.encode())
    assert [item.key for item in store.objects("odd")] == [f"odd/{key}"]
    assert store.read(f"odd/{key}") == key.encode()
    store.delete([f"odd/{key}"])


def test_missing_object_is_named(store: ObjectStore, tmp_path: Path) -> None:
    """What does not exist is named, whichever way it is asked for."""
    for ask in (store.read, store.sha256, lambda key: store.download(key, tmp_path / "f")):
        with pytest.raises(ObjectNotFoundError, match=r"s3://prefect/no/such: does not exist at"):
            ask("no/such")


def test_missing_bucket_is_named(s3_url: str) -> None:
    """It is the bucket that is missing, and not the object."""
    with pytest.raises(ObjectNotFoundError, match=r"s3://nowhere: does not exist at http"):
        open_bucket(s3_url, "nowhere").write("key", b"")


def test_wrong_key_is_told_from_a_missing_object(s3_url: str) -> None:
    """A server that refuses the credentials is named, with the variables to check."""
    with pytest.raises(MlopsError, match="refused these S3 credentials") as error:
        open_bucket(s3_url, secret="wrong").read("key")
    assert "AWS_SECRET_ACCESS_KEY" in error.value.hint


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AccessDenied", "s3://prefect/kept: {url} refused these S3 credentials (AccessDenied)"),
        ("InternalError", "s3://prefect/kept: {url} answered InternalError"),
    ],
)
def test_deletion_that_is_refused_is_told(s3_url: str, code: str, expected: str) -> None:
    """A server refuses one key of many in an answer that is otherwise good."""
    refusal = (
        f"<DeleteResult><Error><Key>kept</Key><Code>{code}</Code><Message>no</Message></Error>"
    )

    def refuse(body: bytes) -> bytes:
        return f"{refusal}</DeleteResult>".encode() if b"DeleteResult" in body else body

    with FaultProxy(s3_url, rewrite=refuse) as proxy:
        with pytest.raises(MlopsError) as raised:
            open_bucket(proxy.url).delete(["kept"])
        assert raised.value.message == expected.format(url=proxy.url)


def test_hiccup_is_not_noticed(s3_url: str) -> None:
    """One broken connection is made up for."""
    broken: list[bool] = []

    def break_once(_request: object) -> None:
        if not broken:
            broken.append(True)
            raise OSError

    with FaultProxy(s3_url, before=break_once) as proxy:
        open_bucket(proxy.url).write("hiccup", b"whole")
        assert len(proxy.requests) == 2
    assert open_bucket(s3_url).read("hiccup") == b"whole"


def test_file_of_this_machine_is_its_own_error(store: ObjectStore, tmp_path: Path) -> None:
    """A file that cannot be read or written is not blamed on the server."""
    store.write("there", b"")
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "none", "key")
    with pytest.raises(FileNotFoundError):
        store.download("there", tmp_path / "none" / "file")
