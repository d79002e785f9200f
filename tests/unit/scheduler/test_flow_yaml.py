from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from unit.scheduler.test_spec import DEPLOYMENT, SAMPLE, write_flow

from mlops.scheduler.document import read_document
from mlops.scheduler.flow_yaml import json_schema
from mlops.scheduler.spec import FlowYamlError, read_spec

CRON = DEPLOYMENT + "scheduler: {method: cron, cron: '0 9 * * *'"
GOOD = [
    SAMPLE.replace("prefect_flow.py", "flow.py"),
    DEPLOYMENT,
    DEPLOYMENT + "scheduler:\n",
    DEPLOYMENT + "RFS_NAME: minio\n",
    DEPLOYMENT + "  pool_name: gpu pool\n  queue_name: 訓練\n",
    CRON + "}\n",
    CRON + ", interval: often, rrule: 3}\n",
    DEPLOYMENT + "scheduler: {method: interval, interval: 60, timezone: Asia/Taipei}\n",
    DEPLOYMENT + "scheduler: {method: rrule, rrule: FREQ=DAILY}\n",
    DEPLOYMENT + "parameters: {a: [1, null, {b: 2026-11-21}]}\n",
    DEPLOYMENT + "tags: [a/b, '1']\nwarm: [sklearn.svm, _x]\ngpus: 2\nconcurrency_limit: 1\n",
    DEPLOYMENT + "python: '3.12'\ndescription: x\nrequirements: flow.py\n",
    DEPLOYMENT + "python: '3.9.18'\n",
    DEPLOYMENT + "python: '3.100'\n",
    DEPLOYMENT + "gpus: 2.0\nconcurrency_limit: 1.0\nmemory: 4GiB\n",
    DEPLOYMENT + "scheduler: {method: interval, interval: 3600.0}\n",
    DEPLOYMENT + "scheduler: {method: interval, interval: 315360000}\n",
    DEPLOYMENT + "scheduler: {method: cron, cron: '  0 9  * * 1 ', interval: 010, rrule: .nan}\n",
    DEPLOYMENT + "warm: [importlib, a.import_]\n",
    DEPLOYMENT + "  pool_name:\n  queue_name:\nscheduler: {method: cron, cron: 0 9 * * *, rrule: ,"
    " timezone: }\nRFS_NAME:\nparameters:\ndescription:\ntags:\ngpus:\nconcurrency_limit:\n"
    "python:\nrequirements:\nwarm:\nlate:\n",
    DEPLOYMENT + "late: run_all\n",
]
BAD = [
    "deployment: 3\n",
    "{}\n",
    "deployment:\n",
    DEPLOYMENT.replace("  flow_name: main\n", ""),
    DEPLOYMENT + "colour: red\n",
    DEPLOYMENT + "  colour: red\n",
    DEPLOYMENT.replace("flow.py", "flow.txt"),
    DEPLOYMENT.replace("d\n", "a/b\n"),
    DEPLOYMENT.replace("d\n", "''\n"),
    DEPLOYMENT.replace("d\n", "3\n"),
    DEPLOYMENT.replace("d\n", "x" * 201 + "\n"),
    DEPLOYMENT + "  pool_name: a#b\n",
    DEPLOYMENT + "scheduler: {}\n",
    DEPLOYMENT + "scheduler: {method: often}\n",
    DEPLOYMENT + "scheduler: {method: cron}\n",
    DEPLOYMENT + "scheduler: {method: cron, cron: 9}\n",
    DEPLOYMENT + "scheduler: {method: cron, interval: 60}\n",
    DEPLOYMENT + "scheduler: {method: interval, interval: '60'}\n",
    DEPLOYMENT + "scheduler: {method: interval, interval: 0}\n",
    DEPLOYMENT + "scheduler: {method: rrule, cron: '0 9 * * *'}\n",
    CRON + ", colour: red}\n",
    CRON + ", timezone: ''}\n",
    DEPLOYMENT + "parameters: [1]\n",
    DEPLOYMENT + "tags: night\n",
    DEPLOYMENT + "tags: [a, a]\n",
    DEPLOYMENT + "tags: [1]\n",
    DEPLOYMENT + "gpus: -1\n",
    DEPLOYMENT + "gpus: two\n",
    DEPLOYMENT + "memory: 4\n",
    DEPLOYMENT + "memory: much\n",
    DEPLOYMENT + "concurrency_limit: 0\n",
    DEPLOYMENT + "python: 3.12\n",
    DEPLOYMENT + "python: '3.7'\n",
    DEPLOYMENT + "requirements: ''\n",
    DEPLOYMENT + "warm: [a-b]\n",
    DEPLOYMENT + "warm: torch\n",
    DEPLOYMENT + "warm: [import]\n",
    DEPLOYMENT + "warm: [a.class.b]\n",
    DEPLOYMENT + "late: never\n",
    DEPLOYMENT + "gpus: 1.5\n",
    DEPLOYMENT + "gpus: yes\n",
    DEPLOYMENT + "gpus: 1025\n",
    DEPLOYMENT + "python: '3.011'\n",
    DEPLOYMENT + "python: '3.12.01'\n",
    DEPLOYMENT + "python: '3'\n",
    DEPLOYMENT + "requirements: a\\b\n",
    DEPLOYMENT.replace("flow.py", "a\\flow.py"),
    DEPLOYMENT + "scheduler: {method: interval, interval: 315360001}\n",
    DEPLOYMENT + "scheduler: {method: interval, interval: 1.5}\n",
    DEPLOYMENT + "scheduler: {method: cron, cron: '* * *'}\n",
    DEPLOYMENT + "scheduler: {method: cron, cron: '0 0 9 * * *'}\n",
    DEPLOYMENT + "scheduler: {method: cron, cron: '@daily'}\n",
    DEPLOYMENT + "scheduler: {method: cron, cron: }\n",
    DEPLOYMENT + "scheduler: {method: }\n",
]
# What only the whole check knows: files, time zones, the meaning of a schedule, reserved names.
BEYOND_THE_SCHEMA = [
    DEPLOYMENT.replace("flow.py", "gone.py"),
    DEPLOYMENT + "requirements: gone.txt\n",
    CRON + ", timezone: Asia/Taipeh}\n",
    CRON.replace("0 9 * * *", "0 0 30 2 *") + "}\n",
    DEPLOYMENT + "  pool_name: prefect-x\n",
    DEPLOYMENT + "tags: [' a']\n",
]


def is_accepted(folder: Path, text: str) -> bool:
    try:
        read_spec(write_flow(folder, text))
    except FlowYamlError:
        return False
    return True


def is_valid(folder: Path, text: str) -> bool:
    """Return what an editor thinks of the file."""
    content = read_document(write_flow(folder, text) / "flow.yaml").content
    return bool(Draft202012Validator(json_schema()).is_valid(content))


@pytest.mark.parametrize("text", GOOD)
def test_schema_and_check_accept_the_same(tmp_path: Path, text: str) -> None:
    """What `flows check` accepts is good for editors too."""
    assert is_accepted(tmp_path, text)
    assert is_valid(tmp_path, text)


@pytest.mark.parametrize("text", BAD)
def test_schema_and_check_refuse_the_same(tmp_path: Path, text: str) -> None:
    """What `flows check` refuses for its form, editors underline."""
    assert not is_accepted(tmp_path, text)
    assert not is_valid(tmp_path, text)


@pytest.mark.parametrize("text", BEYOND_THE_SCHEMA)
def test_check_knows_more_than_the_schema(tmp_path: Path, text: str) -> None:
    """What only the folder or the meaning tells is left to `flows check`."""
    assert not is_accepted(tmp_path, text)
    assert is_valid(tmp_path, text)


def test_schema_describes_every_key() -> None:
    """The schema is a sound one of draft 2020-12, with a title and a text to show for each key."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        assert section["additionalProperties"] is False
        for key, field in section["properties"].items():
            assert field.get("title", key) == key  # a section has its own
            assert field["description"]
            assert field.get("default", "") is not None
            for example in field.get("examples", ()):
                assert Draft202012Validator({**field, "$defs": schema["$defs"]}).is_valid(example)
    # The ends of YAML and JSON meet: editors read the schema as either.
    assert yaml.safe_load(yaml.safe_dump(schema)) == schema
