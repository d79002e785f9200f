"""What a flow's requirements say: the packages they name, and a text that changes with them."""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlops.errors import MlopsError

DEFAULT_REQUIREMENTS = "requirements.txt"
_COMMENT = re.compile(r"(^|\s+)#.*$")
_INCLUDE = re.compile(r"(?P<option>-r|--requirement|-c|--constraint)(=|\s*)(?P<path>.+)")
_EDITABLE = re.compile(r"(-e|--editable)(=|\s*)(?P<target>.+)")
_LINE_OPTIONS = re.compile(r"\s--[a-z].*$")  # of one requirement, such as --hash
_NOT_SOURCE = frozenset({".git", ".venv", "__pycache__"})


@dataclass(frozen=True)
class Requirements:
    """What a flow asks for.

    Attributes:
        label: How messages call it: the file's name, or that there is none.
        fingerprint: Changes whenever another environment is needed.
        names: Normalised names of the packages that the flow names itself.
        file: The requirements file, relative to the code folder; None: no such file.
        is_project: A `pyproject.toml` with a `uv.lock` says it instead.
        has_local_packages: Packages in the code folder itself are to be installed.
    """

    label: str
    fingerprint: str
    names: frozenset[str] = frozenset()
    file: str | None = None
    is_project: bool = False
    has_local_packages: bool = False

    @property
    def is_none(self) -> bool:
        """Whether the flow asks for nothing: it runs in the default environment."""
        return self.file is None and not self.is_project


NO_REQUIREMENTS = Requirements(label="no requirements of its own", fingerprint="")


def read_requirements(folder: Path, file: str | None, python_version: str) -> Requirements:
    """Read a flow's requirements.

    Args:
        folder: The flow's code.
        file: The requirements file, relative to `folder`; None: the flow has none. A `uv.lock`
            beside a `pyproject.toml` wins over none and over the default file.
        python_version: Full version of the Python to be, for environment markers.

    Raises:
        MlopsError: A file is missing or not readable.
    """
    is_project = (folder / "uv.lock").is_file() and (folder / "pyproject.toml").is_file()
    if is_project and file in (None, DEFAULT_REQUIREMENTS):
        return _read_project(folder)
    if file is None:
        return NO_REQUIREMENTS
    reader = _FileReader(folder, python_version)
    reader.read(folder / file)
    lines = [*reader.lines, *_uv_configuration(folder)]
    if not lines:
        return NO_REQUIREMENTS
    return Requirements(
        label=file,
        fingerprint="\n".join(lines),
        names=frozenset(reader.names),
        file=file,
        has_local_packages=reader.has_local_packages,
    )


class _FileReader:
    """Reads one requirements file and what it includes (pip's requirements file format)."""

    def __init__(self, folder: Path, python_version: str) -> None:
        self.lines: list[str] = []
        self.names: set[str] = set()
        self.has_local_packages = False
        self._folder = folder
        self._markers = {
            "python_full_version": python_version,
            "python_version": ".".join(python_version.split(".")[:2]),
        }
        self._seen: set[Path] = set()

    def read(self, path: Path, *, is_constraint: bool = False) -> None:
        """Add a file."""
        if path.resolve() in self._seen:
            return
        self._seen.add(path.resolve())
        for line in _logical_lines(_read_text(path)):
            if include := _INCLUDE.fullmatch(line):
                option = include["option"]
                if "://" in include["path"]:
                    self.lines.append(line)  # fetched by uv; its content is its author's promise
                    continue
                self.lines.append(option)
                self.read(
                    path.parent / include["path"].strip("\"'"),
                    is_constraint=is_constraint or option in ("-c", "--constraint"),
                )
            else:
                self.lines.append(line)
                if not is_constraint:
                    self._add_requirement(line)

    def _add_requirement(self, line: str) -> None:
        if editable := _EDITABLE.fullmatch(line):
            self._add_local(editable["target"])
        elif not line.startswith("-"):
            try:
                requirement = Requirement(_LINE_OPTIONS.sub("", line))
            except InvalidRequirement:
                self._add_local(line)
                return
            if requirement.marker is None or requirement.marker.evaluate(self._markers):
                self.names.add(canonicalize_name(requirement.name))
            if requirement.url:
                self._add_local(requirement.url)

    def _add_local(self, target: str) -> None:
        """Take note of a package in the code folder; ignore what lies elsewhere."""
        target = re.split(r"\s|\[", target.strip("\"'"), maxsplit=1)[0]
        path = self._folder / target.removeprefix("file:").removeprefix("//")
        if not re.match(r"(git|hg|svn|bzr)\+|https?:", target) and path.exists():
            self.has_local_packages = True
            self.lines.append(_content_hash(path))


def _read_project(folder: Path) -> Requirements:
    try:
        lock = (folder / "uv.lock").read_text()
        packages: list[dict[str, Any]] = tomllib.loads(lock).get("package", [])
        project = (folder / "pyproject.toml").read_text()
    except (OSError, ValueError) as error:
        raise MlopsError(f"{folder / 'uv.lock'}: not readable: {error}") from None
    # `virtual` is the project itself when it is not a package.
    is_local = any(
        kind in package.get("source", {})
        for package in packages
        for kind in ("directory", "editable", "path")
    )
    return Requirements(
        label="uv.lock",
        fingerprint="\n".join([lock, project, _content_hash(folder) if is_local else ""]),
        is_project=True,
        has_local_packages=is_local,
    )


def _uv_configuration(folder: Path) -> list[str]:
    """Return what else uv heeds in the folder: its indexes, overrides and the like."""
    found = []
    if (folder / "uv.toml").is_file():
        found.append(_read_text(folder / "uv.toml"))
    if (folder / "pyproject.toml").is_file():
        try:
            tool = tomllib.loads(_read_text(folder / "pyproject.toml")).get("tool", {})
        except tomllib.TOMLDecodeError as error:
            raise MlopsError(f"{folder / 'pyproject.toml'}: {error}") from None
        if "uv" in tool:
            found.append(json.dumps(tool["uv"], sort_keys=True, default=str))
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MlopsError(
            f"{path}: no such requirements file",
            hint="add it to the flow's folder, or correct `requirements` in flow.yaml",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MlopsError(f"{path}: not readable: {error}") from None


def _logical_lines(text: str) -> Iterator[str]:
    """Yield the lines that mean something: continuations joined, comments dropped."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        if meaning := _COMMENT.sub("", line).strip():
            yield meaning


def _content_hash(path: Path) -> str:
    """Hash a file, or all files of a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        name = file.relative_to(path)
        if not _NOT_SOURCE.intersection(name.parts):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
