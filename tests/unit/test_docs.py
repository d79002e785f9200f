import re
from pathlib import Path

import pytest

from mlops.scheduler.spec import read_spec

PROJECT = Path(__file__).parents[2]
# Those of docs/flow-yaml.md are registered in embedded/test_documented_flows.py.
EXAMPLES = re.findall(r"```yaml\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_in_the_readme_is_accepted(example: str, tmp_path: Path) -> None:
    """Every flow.yaml that the README shows is a good one."""
    (tmp_path / "flow.yaml").write_text(example)
    (tmp_path / "prefect_flow.py").write_text("")
    assert read_spec(tmp_path).content


def links() -> list[tuple[Path, Path]]:
    """Return the documents' relative links: the document, and where it leads."""
    return [
        (document, document.parent.joinpath(target).resolve())
        for document in (PROJECT / "README.md", *PROJECT.glob("*/*.md"))
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    ]


def test_links_between_the_documents_lead_somewhere() -> None:
    """No relative link in a document is dead."""
    assert [link for link in links() if not link[1].exists()] == []


def test_every_picture_is_shown() -> None:
    """No picture lies there that no document shows."""
    pictures = set((PROJECT / "docs" / "images").iterdir())
    assert pictures
    assert pictures - {target for _, target in links()} == set()
