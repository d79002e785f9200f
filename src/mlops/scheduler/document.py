"""A YAML file as plain JSON values, with what YAML would do in silence told as mistakes.

The values go to the Prefect server as JSON, and people write YAML without knowing all of its
rules: a second key of the same name wins, `010` is eight, `1:30` is ninety. Read as people mean
it: a date is its text, and `1e-3` is a number. Told as mistakes: keys that are there twice,
numbers that are not what they look like, and everything that JSON cannot carry. A file that
expands to more than a flow.yaml can mean is refused before it takes the memory.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mlops.scheduler.wording import shown

SIZE_LIMIT_BYTES = 256 * 1024
DEPTH_LIMIT = 50  # libyaml's C code crashes at some 20,000
VALUES_LIMIT = 10_000
# Prefect 3.8.8 takes larger numbers (1e20 too, which its database makes an integer), and from
# then on answers every list with such a run with an internal error.
NUMBER_LIMIT = 2**63
TWICE = "is there twice"

Location = tuple[str | int, ...]
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast
_TAG = "tag:yaml.org,2002:"
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?")


class Document(NamedTuple):
    """What a file says.

    Attributes:
        content: Its keys and values; None: it is not a mapping.
        written: The unquoted values that YAML does not take as text, as they were written.
        mistakes: A line each, most with the line's number.
    """

    content: dict[str, Any] | None
    written: dict[Location, str]
    mistakes: list[str]


class DocumentError(ValueError):
    """The file cannot be read as YAML at all; the message says where and why."""


class _Loader(_Base):  # type: ignore[misc]  # one of two classes, whichever is there
    """PyYAML's safe loader, without dates and with numbers like 1e-3."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as in the base class
        first: [
            (tag, rule) for tag, rule in rules if tag not in (f"{_TAG}timestamp", f"{_TAG}value")
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        DocumentError: It cannot be read, is too large, or is not YAML.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"cannot be read: {error.strerror}") from error
    if len(raw) > SIZE_LIMIT_BYTES:
        raise DocumentError(
            f"has more than {SIZE_LIMIT_BYTES // 1024} KiB; data belongs in files of its own"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DocumentError(f"line {line}: not UTF-8 text; save the file as UTF-8") from error
    return _Reader().read(text)


class _Reader:
    def __init__(self) -> None:
        self.written: dict[Location, str] = {}
        self.mistakes: list[str] = []
        self.values = 0

    def read(self, text: str) -> Document:
        loader: Any = None
        try:
            _refuse_deep_nesting(text)
            loader = _Loader(text)
            self.loader = loader
            node = loader.get_single_node()
            if node is None:
                raise DocumentError("is empty; required: deployment")
            content = self._value(node, ())
        except yaml.YAMLError as error:
            raise DocumentError(_not_yaml(error, text)) from error
        finally:
            if loader is not None:
                loader.dispose()
        return Document(
            content=content if isinstance(content, dict) else None,
            written=self.written,
            mistakes=self.mistakes,
        )

    def _value(self, node: Any, location: Location) -> Any:
        self.values += 1
        if self.values > VALUES_LIMIT or len(location) > DEPTH_LIMIT:
            raise DocumentError(
                f"line {_line(node)}: is nested too deep or has too many values, aliases counted "
                f"where they are used; allowed: {DEPTH_LIMIT} levels, {VALUES_LIMIT} values"
            )
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._value(item, (*location, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
            return self._scalar(node, location, kind)
        self._mistake(
            node,
            location,
            f"{kind} is no kind of value here; allowed: text, numbers, true, "
            "false, null, lists and mappings",
        )
        return None

    def _mapping(self, node: Any, location: Location) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                for base in self._merged(value_node, location):
                    merged = base | merged  # the earlier one wins
                continue
            key = self._key(key_node, location)
            if key is None:
                continue
            if key in own:
                self._mistake(
                    key_node, (*location, key), f"{TWICE}, first in line {first_lines[key]}"
                )
                continue
            first_lines[key] = _line(key_node)
            own[key] = self._value(value_node, (*location, key))
        return merged | own

    def _merged(self, node: Any, location: Location) -> Iterator[dict[str, Any]]:
        """Yield the mappings that `<<` brings in."""
        bases = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for base in bases:
            if isinstance(base, yaml.MappingNode):
                # One level deeper than where it ends up, so that a merge of itself has an end.
                found = self._value(base, (*location, "<<"))
                yield found if isinstance(found, dict) else {}
            else:
                self._mistake(base, location, "<< takes a mapping, or a list of mappings")

    def _key(self, node: Any, location: Location) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._mistake(node, location, "has a key that is not text; allowed: text")
            return None
        if node.tag != f"{_TAG}str":
            kind = node.tag.removeprefix(_TAG)
            self._mistake(
                node, location, f"the key {node.value} is not text for YAML ({kind}); quote it"
            )
            return None
        key: str = self._scalar(node, location, "str")
        return key

    def _scalar(self, node: Any, location: Location, kind: str) -> Any:
        written: str = node.value
        if kind == "str":
            if unwanted := next((c for c in written if c == "\0" or "\ud800" <= c <= "\udfff"), ""):
                self._mistake(
                    node,
                    location,
                    f"has the character U+{ord(unwanted):04X}, which the server cannot keep",
                )
            return written
        self.written[location] = written
        try:
            value = self.loader.construct_object(node)
        except (ValueError, IndexError, KeyError):  # as in `!!int x`
            self._mistake(node, location, f"{shown(written)} is not a value of the type {kind}")
            return None
        misread = kind in ("int", "float") and (
            _OCTAL.fullmatch(written) or _SEXAGESIMAL.fullmatch(written)
        )
        if misread:
            self._mistake(
                node,
                location,
                f"{written} is {value} for YAML (digits after 0 are octal, after : base 60); "
                "quote it for text, or write the number plainly",
            )
        elif isinstance(value, float) and not math.isfinite(value):
            self._mistake(node, location, f"{written} is no finite number, and JSON has no others")
        elif isinstance(value, int | float) and not -NUMBER_LIMIT <= value < NUMBER_LIMIT:
            self._mistake(
                node,
                location,
                "is a number of more than 64 bits, with which the Prefect server cannot list its "
                "runs any more; quote it where text will do",
            )
        return value

    def _mistake(self, node: Any, location: Location, wrong: str) -> None:
        where = f"{dotted(location)}: " if location else ""
        self.mistakes.append(f"{where}{wrong} (line {_line(node)})")


def dotted(location: Location) -> str:
    """Return a place in the document as text, `a.b.0`."""
    return ".".join(str(part) for part in location)


def _line(node: Any) -> int:
    line: int = node.start_mark.line + 1
    return line


def _refuse_deep_nesting(text: str) -> None:
    """Count the levels in the parser's events, before libyaml builds the tree recursively."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_LIMIT:
            raise DocumentError(f"line {_line(event)}: is nested deeper than {DEPTH_LIMIT} levels")


def _not_yaml(error: yaml.YAMLError, text: str) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if isinstance(error, yaml.MarkedYAMLError) and "scanning an a" in (error.context or ""):
        mark = error.context_mark  # the * of an alias or & of an anchor; the other is behind it
    lines = text.splitlines() or [""]
    if mark is None:
        place = next(
            (i for i, c in enumerate(text) if not c.isprintable() and c not in "\r\n\t"), 0
        )
        line = text.count("\n", 0, place) + 1
        return f"line {line}: not YAML: {getattr(error, 'reason', error)}"
    number = min(mark.line, len(lines) - 1)  # the end of the text lies behind its last line
    content = lines[number]
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return f"line {number + 1}: is indented with a tab; YAML takes spaces only"
    problem = getattr(error, "problem", None) or ""
    if content[mark.column :][:1] in ("@", "`", "%", "&", "*"):
        problem += " (a text that starts with such a character needs quotes)"
    elif "mapping values" in problem:
        problem += " (a text with ': ' in it needs quotes; is the indentation right?)"
    elif "another document" in problem:
        problem = "a second document starts here (---); one file holds one flow"
    return f"line {number + 1}: not YAML: {problem}"
