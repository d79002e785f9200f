"""Env files (`NAME=value`): read as Docker Compose reads them, written whole and in private.

They hold secrets, so one that other users may read is refused, and what is written here has
mode 0600 from its first byte. A file is replaced in one step or not at all.
"""

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from dotenv.parser import Binding, parse_stream

from mlops.errors import MlopsError

_PLAIN = re.compile(r"[\w./:,@%+=~\[\]-]*", re.ASCII)
_COMMENT = re.compile(r"\s#.*")


class EnvFile(NamedTuple):
    """What an env file holds.

    Args:
        text: All of it.
        values: Its variables, without quotes.
        expanded: The names whose value has a `$` in it that Compose would expand.
    """

    text: str
    values: dict[str, str]
    expanded: frozenset[str]


def read_env_file(path: Path) -> EnvFile:
    """Read an env file.

    Args:
        path: The file; a link is followed.

    Raises:
        FileNotFoundError: There is none.
        MlopsError: It is open to other users, cannot be read, is no env file, or has a name
            twice: the first value would be completed, and the last one read.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except PermissionError:
        raise MlopsError(
            f"{path}: belongs to another user", hint="run as the user who made it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MlopsError(
            f"{path}: cannot be read: {getattr(error, 'strerror', 'not UTF-8 text')}"
        ) from None
    if mode & 0o077:
        raise MlopsError(
            f"{path}: other users may read it (mode {mode:04o})", hint=f"chmod 600 {path}"
        )
    bindings = _parse(text)
    lines: dict[str, int] = {}
    for binding in bindings:
        if binding.error:
            raise MlopsError(
                f"{path}: line {_line(binding)}: not understood",
                hint="lines are NAME=value; a value that begins with a quote ends with one",
            )
        if binding.key in lines:
            raise MlopsError(
                f"{path}: {binding.key}: twice, in lines {lines[binding.key]} and {_line(binding)}",
                hint="remove one of the two; the last one was in force",
            )
        if binding.key:
            lines[binding.key] = _line(binding)
    values = {b.key: b.value or "" for b in bindings if b.key}
    expanded = {b.key for b in bindings if b.key and "$" in (b.value or "") and not _is_literal(b)}
    return EnvFile(text, values, frozenset(expanded))


def set_missing(text: str, values: Mapping[str, str]) -> str:
    """Return the text with values for names that have none, and everything else as it is.

    Args:
        text: An env file's.
        values: What to set, where the name stands without a value or else at the end.

    Raises:
        MlopsError: A value cannot be written to an env file.
    """
    lines = []
    left = dict(values)
    for binding in _parse(text):
        name, line = binding.key, binding.original.string
        if name and left.pop(name, None) and not binding.value:
            head, _, tail = line.rstrip().partition("=")
            comment = _COMMENT.search(tail)
            line = f"{head}={_quoted(name, values[name])}{comment[0] if comment else ''}\n"
        lines.append(line)
    if left and lines and not lines[-1].endswith("\n"):
        lines.append("\n")
    return "".join(lines) + "".join(f"{n}={_quoted(n, value)}\n" for n, value in left.items())


def write_private_files(texts: Mapping[Path, str]) -> None:
    """Write files of mode 0600, each in one step, and none before all are on the disk.

    Args:
        texts: What to write where; a link is followed.

    Raises:
        MlopsError: One cannot be written; none was replaced, unless it is the replacing that
            failed.
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, text in texts.items():
            target = path.resolve()
            if target.exists() and target.stat().st_uid != os.geteuid():
                raise MlopsError(
                    f"{path}: belongs to another user", hint="run as the user who made it"
                )
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
            staged.append((Path(temporary), target))
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # mkstemp makes it 0600
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        while staged:
            temporary_file, path = staged[0]
            temporary_file.replace(path)
            staged.pop(0)
    except OSError as error:
        raise MlopsError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        for temporary_file, _ in staged:
            temporary_file.unlink(missing_ok=True)


def _parse(text: str) -> list[Binding]:
    return list(parse_stream(StringIO(text)))


def _line(binding: Binding) -> int:
    """Return the number of its line; what python-dotenv counts from are blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _is_literal(binding: Binding) -> bool:
    """Is the value in single quotes, in which Compose expands nothing?"""
    return binding.original.string.partition("=")[2].lstrip().startswith("'")


def _quoted(name: str, value: str) -> str:
    """Return a value as Compose and python-dotenv both read it back."""
    if _PLAIN.fullmatch(value):
        return value
    if "\\" in value or not value.isprintable():
        raise MlopsError(f"{name}: a backslash or control character cannot be kept in .env")
    return "'" + value.replace("'", "\\'") + "'"
