"""A project's DVC remotes, from `.dvc/config` and `.dvc/config.local`."""

import configparser
import re
from pathlib import Path
from typing import NamedTuple

from mlops.errors import MlopsError

CONFIG = ".dvc/config"
_REMOTE = re.compile(r"""'?remote\s+"?(?P<name>[^"']+)"?'?""")
_S3 = re.compile(r"s3://(?P<bucket>[^/]+)/?(?P<path>.*)")
_RELATIVE = re.compile(r"remote://(?P<name>[^/]+)/?(?P<path>.*)")


class RemotePlace(NamedTuple):
    """Where in S3 a remote is; the path has no slashes at its ends."""

    bucket: str
    path: str


class DvcConfig:
    """What a project says of its remotes.

    The server's address and the credentials come from the environment, as everywhere.

    Args:
        project: The project's folder.

    Raises:
        MlopsError: A file is not one of DVC's.
    """

    def __init__(self, project: Path) -> None:
        self._file = project / CONFIG
        self._parser = configparser.ConfigParser(interpolation=None, strict=False)
        for path in (self._file, project / f"{CONFIG}.local"):
            try:
                self._parser.read(path, encoding="utf-8")
            except (configparser.Error, UnicodeDecodeError) as error:
                raise MlopsError(f"{path}: not understood: {error}") from None
        self._urls = {
            match["name"]: self._parser.get(section, "url", fallback="")
            for section in self._parser.sections()
            if (match := _REMOTE.fullmatch(section))
        }

    def remote(self, name: str | None) -> RemotePlace:
        """Return a remote's place.

        Args:
            name: Which; None: the default.

        Raises:
            MlopsError: There is none, or it is not in S3.
        """
        chosen = name or self._parser.get("core", "remote", fallback="")
        if not chosen:
            raise MlopsError(
                f"{self._file}: names no default remote",
                hint="`dvc remote add --default platform s3://<bucket>/<project>`",
            )
        url = self._url(chosen)
        match = _S3.fullmatch(url)
        if match is None:
            raise MlopsError(
                f"{self._file}: the remote {chosen!r} is {url}, and not in S3",
                hint="only remotes like s3://<bucket>/<project> can be pulled from here",
            )
        return RemotePlace(match["bucket"], match["path"].strip("/"))

    def _url(self, name: str) -> str:
        """Return a remote's address, which may be said relative to another's."""
        seen: list[str] = []
        rest = ""
        while True:
            url = self._urls.get(name)
            if not url or name in seen:
                known = ", ".join(sorted(self._urls)) or "none"
                raise MlopsError(
                    f"{self._file}: there is no remote {name!r}", hint=f"its remotes: {known}"
                )
            seen.append(name)
            match = _RELATIVE.fullmatch(url)
            if match is None:
                return f"{url.rstrip('/')}/{rest}" if rest else url
            name = match["name"]
            rest = "/".join(part for part in (match["path"].strip("/"), rest) if part)
