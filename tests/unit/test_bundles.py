import pytest

from mlops.bundles import parse_prefix, prefix_of


def test_prefix_names_the_hash() -> None:
    """The hash can be read back from a prefix, and from nothing else."""
    content_hash = "0" * 64
    assert parse_prefix(prefix_of("my flow/ü", content_hash)) == content_hash
    assert parse_prefix(f"flows/x/{content_hash}/more") is None
    assert parse_prefix("somewhere/else") is None


@pytest.mark.parametrize(
    "name", ["a b", "ü", "..", "x" * 300, "é" * 127, "$(touch x)", "<b>", "a%20b", "~"]
)
def test_any_folder_name_makes_a_prefix_of_its_own(name: str) -> None:
    """Any name becomes one part of a key, short enough for a file's name, in plain characters."""
    _, folder, content_hash = prefix_of(name, "0" * 64).split("/")
    assert 0 < len(folder) <= 128
    assert folder.isascii()
    assert folder not in {".", ".."}
    assert not set(folder) & set(" $()<>")
    assert content_hash == "0" * 64


def test_long_names_stay_apart() -> None:
    """Two long names that begin alike have different prefixes."""
    assert prefix_of("x" * 200 + "a", "0" * 64) != prefix_of("x" * 200 + "b", "0" * 64)
