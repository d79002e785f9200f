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


def test_links_between_the_documents_lead_somewhere() -> None:
    """No relative link in a document is dead."""
    documents = [PROJECT / "README.md", *PROJECT.glob("*/*.md")]
    dead = [
        f"{document.relative_to(PROJECT)}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert dead == []
