import pytest

from mlops.scheduler.wording import shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("None", "'None'"),
        (["a", 1], "['a', 1]"),
        ("x" * 99, f"'{'x' * 59}…"),
    ],
)
def test_value_is_shown_as_in_the_file_and_shortened(value: object, expected: str) -> None:
    """Messages spell values as YAML does, and none is longer than its message."""
    assert shown(value) == expected
