"""A DVC remote in a real S3 server, filled without DVC, and pulls from it."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from s3_server import ACCESS_KEY, SECRET_KEY

from mlops.data.delivery import Options, Pulled, pull
from mlops.data.reference import Reference
from mlops.settings import DataSettings
from mlops.storage import ObjectStore

DEFAULT = Options()


def md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class DvcRemote:
    """A remote of its own in a bucket.

    Args:
        store: The bucket.
        layout: `files/md5/`, or empty for that of DVC 2.
    """

    def __init__(self, store: ObjectStore, layout: str = "files/md5/") -> None:
        self.store = store
        self.path = f"remote-{uuid.uuid4().hex[:8]}"
        self._layout = layout

    def key(self, data_hash: str) -> str:
        return f"{self.path}/{self._layout}{data_hash[:2]}/{data_hash[2:]}"

    def put(self, body: bytes, data_hash: str | None = None) -> Reference:
        """Write an object, under its hash or under a wrong one."""
        name = data_hash or md5(body)
        self.store.write(self.key(name), body)
        return Reference(bucket=self.store.bucket, path=self.path, hash=name)

    def put_list(self, lines: list[Any]) -> Reference:
        """Write the list of a folder's files."""
        body = json.dumps(lines).encode()
        return self.put(body, f"{md5(body)}.dir")

    def put_folder(self, files: dict[str, bytes]) -> Reference:
        """Write files and their list."""
        for body in files.values():
            self.put(body)
        return self.put_list([{"md5": md5(b), "relpath": path} for path, b in files.items()])


class Recorder:
    """Keeps what a pull says; a `fetch.Progress`."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def begin(self, files: int, size: int) -> None:
        pass

    def advance(self, files: int, size: int) -> None:
        pass


class Host:
    """A host with a cache of its own, that pulls from a server.

    Args:
        folder: Where the cache is made.
        url: The server that it pulls from.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.cache = folder / "cache"
        self.url = url
        self.recorder = Recorder()

    def pull(
        self,
        reference: Reference,
        to: Path,
        options: Options = DEFAULT,
        *,
        url: str = "",
        secret: str = SECRET_KEY,
        limit_bytes: int = 10**9,
    ) -> Pulled:
        settings = DataSettings.from_environment(
            aws_endpoint_url_s3=url or self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=secret,
            mlops_data_cache_dir=self.cache,
            mlops_data_cache_bytes=limit_bytes,
        )
        return pull(reference, to, settings, self.recorder, options)

    def file(self, body: bytes) -> Path:
        """Return where the cache has a file, or would have it."""
        name = md5(body)
        return self.cache / "files" / "md5" / name[:2] / name[2:]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
