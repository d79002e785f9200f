"""docs/flow-yaml.md and `flows new`, held against a running platform."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow
from embedded.registered import MANIFEST

from mlops.scheduler.job_variables import OURS

DOCUMENT = Path(__file__).parents[2] / "docs" / "flow-yaml.md"
# A block that is meant to be wrong comes after this mark, its mistakes in a text block below it.
BLOCK = re.compile(
    r"(?P<refused><!-- refused -->\n)?```yaml\n(?P<text>.*?)```(\n```text\n(?P<mistakes>.*?)```)?",
    re.DOTALL,
)
DEPLOYMENT = """\
deployment:
  flow_py_name: flow.py
  flow_name: main
  deploy_name: {name}
"""
# What the server holds of the examples with a schedule, by the deployments' names.
SCHEDULES = {
    "model_training": {
        "rrule": "DTSTART:20200101T000000\nRRULE:FREQ=WEEKLY;BYDAY=MO,WE,FR;UNTIL=20270730T120000",
        "timezone": "Asia/Taipei",
    },
    "holidays_off": {
        "rrule": "DTSTART:20260105T090000\n"
        "RRULE:FREQ=WEEKLY;BYDAY=MO,TH;UNTIL=21000101T005959\n"
        "EXDATE:20261224T090000",
        "timezone": "Europe/Berlin",
    },
}


class Example(NamedTuple):
    """A yaml block of the document, and the lines that a refusal must have; none: it is good."""

    name: str
    text: str
    mistakes: tuple[str, ...]


def read_examples() -> list[Example]:
    text = DOCUMENT.read_text()
    examples = []
    for block in BLOCK.finditer(text):
        mistakes = (block["mistakes"] or "").splitlines()
        assert bool(block["refused"]) == bool(mistakes), block[0]
        name = f"docs line {text.count(chr(10), 0, block.start('text'))}"
        examples.append(Example(name, block["text"], tuple(mistakes)))
    assert len(examples) == text.count("```yaml")
    return examples


EXAMPLES = read_examples()
GOOD = [example for example in EXAMPLES if not example.mistakes]
REFUSED = [example for example in EXAMPLES if example.mistakes]


def write_example(root: Path, example: Example) -> Path:
    """Make a folder of a block, with the deployment that a partial one lacks and what it names."""
    folder = root / example.name
    folder.mkdir(parents=True)
    text = example.text
    if not re.search(r"^deployment:", text, re.MULTILINE):
        text += DEPLOYMENT.format(name="example")
    (folder / "flow.yaml").write_text(text)
    content: dict[str, Any] = yaml.safe_load(text)
    section = content["deployment"]
    files = {
        content.get("requirements", "requirements.txt"): "",
        section["flow_py_name"]: (
            "from prefect import flow\n\n\n"
            f"@flow(name={example.name!r})\n"
            f"def {section.get('flow_name', 'main')}("
            f"{', '.join(f'{name}=None' for name in content.get('parameters', {}))}):\n    pass\n"
        ),
    }
    for path, written in files.items():
        if not path.startswith(".."):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(written)
    return folder


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


@pytest.fixture(scope="module")
def registered(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """The good examples, all registered by one command."""
    root = tmp_path_factory.mktemp("documented")
    for example in GOOD:
        write_example(root, example)
    return platform.cli("flows", "register", str(root), "--json")


def test_all_good_examples_are_registered(
    registered: subprocess.CompletedProcess[str],
) -> None:
    """The document's examples are registered without a mistake."""
    assert registered.returncode == 0, registered.stderr


@pytest.mark.parametrize("example", GOOD, ids=lambda example: example.name)
def test_example_arrives_on_the_server(
    registered: subprocess.CompletedProcess[str], servers: Servers, example: Example
) -> None:
    """What an example says is what its deployment has."""
    assert registered.returncode == 0
    content = yaml.safe_load(example.text)
    section = content.get("deployment", {"deploy_name": "example"})
    path = f"/deployments/name/{example.name}/{section['deploy_name']}"
    deployment = servers.prefect.get(path).json()
    for key in ("description", "tags"):
        if key in content:
            wanted = content[key]
            assert deployment[key] == (sorted(wanted) if key == "tags" else wanted)
    parameters = json.loads(
        json.dumps(content.get("parameters", {}), default=lambda date: date.isoformat())
    )
    if "rate" in parameters:
        parameters["rate"] = float(parameters["rate"])  # 1e-3 is text for PyYAML
    assert deployment["parameters"] == parameters
    assert deployment["work_pool_name"] == section.get("pool_name", "default-agent-pool")
    assert deployment["work_queue_name"] == section.get("queue_name", "default")
    expected = [SCHEDULES[section["deploy_name"]]] if "scheduler" in content else []
    assert [each["schedule"] for each in deployment["schedules"]] == expected
    (pull_step,) = deployment["pull_steps"][0].values()
    manifest = json.loads(servers.read(pull_step["bucket"], f"{pull_step['folder']}/{MANIFEST}"))
    assert manifest["needs"] == {
        "requirements": content.get("requirements", "requirements.txt"),
        "python": content.get("python"),
        "gpus": content.get("gpus", 0),
        "warm": content.get("warm", []),
    }
    assert deployment["job_variables"] == {key: content[key] for key in OURS if key in content}
    limit = deployment["global_concurrency_limit"]
    assert (limit and limit["limit"]) == content.get("concurrency_limit")


@pytest.mark.parametrize("example", REFUSED, ids=lambda example: example.name)
def test_wrong_example_is_refused_as_the_document_says(
    platform: Platform, tmp_path: Path, example: Example
) -> None:
    """An example that is meant to be wrong is refused with the lines below it."""
    folder = write_example(tmp_path, example)
    done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 1
    for mistake in example.mistakes:
        assert f"{folder}/flow.yaml: {mistake}" in done.stderr


# What names.py calls good; the server must find each again.
NAMES = [
    "two words",
    "Ünï-訓練",
    "a.b",
    "$(x) `y`",
    "quote'\"s",
    "a\\b",
    "{{ a }}",
    "🙂",
    "x" * 200,
]


def test_unusual_names_are_found_again(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Flows, deployments, queues, pools and tags of unusual names are registered and listed."""
    for number, name in enumerate(NAMES):
        quoted = json.dumps(name, ensure_ascii=False)
        more = f"  pool_name: {quoted}\n  queue_name: {quoted}\ntags: [{quoted}]\n"
        folder = write_flow(tmp_path / f"named {number}", "pass")
        (folder / "flow.yaml").write_text(DEPLOYMENT.format(name=quoted) + more)
        code = (folder / "flow.py").read_text().replace(f'"{folder.name}"', repr(name))
        (folder / "flow.py").write_text(code)
    done = platform.cli("flows", "register", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(platform.cli("flows", "list", "--json").stdout)}
    again = platform.cli("flows", "register", str(tmp_path), "--json")
    assert {each["action"] for each in json.loads(again.stdout)} == {"unchanged"}
    for name in NAMES:
        assert rows[f"{name}/{name}"]["work_queue"] == name
        deployment = servers.deployment(name)
        assert (deployment["work_pool_name"], deployment["tags"]) == (name, [name])


def test_new_flow_runs(platform: Platform, servers: Servers, tmp_path: Path) -> None:
    """A new folder registers and runs as it is, and its metric is in MLflow."""
    name = 'my "first" flow'
    made = platform.cli("flows", "new", f"{tmp_path}/{name}", "--json")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    done = platform.cli("flows", "register", report["folder"], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["name"] == report["name"]
    run = platform.cli("flows", "run", report["name"], "--follow", "--param", "steps=3")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "after 3 steps" in run.stdout
    found = servers.mlflow.get("/experiments/get-by-name", params={"experiment_name": name})
    experiment = found.raise_for_status().json()["experiment"]["experiment_id"]
    runs = servers.mlflow.post("/runs/search", json={"experiment_ids": [experiment]}).json()["runs"]
    (metric,) = runs[0]["data"]["metrics"]
    assert (metric["key"], metric["step"]) == ("loss", 2)
    assert runs[0]["info"]["status"] == "FINISHED"


def test_new_flow_in_the_watched_folder_is_registered(platform: Platform, servers: Servers) -> None:
    """A name alone means FLOW_DIR, whose scheduler registers the new folder by itself."""
    assert platform.cli("flows", "new", "brand-new").returncode == 0
    path = "/deployments/name/brand-new/brand-new"
    wait_for(lambda: servers.prefect.get(path).status_code == 200, 20)
