import pytest

from mlops.scheduler.names import LENGTH_LIMIT, name_mistake, pool_name_mistake, tag_mistake


@pytest.mark.parametrize(
    "name",
    ["two words", "Ünï-訓練", "a.b", "$(x) `y`", "quote'\"s", "a\\b", "{{ a }}", "🙂", "x" * 200],
)
def test_name_that_the_server_finds_again_is_good(name: str) -> None:
    """Spaces, other alphabets, dots, quotes and shell characters are allowed."""
    assert name_mistake(name) is None
    assert pool_name_mistake(name) is None
    assert tag_mistake(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"a{character}b", f"has the character {character!r}") for character in "/%&<>?#"),
        ("", "has nothing to read"),
        (" ", "has nothing to read"),
        ("..", "has nothing to read"),
        ("'\"", "has nothing to read"),
        (" a", "starts or ends with a space"),
        ("a ", "starts or ends with a space"),
        ("a\nb", "cannot be seen (U+000A)"),
        ("a\0", "cannot be seen (U+0000)"),
        ("a\x1b[31m", "cannot be seen (U+001B)"),
        ("a\u202eb", "cannot be seen (U+202E)"),
        ("a\u00a0b", "cannot be seen (U+00A0)"),
        ("a\ud800b", "cannot be seen (U+D800)"),
        ("x" * (LENGTH_LIMIT + 1), "has 201 characters; allowed: at most 200"),
    ],
)
def test_name_that_would_be_lost_is_refused(name: str, expected: str) -> None:
    """What the server refuses, or people cannot find again, is named."""
    assert expected in (name_mistake(name) or "")


def test_tags_may_have_what_addresses_may_not() -> None:
    """A tag never stands in an address, so only what cannot be seen is refused in it."""
    assert tag_mistake("team/vision & <speech> #1?") is None
    assert "cannot be seen" in (tag_mistake("a\tb") or "")


def test_reserved_pool_name_is_refused() -> None:
    """Prefect keeps pool names that start with its own for itself."""
    assert "starts with 'prefect'" in (pool_name_mistake("Prefect Agents") or "")
