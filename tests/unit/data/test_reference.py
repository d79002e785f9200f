import pytest

from mlops.data.reference import Reference
from mlops.errors import UsageError

HASH = "22a1a2931c8370d3aeedd7183606fd7f"


@pytest.mark.parametrize(
    ("text", "path", "is_folder"),
    [
        (f"s3://dvc/green_taxi@{HASH}.dir", "green_taxi", True),
        (f"s3://dvc/team/green taxi@{HASH}", "team/green taxi", False),
        (f"s3://dvc@{HASH}", "", False),
    ],
)
def test_reference_is_read_and_written(text: str, path: str, is_folder: bool) -> None:
    """A reference is the same after reading and writing."""
    reference = Reference.parse(text)
    assert (str(reference), reference.path, reference.is_folder) == (text, path, is_folder)
    assert reference.label == "mlops.data.22a1a2931c83"


@pytest.mark.parametrize(
    "text",
    [
        "s3://dvc/green_taxi",
        "s3://dvc/green_taxi@v1",
        f"s3://dvc/green_taxi@{HASH}.zip",
        f"s3://dvc/green_taxi@{HASH[:-1]}G",
        f"s3://dvc/green_taxi@{HASH}/../x",
        f"gs://dvc/green_taxi@{HASH}",
        f"s3:///green_taxi@{HASH}",
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    """Anything else is refused with what a reference looks like."""
    with pytest.raises(UsageError, match="not a data reference") as error:
        Reference.parse(text)
    assert "mlops data show" in error.value.hint
