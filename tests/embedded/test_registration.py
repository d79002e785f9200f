import hashlib
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow

CRON = "scheduler:\n  method: cron\n  timezone: Asia/Taipei\n  cron: '0 9 * * *'\n"


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def rows_of(platform: Platform, name: str) -> list[Any]:
    """Return the database's rows of the flow and deployment `name`, with their versions.

    Whether somebody serves a deployment is noted in its row by the server itself.
    """
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=platform.postgres_port,
        user="prefect",
        password=platform.credentials.prefect_db_password,
        dbname="prefect",
    )
    with closing(connection), connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT f.xmin::text, s.xmin::text, to_jsonb(d) - 'last_polled' - 'status'
            FROM deployment d JOIN flow f ON f.id = d.flow_id
            LEFT JOIN deployment_schedule s ON s.deployment_id = d.id WHERE d.name = %s
            """,
            (name,),
        )
        found: list[Any] = cursor.fetchall()
    assert found
    return found


def test_registration_writes_bundle_and_deployment(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """The code lies in S3 under its hash, and the deployment points there with its schedule."""
    folder = write_flow(
        tmp_path / "first",
        "print(n)",
        signature="n: int = 3",
        more=CRON + "tags: [b, a]\nparameters: {n: 4}\n",
    )
    done = platform.cli("flows", "register", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["action"] == "created"

    prefix = f"flows/first/{report['code_hash']}"
    assert set(servers.objects("prefect", "flows/first/")) == {
        f"{prefix}/flow.py",
        f"{prefix}/flow.yaml",
        f"{prefix}/.mlops-manifest.json",
    }
    manifest = servers.read("prefect", f"{prefix}/.mlops-manifest.json")
    assert hashlib.sha256(manifest).hexdigest() == report["code_hash"]
    code = servers.read("prefect", f"{prefix}/flow.py")
    listed = {file["path"]: file["sha256"] for file in json.loads(manifest)["files"]}
    assert listed["flow.py"] == hashlib.sha256(code).hexdigest()

    deployment = servers.deployment("first")
    assert deployment["id"] == report["deployment_id"]
    assert deployment["work_pool_name"] == "default-agent-pool"
    assert deployment["work_queue_name"] == "ml"
    assert deployment["parameters"] == {"n": 4}
    assert deployment["tags"] == ["a", "b"]
    assert deployment["parameter_openapi_schema"]["properties"]["n"]["type"] == "integer"
    assert deployment["schedules"][0]["schedule"] == {
        "cron": "0 9 * * *",
        "timezone": "Asia/Taipei",
        "day_or": True,
    }
    assert deployment["pull_steps"] == [
        {
            "prefect_aws.deployments.steps.pull_from_s3": {"bucket": "prefect", "folder": prefix},
        }
    ]


def test_unchanged_folder_writes_nothing(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Registering again leaves every object, and every row of the flow, as they were."""
    folder = write_flow(tmp_path / "same", "pass", more=CRON)
    platform.cli("flows", "register", str(folder))
    before = (servers.objects("prefect", "flows/same/"), rows_of(platform, "same"))
    done = platform.cli("flows", "register", str(folder), "--json")
    assert json.loads(done.stdout)[0]["action"] == "unchanged"
    after = (servers.objects("prefect", "flows/same/"), rows_of(platform, "same"))
    assert after == before


def test_change_updates_in_place_and_keeps_the_switches(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A changed folder keeps the deployment's id, pause, schedule's switch and job variables."""
    folder = write_flow(tmp_path / "changing", "pass", more=CRON)
    platform.cli("flows", "register", str(folder))
    old = servers.deployment("changing")
    schedule_id = old["schedules"][0]["id"]
    servers.prefect.patch(
        f"/deployments/{old['id']}/schedules/{schedule_id}", json={"active": False}
    ).raise_for_status()
    variables = {"late": "run_all", "working_dir": "/srv"}
    servers.prefect.patch(
        f"/deployments/{old['id']}", json={"job_variables": variables}
    ).raise_for_status()
    servers.prefect.post(f"/deployments/{old['id']}/pause_deployment").raise_for_status()

    write_flow(tmp_path / "changing", "print(1)", more=CRON.replace("0 9", "30 9"))
    done = platform.cli("flows", "register", str(folder), "--json")
    assert json.loads(done.stdout)[0]["action"] == "updated"
    new = servers.deployment("changing")
    assert new["id"] == old["id"]
    assert new["pull_steps"] != old["pull_steps"]
    assert new["paused"] is True
    assert new["job_variables"] == {"working_dir": "/srv"}
    (schedule,) = new["schedules"]
    assert (schedule["id"], schedule["active"]) == (schedule_id, False)
    assert schedule["schedule"]["cron"] == "30 9 * * *"


def test_edits_in_the_ui_are_told_before_they_are_overwritten(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """What somebody set in the UI is shown, with what takes its place: it can be restored."""
    given = CRON + "parameters: {n: 4, k: 1}\nlate: run_all\n"
    signature = "n: int, k: float, m: int = 1"
    folder = write_flow(tmp_path / "edited", "pass", signature=signature, more=given)
    platform.cli("flows", "register", str(folder))
    deployment = servers.deployment("edited")
    path = f"/deployments/{deployment['id']}"
    assert deployment["job_variables"] == {"late": "run_all"}
    variables = {"late": "skip", "env": {"A": "1"}}
    edited = {"parameters": {"n": 7, "k": 1.0, "m": 2}, "job_variables": variables}
    servers.prefect.patch(path, json=edited).raise_for_status()
    schedule = {"schedule": {"cron": "0 10 * * *", "timezone": "UTC"}}
    servers.prefect.patch(
        f"{path}/schedules/{deployment['schedules'][0]['id']}", json=schedule
    ).raise_for_status()
    done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 0, done.stderr
    assert "parameter n: 7 is overwritten by 4" in done.stderr
    assert "parameter k: 1.0 is overwritten by 1" in done.stderr
    assert "parameter m: 2 is removed: flow.yaml has none" in done.stderr
    was, will = '"cron": "0 10 * * *", "timezone": "UTC"', '"cron": "0 9 * * *"'
    assert re.search(
        f"schedule: .*{re.escape(was)}.* is overwritten by .*{re.escape(will)}", done.stderr
    )
    assert 'job_variables: {"late": "skip"} is overwritten by {"late": "run_all"}' in done.stderr
    again = servers.deployment("edited")
    assert again["parameters"] == {"n": 4, "k": 1}
    assert again["job_variables"] == {"late": "run_all", "env": {"A": "1"}}
    assert "warning" not in platform.cli("flows", "register", str(folder)).stderr


def test_what_a_run_needs_is_carried_through(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """GPUs, Python and the modules to import ahead of time are in the manifest for agents.

    GPUs and memory are the deployment's job variables, too; others that people set there stay.
    """
    needs = "gpus: 2\nmemory: 4GiB\npython: '3.11'\nwarm: [json, xml.dom]\n"
    folder = write_flow(tmp_path / "needy", "pass", more=needs)
    done = platform.cli("flows", "register", str(folder), "--json")
    code = json.loads(done.stdout)[0]["code_hash"]
    manifest = json.loads(servers.read("prefect", f"flows/needy/{code}/.mlops-manifest.json"))
    found = {name: manifest["needs"][name] for name in ("gpus", "python", "warm")}
    assert found == {"gpus": 2, "python": "3.11", "warm": ["json", "xml.dom"]}
    deployment = servers.deployment("needy")
    assert deployment["job_variables"] == {"gpus": 2, "memory": "4GiB"}
    path = f"/deployments/{deployment['id']}"
    edited = {"job_variables": {"gpus": 1, "memory": "4GiB", "env": {"A": "1"}}}
    servers.prefect.patch(path, json=edited).raise_for_status()
    done = platform.cli("flows", "register", str(folder))
    assert '"gpus": 1, "memory": "4GiB"} is overwritten by {"gpus": 2, "mem' in done.stderr
    write_flow(folder, "pass", more="gpus: 2\n")
    platform.cli("flows", "register", str(folder))
    variables = servers.prefect.get(path).json()["job_variables"]
    assert variables == {"gpus": 2, "env": {"A": "1"}}
    done = platform.cli("flows", "register", str(folder), "--json")
    assert json.loads(done.stdout)[0]["action"] == "unchanged"


def test_schedule_that_is_taken_out_is_removed(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Without a scheduler section the deployment's schedule goes."""
    folder = write_flow(tmp_path / "unscheduled", "pass", more=CRON)
    platform.cli("flows", "register", str(folder))
    write_flow(folder, "pass")
    platform.cli("flows", "register", str(folder))
    assert servers.deployment("unscheduled")["schedules"] == []


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ("scheduler: {method: interval, timezone: Asia/Taipei, interval: 3600}", "interval"),
        ("scheduler: {method: rrule, timezone: Asia/Taipei, rrule: 'FREQ=DAILY'}", "rrule"),
    ],
)
def test_every_kind_of_schedule_gets_its_runs(
    platform: Platform, servers: Servers, tmp_path: Path, more: str, kind: str
) -> None:
    """The server makes scheduled runs from intervals and rules, within 15 s."""
    folder = write_flow(tmp_path / f"by-{kind}", "pass", more=more)
    platform.cli("flows", "register", str(folder))
    deployment = servers.deployment(f"by-{kind}")
    assert kind in deployment["schedules"][0]["schedule"]
    wait_for(lambda: servers.flow_runs(deployment["id"], types=["SCHEDULED"]), 15)


def test_mistake_writes_nothing(platform: Platform, servers: Servers, tmp_path: Path) -> None:
    """A flow.yaml with a mistake is refused with exit code 1 before anything is written."""
    folder = write_flow(tmp_path / "wrong", "pass", more="colour: red")
    done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 1
    assert f"{folder}/flow.yaml: colour: unknown key; allowed: RFS_NAME" in done.stderr
    assert servers.objects("prefect", "flows/wrong/") == {}
    assert servers.prefect.get("/deployments/name/wrong/wrong").status_code == 404


def test_mistake_in_one_folder_does_not_stop_the_others(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Of a folder of flows the good ones are registered and the bad one is named."""
    write_flow(tmp_path / "many" / "broken", "pass", more="colour: red")
    write_flow(tmp_path / "many" / "sound", "pass")
    done = platform.cli("flows", "register", str(tmp_path / "many"))
    assert done.returncode == 1
    assert "broken/flow.yaml: colour" in done.stderr
    reported = platform.cli("flows", "register", str(tmp_path / "many"), "--json")
    assert {row["action"] for row in json.loads(reported.stdout)} == {"refused", "unchanged"}
    assert servers.deployment("sound")["name"] == "sound"


def test_two_folders_of_one_name_are_refused(platform: Platform, tmp_path: Path) -> None:
    """Folders that would overwrite each other's deployment are refused, both named."""
    one = write_flow(tmp_path / "twins" / "one", "pass")
    two = write_flow(tmp_path / "twins" / "two", "pass")
    for name in ("flow.yaml", "flow.py"):
        (two / name).write_text((one / name).read_text())
    for command in ("check", "register"):
        done = platform.cli("flows", command, str(tmp_path / "twins"))
        assert done.returncode == 1
        assert f"{one} and {two} are both the deployment one/one" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "9/api: the Prefect server does not answer"),
        ("PREFECT_API_AUTH_STRING", "admin:wrong", "the Prefect server refused these credentials"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9", "at http://127.0.0.1:9 does not answer"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "refused these S3 credentials"),
        ("PREFECT_API_URL", "{mlflow}/api", "is no server of this platform; there answers uvicorn"),
    ],
)  # fmt: skip
def test_server_trouble_is_one_clear_message(
    platform: Platform, tmp_path: Path, variable: str, value: str, expected: str
) -> None:
    """A server that is away, refuses, or is another one is named, without a traceback."""
    folder = write_flow(tmp_path / "lost", "pass")
    environment = platform.environment("scheduler")
    environment[variable] = value.format(mlflow=platform.addresses.mlflow)
    done = run_cli("flows", "register", str(folder), environment=environment)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_list_shows_what_is_registered(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """`flows list` knows schedule and next run as the server has them."""
    folder = write_flow(tmp_path / "listed", "pass", more=CRON)
    platform.cli("flows", "register", str(folder))
    deployment_id = servers.deployment("listed")["id"]
    runs = wait_for(lambda: servers.flow_runs(deployment_id, types=["SCHEDULED"]), 15)
    rows = json.loads(platform.cli("flows", "list", "--json").stdout)
    (row,) = [row for row in rows if row["name"] == "listed/listed"]
    assert row["schedule"] == "0 9 * * * Asia/Taipei"
    assert row["next_run"] == runs[0]["expected_start_time"].replace("+00:00", "Z")
    assert "listed/listed" in platform.cli("flows", "list").stdout
