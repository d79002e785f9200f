from pathlib import Path

import pytest

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
        rrule="FREQ=WEEKLY;BYDAY=MO,WE,FR;UNTIL=20270730T120000", timezone="Asia/Taipei"
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("interval", IntervalSchedule(seconds=60, timezone="Asia/Taipei")),
        ("cron", CronSchedule(cron="1 * * * *", timezone="Asia/Taipei")),
    ],
)
def test_only_the_chosen_method_counts(tmp_path: Path, method: str, expected: object) -> None:
    """The values of the other methods are left alone."""
    text = SAMPLE.replace("method: rrule", f"method: {method}")
    assert read_spec(write_flow(tmp_path, text, code="prefect_flow.py")).schedule == expected


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
        (DEPLOYMENT + "color: red\n", "color: unknown key; allowed: RFS_NAME, deployment,"),
        (DEPLOYMENT.replace("d\n", "3\n"), "deployment.deploy_name: 3 (int) is not text; allowed:"),
        (DEPLOYMENT.replace("flow.py", "gone.py"), "gone.py is missing; allowed: flow.py"),
        (DEPLOYMENT.replace("flow.py", "../x.py"), "'../x.py' is outside of the flow folder"),
        ("deployment: 3\n", "deployment: 3 (int) is not a mapping; allowed: flow_py_name,"),
        ("[]", "is not a mapping; allowed: RFS_NAME, deployment"),
        ("a: [", "line 1: not YAML"),
        ("scheduler:\n  method: cron\n", "scheduler.cron: is missing; required by method: cron"),
        (DEPLOYMENT + "gpus: -1\n", "gpus: input should be greater than or equal to 0"),
        (DEPLOYMENT + "python: 3.12\n", "python: 3.12 (float) is not text; allowed: text (quote"),
        (DEPLOYMENT + "requirements: no.txt\n", "no.txt is missing"),
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


def test_folder_of_flows_is_searched_one_level_deep(tmp_path: Path) -> None:
    """A folder stands for itself or for the flow folders in it."""
    one = write_flow(tmp_path / "one", DEPLOYMENT)
    two = write_flow(tmp_path / "two", DEPLOYMENT, at="config/flow.yaml")
    (tmp_path / "notes").mkdir()
    assert find_flow_folders(tmp_path) == [one, two]
    assert find_flow_folders(two) == [two]
