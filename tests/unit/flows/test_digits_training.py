from pathlib import Path

from mlops.development.locks import locked_versions

PROJECT = Path(__file__).parents[3]


def test_torch_is_the_one_of_the_images() -> None:
    """The flow pins the PyTorch that the images bring along; tests/embedded runs it with that."""
    locked = locked_versions((PROJECT / "requirements" / "torch.txt").read_text())
    flow = (PROJECT / "flows" / "digits_torch" / "requirements.txt").read_text()
    assert locked_versions(flow)["torch"] == locked["torch"]
