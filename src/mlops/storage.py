"""The S3 client: the object store as one role sees it, with errors that a user can act on."""

import datetime as dt
import hashlib
import http.client
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from mlops.errors import CredentialsError, MlopsError
from mlops.settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import S3Credential

TRANSFER_THREADS = 8
PART_BYTES = 8 << 20  # of an upload in parts; a smaller file goes up in one piece
QUICK_BYTES = 1 << 20
# How long the server may be silent. The time that a body takes to get there counts too: four
# parts on a slow line, or several small files, must not look like a frozen server.
ANSWER_SECONDS = 60
PART_ANSWER_SECONDS = 180
_PARTS_AT_ONCE = 4
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 256 << 10  # which a core's cache holds
_SIGNED_FOR = dt.timedelta(hours=1)
_CODE = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)$")  # the second of one key among many
_MISSING = {"NoSuchKey", "NoSuchBucket"}
_REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
}

Progress = Callable[[int], None]  # is given the bytes that were sent since the last call


class ObjectNotFoundError(MlopsError):
    """The object, or its bucket, does not exist."""


class BrokenObjectError(MlopsError):
    """The server knows the object and cannot send all of it."""


class _WholePartError(MlopsError):
    """The server sends a part of an object with the status of a whole one.

    That of `rclone serve s3` 1.75 does, and the library refuses it.
    """


class StoredObject(NamedTuple):
    """An object as a listing shows it. `etag` is without quotes; `size` in bytes."""

    key: str
    size: int
    etag: str
    last_modified: dt.datetime


class _Identity:
    """Hands out one fixed key pair."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings

    def __call__(self) -> "S3Credential":
        return {
            "access_key_id": self._settings.aws_access_key_id,
            "secret_access_key": self._settings.aws_secret_access_key.get_secret_value(),
            "expires_at": None,
        }


class ObjectStore:
    """One bucket of the object store. Safe to share between threads.

    Args:
        settings: Address and identity.
        bucket: Name of the bucket.
    """

    def __init__(self, settings: S3Settings, bucket: str) -> None:
        self.bucket = bucket
        self._endpoint = settings.aws_endpoint_url_s3
        self._identity = _Identity(settings)
        self._store = self._open(ANSWER_SECONDS)
        self._patient_store = self._open(PART_ANSWER_SECONDS)
        self._is_part_whole = False  # see _WholePartError

    def _open(self, answer_seconds: int) -> S3Store:
        return S3Store(
            self.bucket,
            # By this name: a variable of that name in the environment wins over the others.
            config={"aws_endpoint_url_s3": self._endpoint},
            region="us-east-1",  # servers that are not AWS's ignore it
            virtual_hosted_style_request=False,
            # Not as two plain options: a session token in the environment would join them.
            credential_provider=self._identity,
            client_options={
                "allow_http": True,
                "connect_timeout": "5s",
                "read_timeout": f"{answer_seconds}s",
                "timeout": "30m",
            },
            retry_config={"max_retries": 2, "retry_timeout": dt.timedelta(seconds=10)},
        )

    def uri(self, key: str) -> str:
        """Return `s3://bucket/key`."""
        return f"s3://{self.bucket}/{key}"

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield what lies below a folder of keys, without a slash at its end."""
        with self._errors(folder):
            for page in obstore.list(self._store, folder, chunk_size=1000):
                for item in page:
                    yield StoredObject(
                        key=item["path"],
                        size=item["size"],
                        etag=(item["e_tag"] or "").strip('"'),
                        last_modified=item["last_modified"],
                    )

    def read(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ObjectNotFoundError: There is no such object.
            BrokenObjectError: It breaks off.
        """
        with self._errors(key):
            return obstore.get(self._store, key).bytes().to_bytes()

    def size(self, key: str) -> int:
        """Return how many bytes an object has.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        with self._errors(key):
            return int(obstore.head(self._store, key)["size"])

    def blocks(
        self, key: str, start: int = 0, length: int | None = None
    ) -> "Iterator[obstore.Bytes | memoryview]":
        """Yield an object's bytes, in blocks, each good until the next one.

        Args:
            key: The object.
            start: The first of them.
            length: How many; None: all, and then `start` is 0.

        Raises:
            ObjectNotFoundError: There is no such object.
            BrokenObjectError: It breaks off.
        """
        if length is None:
            with self._errors(key):
                yield from obstore.get(self._store, key).stream(min_chunk_size=_BLOCK_BYTES)
            return
        if not self._is_part_whole:
            try:
                with self._errors(key):
                    part = obstore.get(self._store, key, options={"range": (start, start + length)})
                    yield from part.stream(min_chunk_size=_BLOCK_BYTES)
            except _WholePartError:
                self._is_part_whole = True
            else:
                return
        yield from self._signed_blocks(key, start, length)

    def _signed_blocks(self, key: str, start: int, length: int) -> Iterator[memoryview]:
        """Yield some of an object's bytes without the library, which refuses this server's way."""
        with self._errors(key):
            url = urlsplit(obstore.sign(self._store, "GET", key, _SIGNED_FOR))
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=ANSWER_SECONDS)
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        wanted = {"Range": f"bytes={start}-{start + length - 1}"}
        try:
            connection.request("GET", f"{url.path}?{url.query}", headers=wanted)
            answer = connection.getresponse()
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                message = answer.read(_BLOCK_BYTES).decode(errors="replace")
                raise self._explained(f"Server returned {answer.status}: {message}", key)
            while count := answer.readinto(buffer):
                yield buffer[:count]
        except (OSError, http.client.HTTPException) as error:
            raise self._explained(str(error) or type(error).__name__, key) from error
        finally:
            connection.close()

    def write(self, key: str, body: bytes) -> None:
        """Write an object whole."""
        with self._errors(key):
            obstore.put(self._store, key, body, use_multipart=False)

    def upload(self, path: Path, key: str, progress: Progress | None = None) -> str:
        """Upload a file, in parts when it is large.

        Returns:
            SHA-256 of the bytes that were sent, as 64 hexadecimal digits.

        Raises:
            OSError: The file cannot be read.
        """
        digest = hashlib.sha256()

        def read() -> Iterator[bytes]:
            while block := file.read(PART_BYTES):
                digest.update(block)
                yield block
                if progress:
                    progress(len(block))

        size = path.stat().st_size
        store = self._store if size <= QUICK_BYTES else self._patient_store
        with path.open("rb") as file, self._errors(key):
            if size <= PART_BYTES:
                obstore.put(store, key, b"".join(read()), use_multipart=False)
            else:
                obstore.put(
                    store,
                    key,
                    read(),
                    chunk_size=PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )
        return digest.hexdigest()

    def download(self, key: str, path: Path) -> None:
        """Download an object into a file.

        Raises:
            ObjectNotFoundError: There is no such object.
            OSError: The file cannot be written.
        """
        with path.open("wb") as file, self._errors(key):
            for block in obstore.get(self._store, key).stream(min_chunk_size=_READ_BYTES):
                file.write(block)

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object's bytes, which are all read for it.

        Raises:
            ObjectNotFoundError: There is no such object.
            BrokenObjectError: It breaks off.
        """
        digest = hashlib.sha256()
        with self._errors(key):
            for block in obstore.get(self._store, key).stream(min_chunk_size=_READ_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        if keys:
            with self._errors(keys[0]):
                obstore.delete(self._store, keys)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn the library's errors into ones that name the address, the object and the mend."""
        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # about a file of this machine
            # Below the first line the library shows its own insides.
            message = str(error).split("\n\nDebug source", 1)[0]
            raise self._explained(message, key) from error

    def _explained(self, message: str, key: str) -> MlopsError:
        found = _CODE.search(message)
        code = (found[1] or found[2]) if found else ""
        if code in _MISSING or "404 Not Found" in message:
            missing = f"s3://{self.bucket}" if code == "NoSuchBucket" else self.uri(key)
            return ObjectNotFoundError(f"{missing}: does not exist at {self._endpoint}")
        if code in _REFUSED or "403 Forbidden" in message or "401 Unauthorized" in message:
            return CredentialsError(
                f"{self.uri(key)}: {self._endpoint} refused these S3 credentials ({code or 403})",
                hint="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
                "with Compose, <ROLE>_S3_... in .env",
            )
        if "non-partial response" in message:
            return _WholePartError(self.uri(key))
        if "response body error" in message:
            return BrokenObjectError(f"{self.uri(key)}: {self._endpoint} cannot send all of it")
        if code or "Server returned" in message:
            return MlopsError(
                f"{self.uri(key)}: {self._endpoint} answered {code or message.splitlines()[0]}",
                hint="see the object store's own log; is its disk full?",
            )
        return MlopsError(
            f"the object store at {self._endpoint} does not answer: {message.rsplit(' - ', 1)[-1]}",
            hint="is it up? `./mlops local status` on a checkout; else check AWS_ENDPOINT_URL_S3",
        )
