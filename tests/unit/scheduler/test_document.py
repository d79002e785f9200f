from pathlib import Path
from typing import Any

import pytest

from mlops.scheduler.document import DocumentError, read_document


def write(folder: Path, text: str) -> Path:
    path = folder / "flow.yaml"
    path.write_bytes(text.encode())
    return path


def laughs(levels: int) -> str:
    """Return a document whose few lines stand for 9 ** levels values."""
    nine = [", ".join(["x" if level == 0 else f"*a{level - 1}"] * 9) for level in range(levels)]
    return "\n".join(f"a{level}: &a{level} [{values}]" for level, values in enumerate(nine))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: yes", {"a": True}),
        ("a: 1_000", {"a": 1000}),
        ("a: 1e-3", {"a": 0.001}),
        ("a: -1.5E+3", {"a": -1500.0}),
        ("a: '010'", {"a": "010"}),
        ("a: 2026-11-21", {"a": "2026-11-21"}),
        ("a: 2026-11-21 10:00:00", {"a": "2026-11-21 10:00:00"}),
        ("a: =", {"a": "="}),
        ("\ufeffa: é", {"a": "é"}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("x: &x {p: 1, q: 2}\na: {<<: *x, q: 3}", {"x": {"p": 1, "q": 2}, "a": {"p": 1, "q": 3}}),
        (
            "x: &x {p: 1}\ny: &y {p: 2, z: 1}\na: {<<: [*x, *y]}",
            {"x": {"p": 1}, "y": {"p": 2, "z": 1}, "a": {"p": 1, "z": 1}},
        ),
    ],
)
def test_values_are_what_people_mean(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    """Dates stay text, exponents are numbers, and anchors and merge keys work."""
    document = read_document(write(tmp_path, text))
    assert (document.content, document.mistakes) == (expected, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "a: is there twice, first in line 1 (line 3)"),
        ("a:\n  b: {c: 1, c: 2}", "a.b.c: is there twice, first in line 2 (line 2)"),
        ("a: 010", "a: 010 is 8 for YAML (digits after 0 are octal"),
        ("a: [0, 1:30]", "a.1: 1:30 is 90 for YAML"),
        ("a: .nan", "a: .nan is no finite number, and JSON has no others (line 1)"),
        ("a: -.inf", "a: -.inf is no finite number"),
        ("a: 1e999", "a: 1e999 is no finite number"),
        (f"a: {2**63}", "a: is a number of more than 64 bits"),
        ("a: 1e20", "a: is a number of more than 64 bits"),
        ("a: -1e300", "a: is a number of more than 64 bits"),
        (f"a: {'9' * 5000}", "is not a value of the type int (line 1)"),
        ("a: !!set {x}", "a: set is no kind of value here"),
        ("a: !!binary aGk=", "a: binary is no kind of value here"),
        ("a: !!python/object:os.system x", "a: python/object:os.system is no kind of value here"),
        ("a: !!timestamp 2026-11-21", "a: timestamp is no kind of value here"),
        ("a: !!int x", "a: 'x' is not a value of the type int (line 1)"),
        ("on: 1", "the key on is not text for YAML (bool); quote it (line 1)"),
        ("a: {1: 2}", "a: the key 1 is not text for YAML (int); quote it"),
        ("? [a]\n: 1", "has a key that is not text"),
        ("a: {<<: 3}", "a: << takes a mapping, or a list of mappings"),
        ('a: "b\\0"', "a: has the character U+0000"),
    ],
)
def test_silent_trap_is_told(tmp_path: Path, text: str, expected: str) -> None:
    """What YAML would change in silence, or JSON cannot carry, is a mistake with its line."""
    (mistake,) = read_document(write(tmp_path, text)).mistakes
    assert expected in mistake
    assert len(mistake) < 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; required: deployment"),
        ("# nothing yet\n", "is empty"),
        ("a:\n\tb: 1", "line 2: is indented with a tab; YAML takes spaces only"),
        ("a: 1\nb: \x07", "line 2: not YAML: control characters are not allowed"),
        ("a: 1\n---\nb: 2", "line 2: not YAML: a second document starts here (---)"),
        ("a: @x", "line 1: not YAML: found character that cannot start any token (a text that"),
        ("a: *x", "line 1: not YAML: found undefined alias (a text that starts with such"),
        ("a: * * * * *", "alphabetic or numeric character (a text that starts with such"),
        ("a: 1\nb: */5 * * * *", "numeric character (a text that starts with such a character"),
        ("a: & b", "numeric character (a text that starts with such a character needs quotes)"),
        ("a: b: c", "line 1: not YAML: mapping values are not allowed in this context (a text"),
        ("a: [", "line 1: not YAML"),
        ("x: '" + "y" * 300_000 + "'", "has more than 256 KiB"),
        ("[" * 200_000, "line 1: is nested deeper than 50 levels"),
        ("a: &x [*x]", "is nested too deep or has too many values"),
        ("a: &x\n  <<: *x", "is nested too deep or has too many values"),
        (laughs(9), "is nested too deep or has too many values"),
    ],
    ids=lambda value: value[:20],
)
def test_unreadable_file_is_told(tmp_path: Path, text: str, expected: str) -> None:
    """What is not YAML, or too much of it, is refused at once, with the line."""
    with pytest.raises(DocumentError) as caught:
        read_document(write(tmp_path, text))
    assert expected in str(caught.value)


def test_other_encoding_is_told(tmp_path: Path) -> None:
    """A file that is not UTF-8 is refused with the line."""
    path = tmp_path / "flow.yaml"
    path.write_bytes("a: b\nc: é".encode("latin-1"))
    with pytest.raises(DocumentError, match="line 2: not UTF-8 text"):
        read_document(path)
