import json
import re
from pathlib import Path

import pytest

import mlops

PROJECT = Path(__file__).parents[2]
FOLDERS = ("server", "flow_scheduler", "flow_agent", "ml_experimenter")


def dockerfile(folder: str) -> str:
    return (PROJECT / folder / "Dockerfile").read_text()


def stage(text: str, name: str) -> str:
    """Return a stage's instructions, without the comments after them."""
    (found,) = re.findall(
        rf"^FROM [^\n]+ AS {name}\n(.*?)(?=^FROM )", text, re.MULTILINE | re.DOTALL
    )
    return re.sub(r"\n\n#.*", "\n", str(found), flags=re.DOTALL).strip()


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_image_has_the_packages_version(folder: str) -> None:
    """The label says the version that the command line has."""
    assert f'image.version="{mlops.__version__}"' in dockerfile(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_images_are_built_alike(folder: str) -> None:
    """The stages that the images have in common differ in the lock's name only."""
    for name in ("builder", "code"):
        assert stage(dockerfile(folder), name) == stage(dockerfile("server"), name)
    bases = set(re.findall(r"^FROM (python:\S+)", "".join(map(dockerfile, FOLDERS)), re.MULTILINE))
    assert len(bases) == 1
    assert "# syntax=" not in dockerfile(folder)  # would need an image registry


def test_torch_is_one_layer() -> None:
    """The experimenter and the agent say the same about torch, so Docker builds and keeps one."""
    assert stage(dockerfile("flow_agent"), "torch") == stage(dockerfile("ml_experimenter"), "torch")


def test_jupyter_configuration_is_json() -> None:
    """JupyterLab would only warn about a file that it cannot read."""
    files = list((PROJECT / "ml_experimenter" / "jupyter").rglob("*.json"))
    assert files
    assert all(json.loads(file.read_text()) for file in files)
