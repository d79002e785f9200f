from pathlib import Path

import pytest
from ordinary_rights import ordinary_rights

from mlops.errors import MlopsError
from mlops.scheduler.schedule import CronSchedule, IntervalSchedule, RruleSchedule
from mlops.scheduler.spec import FlowYamlError, find_flow_folders, read_spec

# The format that is in use already, as it stands in the wild.
SAMPLE = """\
RFS_NAME: minio                    # name of the remote file system; optional
deployment:
  flow_py_name: prefect_flow.py
  flow_name: main
  deploy_name: model_training
  pool_name: default-agent-pool
  queue_name: ml
scheduler:
  method: rrule
  timezone: Asia/Taipei
  interval: 60
  cron: '1 * * * *'
  rrule: 'FREQ=WEEKLY;BYDAY=MO,WE,FR;UNTIL=20270730T040000Z'
"""
DEPLOYMENT = """\
deployment:
  flow_py_name: flow.py
  flow_name: main
  deploy_name: d
"""


def write_flow(folder: Path, text: str, *, at: str = "flow.yaml", code: str = "flow.py") -> Path:
    """Make a flow folder with this flow.yaml."""
    (folder / at).parent.mkdir(parents=True, exist_ok=True)
    (folder / at).write_text(text)
    (folder / code).write_text("from prefect import flow\n\n@flow\ndef main():\n    pass\n")
    return folder


def mistakes_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(FlowYamlError) as caught:
        read_spec(write_flow(folder, text))
    assert all(line.startswith(f"{folder}/flow.yaml: ") for line in str(caught.value).splitlines())
    return caught.value.mistakes


@pytest.mark.parametrize("place", ["flow.yaml", "config/flow.yaml"])
def test_sample_is_accepted_as_it_is(tmp_path: Path, place: str) -> None:
    """A file of the format in use is accepted at both places, with UNTIL in its own zone."""
    spec = read_spec(write_flow(tmp_path, SAMPLE, at=place, code="prefect_flow.py"))
    assert spec.content.deployment.queue_name == "ml"
    assert spec.schedule == RruleSchedule(
        rrule="DTSTART:20200101T000000\nRRULE:FREQ=WEEKLY;BYDAY=MO,WE,FR;UNTIL=20270730T120000",
        timezone="Asia/Taipei",
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("interval", IntervalSchedule(seconds=60, local_timezone="Asia/Taipei")),
        ("cron", CronSchedule(cron="1 * * * *", timezone="Asia/Taipei")),
    ],
)
def test_only_the_chosen_method_counts(tmp_path: Path, method: str, expected: object) -> None:
    """The values of the other methods are left alone."""
    text = SAMPLE.replace("method: rrule", f"method: {method}")
    assert read_spec(write_flow(tmp_path, text, code="prefect_flow.py")).schedule == expected


@pytest.mark.parametrize(
    ("method", "others"),
    [
        ("cron: '0 9 * * *'", "interval: 1:30, rrule: {a: 010}"),
        ("interval: 60", "cron: 010, rrule: [.nan]"),
        ("rrule: FREQ=DAILY", "cron: !!binary aGk=, interval: 99999999999999999999"),
    ],
)
def test_value_that_is_not_used_may_be_anything(tmp_path: Path, method: str, others: str) -> None:
    """What YAML makes of the values of the other methods is no mistake."""
    name = method.partition(":")[0]
    text = f"{DEPLOYMENT}scheduler: {{method: {name}, {method}, {others}}}\n"
    assert read_spec(write_flow(tmp_path, text)).schedule is not None
    (told,) = mistakes_of(
        tmp_path, text.replace(others, f"{others}, {others.partition(':')[0]}: 1")
    )
    assert "is there twice" in told


def test_scheduler_may_be_left_out(tmp_path: Path) -> None:
    """A flow without a scheduler section has no schedule."""
    assert read_spec(write_flow(tmp_path, DEPLOYMENT)).schedule is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            DEPLOYMENT.replace("flow_name", "flow_nam"),
            "deployment.flow_nam: unknown key, did you mean flow_name?; allowed: flow_py_name,",
        ),
        (DEPLOYMENT + "param: {}\n", "param: unknown key, did you mean parameters?; allowed: RFS_"),
        (DEPLOYMENT + "rfs_name: x\n", "rfs_name: unknown key, did you mean RFS_NAME?; allowed:"),
        (DEPLOYMENT + "Tag: [x]\n", "Tag: unknown key, did you mean tags?; allowed: RFS_NAME"),
        (DEPLOYMENT + "tags: ['']\n", "tags.0: is empty; required: labels to find it by"),
        (DEPLOYMENT + "color: red\n", "color: unknown key; allowed: RFS_NAME, deployment,"),
        (DEPLOYMENT.replace("d\n", "3\n"), "deployment.deploy_name: 3 (int) is not text; allowed:"),
        (DEPLOYMENT.replace("flow.py", "gone.py"), "gone.py is missing; allowed: flow.py"),
        (DEPLOYMENT.replace("flow.py", "../x.py"), "'../x.py' is outside of the flow folder"),
        ("deployment: 3\n", "deployment: 3 (int) is not a mapping; allowed: flow_py_name,"),
        ("[]", "is not a mapping; allowed: RFS_NAME, deployment"),
        ("a: [", "line 1: not YAML"),
        ("scheduler:\n  method: cron\n", "scheduler.cron: is missing; required by method: cron"),
        (DEPLOYMENT + "gpus: -1\n", "gpus: -1 (int) is too small; allowed: from 0"),
        (DEPLOYMENT + "python: 3.12\n", "python: 3.12 (float) is not text; allowed: text (quote"),
        (DEPLOYMENT + "requirements: no.txt\n", "no.txt is missing"),
        (DEPLOYMENT + "requirements: .\n", "is missing or no file"),
        (DEPLOYMENT + "requirements: ../x\n", "requirements: '../x' is outside of the flow folder"),
        (DEPLOYMENT + f"requirements: {'x' * 300}\n", "is missing"),
        (DEPLOYMENT.replace("flow.py", "flow.txt"), "allowed: a file whose name ends in .py"),
        (DEPLOYMENT.replace("flow.py", '"a\\0.py"'), "has the character U+0000"),
        (DEPLOYMENT.replace("d\n", "on\n"), "deploy_name: on (bool) is not text; allowed: text (q"),
        (DEPLOYMENT.replace("d\n", "1_000\n"), "deploy_name: 1_000 (int) is not text"),
        (DEPLOYMENT.replace("d\n", "1e3\n"), "deploy_name: 1e3 (float) is not text"),
        (DEPLOYMENT.replace("d\n", "\n"), "deploy_name: is missing; required: name of the deploy"),
        (DEPLOYMENT.replace("d\n", "''\n"), "deploy_name: is empty; required: name of the deploy"),
        (DEPLOYMENT.replace("d\n", "a/b\n"), "deploy_name: 'a/b' has the character '/'; allowed:"),
        (DEPLOYMENT + "  pool_name: Prefect x\n", "pool_name: 'Prefect x' starts with 'prefect'"),
        (DEPLOYMENT + "  queue_name: a?\n", "deployment.queue_name: 'a?' has the character '?'"),
        (DEPLOYMENT + "python: 3.10\n", "python: 3.10 (float) is not text; allowed: text (quote"),
        (
            DEPLOYMENT + "python: 'three'\n",
            "python: 'three' is not a version; allowed: as in \"3.12",
        ),
        (DEPLOYMENT + "python: '3.7'\n", "python: '3.7' is too old for Prefect 3; allowed: from"),
        (DEPLOYMENT + "deployment:\n", "deployment: is there twice"),
        ("deployment:\n", "deployment: is missing; required: flow_py_name, flow_name, deploy_name"),
        (DEPLOYMENT + "tags: night\n", "tags: 'night' is not a list; allowed: a list, as in"),
        (DEPLOYMENT + "tags: [a, 2]\n", "tags.1: 2 (int) is not text"),
        (DEPLOYMENT + "tags: [a, b, a]\n", "tags: 'a' is there twice"),
        (DEPLOYMENT + "gpus: two\n", "allowed: how many GPUs a run needs, 0 to 1024"),
        (DEPLOYMENT + "memory: 4\n", "memory: 4 (int) is not text; allowed: text (quote it)"),
        (
            DEPLOYMENT + "memory: 4GB3\n",
            "memory: '4GB3' is not an amount of memory; allowed: as in",
        ),
        (DEPLOYMENT + "memory: 1MB\n", "memory: '1MB' is too little for any run; allowed: from"),
        (DEPLOYMENT + "gpus: 1.5\n", "gpus: 1.5 (float) is not a whole number"),
        (DEPLOYMENT + "gpus: yes\n", "gpus: yes (bool) is not a whole number"),
        (
            DEPLOYMENT + "concurrency_limit: 0\n",
            "concurrency_limit: 0 (int) is too small; allowed: f",
        ),
        (DEPLOYMENT + "concurrency_limit: 3000000000\n", "is too large; allowed: up to 2147483647"),
        (
            DEPLOYMENT + "warm: [torch, a-b]\n",
            "warm.1: 'a-b' is not a module; allowed: names as in",
        ),
        (DEPLOYMENT + "parameters: [1]\n", "parameters: [1] (list) is not a mapping"),
        (DEPLOYMENT + "description: [1]\n", "description: [1] (list) is not text"),
        (DEPLOYMENT + "gpus: 1\ngpus: 2\n", "gpus: is there twice, first in line 5 (line 6)"),
        (
            DEPLOYMENT + "scheduler: {method: interval, interval: 1:30}\n",
            "scheduler.interval: 1:30 is 90 for YAML",
        ),
        (DEPLOYMENT + "gpus: !!set {1}\n", "gpus: set is no kind of value here"),
    ],
)
def test_mistake_names_path_and_allowed_values(tmp_path: Path, text: str, expected: str) -> None:
    """A mistake is told with its dotted path and what would be allowed."""
    assert any(expected in mistake for mistake in mistakes_of(tmp_path, text))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Mistakes in different sections come in one report."""
    text = """\
deployment:
  flow_name: main
  deploy_nam: x
scheduler:
  method: often
  timezone: Asia/Taipeh
"""
    told = mistakes_of(tmp_path, text)
    assert [mistake.partition(":")[0] for mistake in told] == [
        "deployment.flow_py_name",
        "deployment.deploy_name",
        "deployment.deploy_nam",
        "scheduler.method",
        "scheduler.timezone",
    ]
    assert "allowed: interval, cron, rrule" in told[3]
    assert "Asia/Taipei" in told[4]


def test_optional_keys_are_read(tmp_path: Path) -> None:
    """Every optional key arrives as it was written, also through anchors and with a BOM."""
    text = (
        DEPLOYMENT
        + """\
parameters: {rates: &rates {high: 1e-3, day: 2026-11-21}, low: {<<: *rates, high: 5}}
description: Trains.
tags: [a, "on"]
gpus: 2
concurrency_limit: 3
python: "3.12"
requirements: flow.py
warm: [sklearn.svm]
"""
    )
    folder = write_flow(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))
    content = read_spec(folder).content
    assert content.parameters == {
        "rates": {"high": 0.001, "day": "2026-11-21"},
        "low": {"high": 5, "day": "2026-11-21"},
    }
    assert content.model_dump(exclude={"deployment", "parameters"}, exclude_unset=True) == {
        "description": "Trains.",
        "tags": ("a", "on"),
        "gpus": 2,
        "concurrency_limit": 3,
        "python": "3.12",
        "requirements": "flow.py",
        "warm": ("sklearn.svm",),
    }


def test_key_without_a_value_is_left_out(tmp_path: Path) -> None:
    """What is blank has its default, in every section."""
    blank = "tags:\nparameters:\nwarm:\ngpus:\nrequirements:\nscheduler:\ndescription:\n"
    text = f"{DEPLOYMENT}  pool_name:\n{blank}"
    content = read_spec(write_flow(tmp_path, text)).content
    assert content == read_spec(write_flow(tmp_path, DEPLOYMENT)).content


def test_consequence_of_a_mistake_is_not_told_as_another(tmp_path: Path) -> None:
    """A value that YAML itself cannot give is told once."""
    (told,) = mistakes_of(tmp_path, DEPLOYMENT + "gpus: !!set {1}\n")
    assert told.endswith("(line 5)")


def test_folder_of_flows_is_searched_one_level_deep(tmp_path: Path) -> None:
    """A folder stands for itself or for the flow folders in it."""
    one = write_flow(tmp_path / "one", DEPLOYMENT)
    two = write_flow(tmp_path / "two", DEPLOYMENT, at="config/flow.yaml")
    (tmp_path / "notes").mkdir()
    assert find_flow_folders(tmp_path) == [one, two]
    assert find_flow_folders(two) == [two]
    assert find_flow_folders(tmp_path / "notes") == []
    with pytest.raises(MlopsError, match="no such folder"):
        find_flow_folders(tmp_path / "gone")


def test_folder_that_cannot_be_read_is_left_to_who_reads_it(tmp_path: Path) -> None:
    """It may be a flow and is listed with the others, unless it belongs to the file system."""
    one = write_flow(tmp_path / "one", DEPLOYMENT)
    locked = write_flow(tmp_path / "locked", DEPLOYMENT)
    (tmp_path / "lost+found").mkdir()
    for path in (locked, tmp_path / "lost+found"):
        path.chmod(0)
    with ordinary_rights():
        assert find_flow_folders(tmp_path) == [locked, one]
        for unreadable in (read_spec, find_flow_folders):
            with pytest.raises(MlopsError, match=f"{locked}: cannot be read: Permission") as caught:
                unreadable(locked)
            assert "the right to read it" in caught.value.hint
    locked.chmod(0o755)
