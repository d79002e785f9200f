import re
from pathlib import Path

import pytest

from mlops.scheduler.spec import read_spec

PROJECT = Path(__file__).parents[2]
EXAMPLES = [
    (name, text)
    for name in ("README.md", "docs/flow-yaml.md")
    for text in re.findall(r"```yaml\n(.*?)```", (PROJECT / name).read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("document", "example"), EXAMPLES)
def test_example_in_the_documents_is_accepted(document: str, example: str, tmp_path: Path) -> None:
    """Every flow.yaml that the documents show is a good one."""
    (tmp_path / "flow.yaml").write_text(example)
    (tmp_path / "prefect_flow.py").write_text("")
    assert read_spec(tmp_path).content, document


def test_links_between_the_documents_lead_somewhere() -> None:
    """No relative link in a document is dead."""
    documents = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
    dead = [
        f"{document.name}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert dead == []
