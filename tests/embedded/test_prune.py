import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow
from embedded.proxies import proxies
from embedded.registered import MANIFEST, make_old, prefix_of
from fault_proxy import Request

MANY = 230  # a page is 200


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def prune(platform: Platform, *arguments: str) -> list[dict[str, Any]]:
    """Run `mlops flows prune --json …` and return what it reports."""
    done = run_cli("flows", "prune", "--json", *arguments, environment=platform.environment())
    assert done.returncode == 0, done.stderr
    report: list[dict[str, Any]] = json.loads(done.stdout)
    return report


def exists(servers: Servers, name: str) -> bool:
    status: int = servers.prefect.get(f"/deployments/name/{name}/{name}").status_code
    return status == 200


def test_deployment_without_a_folder_is_shown_and_then_removed(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """What is gone is removed with --yes only; folders that are there stay, broken ones too."""
    for name in ("gone", "renamed", "broken", "kept"):
        write_flow(tmp_path / name, "pass")
    platform.cli("flows", "register", str(tmp_path))
    shutil.rmtree(tmp_path / "gone")
    spec = tmp_path / "renamed" / "flow.yaml"
    spec.write_text(spec.read_text().replace("deploy_name: renamed", "deploy_name: other"))
    (tmp_path / "broken" / "flow.yaml").write_text("deployment: [")

    shown = prune(platform, str(tmp_path))
    assert {row["name"]: (row["reason"], row["removed"]) for row in shown} == {
        "gone/gone": (f"{tmp_path}/gone is gone", False),
        "renamed/renamed": (f"{tmp_path}/renamed is now renamed/other", False),
    }
    assert exists(servers, "gone")
    assert all(row["removed"] for row in prune(platform, str(tmp_path), "--yes"))
    assert [name for name in ("gone", "renamed", "broken", "kept") if exists(servers, name)] == [
        "broken",
        "kept",
    ]
    assert prune(platform, str(tmp_path), "--yes") == []


def test_deployment_with_a_run_in_progress_is_kept(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A run that has begun keeps its deployment."""
    folder = write_flow(tmp_path / "busy", "pass", pool="nobody-serves-this")
    platform.cli("flows", "register", str(folder))
    platform.cli("flows", "run", "busy/busy")
    (run,) = servers.flow_runs(servers.deployment("busy")["id"])
    pending = {"state": {"type": "PENDING"}, "force": True}
    servers.prefect.post(f"/flow_runs/{run['id']}/set_state", json=pending).raise_for_status()
    shutil.rmtree(folder)
    (row,) = prune(platform, str(tmp_path), "--yes")
    assert row["kept"] == f"in progress: {run['name']}"
    assert exists(servers, "busy")


def test_other_schedulers_deployments_are_theirs(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """What another scheduler registered from a folder of the same path is left alone."""
    folder = write_flow(tmp_path / "theirs", "pass")
    other = platform.environment("scheduler") | {"MLOPS_HOST_NAME": "other-host"}
    assert run_cli("flows", "register", str(folder), environment=other).returncode == 0
    shutil.rmtree(folder)
    assert prune(platform, str(tmp_path), "--yes") == []
    assert exists(servers, "theirs")


def test_missing_folder_of_flows_removes_nothing(platform: Platform, tmp_path: Path) -> None:
    """A FLOW_DIR that is not there is a mistake, not a wish to remove everything."""
    done = platform.cli("flows", "prune", str(tmp_path / "unmounted"), "--yes")
    assert done.returncode == 1
    assert "no such folder, and so every flow would be gone" in done.stderr


@pytest.fixture
def many(servers: Servers) -> Iterator[dict[str, str]]:
    """More deployments of one name than the server tells at once, the newest first.

    Their flows' names by their ids.
    """

    def make(number: int) -> dict[str, Any]:
        flow = servers.prefect.post("/flows/", json={"name": f"many-{number}"}).json()
        deployment = {"name": "many", "flow_id": flow["id"]}
        response = servers.prefect.post("/deployments/", json=deployment)
        response.raise_for_status()
        deployed: dict[str, Any] = response.json()
        return deployed | {"flow": flow["name"]}

    with ThreadPoolExecutor() as pool:
        made = sorted(pool.map(make, range(MANY)), key=lambda each: str(each["created"]))
        yield {each["id"]: each["flow"] for each in reversed(made)}
        list(pool.map(lambda each: servers.prefect.delete(f"/flows/{each['flow_id']}"), made))


@pytest.mark.parametrize(
    ("command", "vanishing"), [(("run", "many"), 10), (("prune",), 30)], ids=["a few", "a lot"]
)
def test_none_of_many_deployments_is_missed(
    platform: Platform,
    servers: Servers,
    many: dict[str, str],
    command: tuple[str, ...],
    vanishing: int,
) -> None:
    """All are seen though the server tells them in pages, or it is said that not all were."""
    newest = list(many)
    asked: list[Request] = []

    def vanish(request: Request) -> None:
        if request == Request("POST", "/api/deployments/filter"):
            asked.append(request)
            if len(asked) == 2:
                for deployment_id in newest[:vanishing]:
                    servers.prefect.delete(f"/deployments/{deployment_id}").raise_for_status()

    with proxies(platform, "prefect", before=vanish) as between:
        done = run_cli("flows", *command, environment=between.environment)
    assert done.returncode == 1
    if command == ("prune",):
        assert "much was deleted while POST /deployments/filter was answered" in done.stderr
    else:
        told = set(re.findall(r"many-\d+(?=/many)", done.stderr))
        assert told >= {many[each] for each in newest[vanishing:]}


def test_code_that_nothing_refers_to_is_removed(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Of three versions the deployment's and the one that ran lately stay, until time is up."""
    hashes = []
    for body in ("print('never ran')", "print('ran')", "print('deployed')"):
        folder = write_flow(tmp_path / "versions", body)
        done = platform.cli("flows", "register", str(folder), "--json")
        (report,) = json.loads(done.stdout)
        hashes.append(report["code_hash"])
        if body == "print('ran')":
            platform.cli("flows", "run", str(folder), "--follow")

    def versions() -> list[str]:
        keys = servers.objects("prefect", "flows/versions/")
        return [content_hash for content_hash in hashes if any(content_hash in k for k in keys)]

    prune(platform, "--code", "--days", "0", "--yes")
    assert versions() == hashes  # a version younger than an hour may be on its way
    make_old(servers, "flows/versions/")
    reported = [row["name"] for row in prune(platform, "--code")]
    assert f"s3://prefect/flows/versions/{hashes[0]}" in reported
    assert versions() == hashes
    prune(platform, "--code", "--yes")
    assert versions() == hashes[1:]
    prune(platform, "--code", "--days", "0", "--yes")
    assert versions() == hashes[2:]
    again = platform.cli("flows", "run", "versions/versions", "--follow")
    assert again.returncode == 0, again.stderr


def two_versions(platform: Platform, servers: Servers, folder: Path) -> str:
    """Register an old version of a flow with a run that waits, and a newer one; return the run."""
    write_flow(folder, "print(1)", pool="nobody-serves-this")
    platform.cli("flows", "register", str(folder))
    platform.cli("flows", "run", str(folder))
    write_flow(folder, "print(2)", pool="nobody-serves-this")
    platform.cli("flows", "register", str(folder))
    make_old(servers, f"flows/{folder.name}/")
    (run,) = servers.flow_runs(servers.deployment(folder.name)["id"])
    return str(run["id"])


def test_run_that_is_to_come_keeps_its_code(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A run that waits for an agent keeps the version that it was asked for."""
    run = two_versions(platform, servers, tmp_path / "to-come")
    before = servers.objects("prefect", "flows/to-come/")
    prune(platform, "--code", "--days", "0", "--yes")
    assert servers.objects("prefect", "flows/to-come/") == before
    servers.prefect.delete(f"/flow_runs/{run}").raise_for_status()
    wait_for(lambda: prune(platform, "--code", "--days", "0", "--yes"), 10)
    assert len(servers.objects("prefect", "flows/to-come/")) == len(before) / 2


def test_run_that_ends_while_runs_are_asked_for_keeps_its_code(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Between the runs to come and those that ended none is lost."""
    run = two_versions(platform, servers, tmp_path / "ending")
    asked: list[Request] = []

    def end(request: Request) -> None:
        if request == Request("POST", "/api/flow_runs/filter"):
            asked.append(request)
            if len(asked) == 2:
                completed = {"state": {"type": "COMPLETED"}, "force": True}
                servers.prefect.post(f"/flow_runs/{run}/set_state", json=completed)

    with proxies(platform, "prefect", before=end) as between:
        done = run_cli("flows", "prune", "--code", environment=between.environment)
    assert done.returncode == 0, done.stderr
    assert len(asked) >= 2  # more where there are many runs to come
    assert "flows/ending/" not in done.stdout


def test_key_that_may_not_delete_is_told_where_to_prune(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Who has no right to delete code learns where the command is that has it."""
    platform.cli("flows", "register", str(write_flow(tmp_path / "refused", "pass")))
    deployment = servers.deployment("refused")
    make_old(servers, "flows/refused/")
    servers.prefect.delete(f"/deployments/{deployment['id']}").raise_for_status()
    key = f"{prefix_of(deployment)}/{MANIFEST}"
    error = f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>"

    def refuse(body: bytes) -> bytes:  # as MinIO does; rclone has no policies
        refused = f"<DeleteResult>{error}</DeleteResult>"
        return refused.encode() if b"DeleteResult" in body else body

    with proxies(platform, "s3", rewrite=refuse) as between:
        done = run_cli("flows", "prune", "--code", "--yes", environment=between.environment)
    assert done.returncode == 1
    assert "refused these S3 credentials (AccessDenied)" in done.stderr
    assert "docker compose run --rm prune" in done.stderr
