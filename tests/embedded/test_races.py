"""Registrations beside each other, and folders that change while they are read."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow
from embedded.proxies import Server, proxies
from embedded.registered import (
    CRON,
    MANIFEST,
    assert_registered,
    complete_bundles,
    deployments,
    make_old,
    prefix_of,
)
from fault_proxy import Request

ROUNDS = 20
PARTS = 6


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def write_version(folder: Path, version: int) -> Path:
    """Make a flow folder in which the code, the schedule and the queue name one version."""
    more = CRON.format(minute=version % 60) + f"concurrency_limit: {version}\n"
    files = {f"part{n}.txt": f"{version:09}\n" * 400 for n in range(PARTS)}
    return write_flow(folder, f"print({version})", more=more, files=files)


@contextmanager
def watcher(platform: Platform, flow_dir: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a scheduler of its own, as on a host that shares the folder with others."""
    environment = platform.environment("scheduler") | {"FLOW_DIR": str(flow_dir)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops", "flows", "watch"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def test_two_schedulers_end_in_one_deployment(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Two that register the same folder at once, 20 times over, fresh or changed, agree."""
    flow_dir = tmp_path / "flows"
    write_version(flow_dir / "both-ready", 1)
    logs = [tmp_path / "one.log", tmp_path / "two.log"]

    def done(folder: Path, version: int) -> bool:
        found = deployments(servers, folder.name)
        if not found or found[0]["global_concurrency_limit"]["limit"] != version:
            return False
        # One that finds the other's work done says nothing.
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return any(f"{folder.name}: " in line and prefix_of(found[0]) in line for line in lines)

    with watcher(platform, flow_dir, logs[0]), watcher(platform, flow_dir, logs[1]):
        wait_for(lambda: done(flow_dir / "both-ready", 1), 60)
        for number in range(ROUNDS):
            # The next one is changed in every other round, and else a fresh one.
            folder = write_version(flow_dir / f"both-{number // 2}", number + 1)
            wait_for(lambda: done(folder, number + 1), 30)  # noqa: B023  # called at once
            assert_registered(servers, folder)
    said = [log.read_text() for log in logs]
    assert all("both-" in each for each in said)
    messages = "".join(said)
    assert " ERROR " not in messages
    assert "Traceback" not in messages


@pytest.mark.parametrize(
    "held_up",
    [
        "POST /deployments/filter",
        "POST /flows/",
        "POST /deployments/",
        "PATCH /schedules/",
        "PATCH /deployments/",
    ],
)
def test_registration_that_another_overtakes(
    platform: Platform, servers: Servers, tmp_path: Path, held_up: str
) -> None:
    """Wherever one is held up while another host registers other content, it is one of the two."""
    name = f"overtaken-{held_up.lower().replace(' ', '').replace('/', '-')}"
    method, part = held_up.split()
    slow, quick = tmp_path / "slow" / name, tmp_path / "quick" / name
    if method == "PATCH":
        write_version(slow, 1)
        assert platform.cli("flows", "register", str(slow)).returncode == 0
    write_version(slow, 2)
    write_version(quick, 3)
    elsewhere = platform.environment("scheduler") | {"MLOPS_HOST_NAME": "elsewhere"}
    overtaking: list[subprocess.CompletedProcess[str]] = []

    def overtake(request: Request) -> None:
        path = request.target.removeprefix("/api")
        # A deployment's own PATCH ends in its id, a schedule's goes on.
        right = part in path and (part == "/schedules/" or "/schedules/" not in path)
        if request.method == method and right and not overtaking:
            overtaking.append(run_cli("flows", "register", str(quick), environment=elsewhere))

    with proxies(platform, "prefect", before=overtake) as between:
        held = run_cli("flows", "register", str(slow), environment=between.environment)
    assert [done.returncode for done in overtaking] == [0]
    assert held.returncode == 0, held.stderr
    (deployment,) = deployments(servers, name)
    winner = slow if deployment["path"].endswith(str(slow)) else quick
    assert_registered(servers, winner)
    version = {slow: 2, quick: 3}[winner]
    assert deployment["global_concurrency_limit"]["limit"] == version


def prune_code(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run_cli("flows", "prune", "--code", "--yes", environment=environment)


@pytest.mark.parametrize(
    ("kind", "held_up"),
    [
        ("again", "PATCH .*/deployments/[^/]+"),
        ("fresh", "POST .*/deployments/"),
        ("unfinished", f"PUT .*/{MANIFEST}"),
    ],
)
def test_prune_overtakes_a_registration(
    platform: Platform, servers: Servers, tmp_path: Path, kind: str, held_up: str
) -> None:
    """Old code that is taken away before its deployment refers to it again is brought back.

    It may be of an upload that was never finished.
    """
    folder = write_version(tmp_path / f"pruned-{kind}", 1)
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    (old,) = deployments(servers, folder.name)
    make_old(servers, prefix_of(old))
    if kind == "again":
        assert platform.cli("flows", "register", str(write_version(folder, 2))).returncode == 0
        write_version(folder, 1)
    else:
        servers.prefect.delete(f"/deployments/{old['id']}").raise_for_status()
    if kind == "unfinished":
        servers.s3.delete_object(Bucket="prefect", Key=f"{prefix_of(old)}/{MANIFEST}")
    pruned: list[str] = []

    def overtake(request: Request) -> None:
        if re.fullmatch(held_up, " ".join(request)) and not pruned:
            pruned.append(prune_code(platform.environment()).stdout)

    server: Server = "s3" if kind == "unfinished" else "prefect"
    with proxies(platform, server, before=overtake) as between:
        held = run_cli("flows", "register", str(folder), environment=between.environment)
    assert f"removed s3://prefect/{prefix_of(old)}\n" in pruned[0]
    assert held.returncode == 0, held.stderr
    assert_registered(servers, folder)


def test_registration_overtakes_a_prune(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Code that comes into use is spared, and if it is being removed just then, that is told."""
    prune_code(platform.environment())  # what other tests have left
    unused, spared, lost = (write_version(tmp_path / f"prune-{number}", 1) for number in range(3))
    register = ("flows", "register", str(tmp_path))
    assert platform.cli(*register).returncode == 0
    old = {folder: prefix_of(servers.deployment(folder.name)) for folder in (unused, spared, lost)}
    for folder, prefix in old.items():
        make_old(servers, prefix)
        write_version(folder, 2)
    assert platform.cli(*register).returncode == 0
    overtaking = {1: spared, 3: lost}  # by the manifests that go then, the first and the last one's
    deletions: list[Request] = []

    def overtake(request: Request) -> None:
        if request.method == "POST" and "delete" in request.target:
            deletions.append(request)
            if folder := overtaking.get(len(deletions)):
                write_version(folder, 1)
                assert platform.cli(*register).returncode == 0

    with proxies(platform, "s3", before=overtake) as between:
        held = run_cli(
            "flows", "prune", "--code", "--yes", "--json", environment=between.environment
        )
    assert held.returncode == 1
    assert f"s3://prefect/{old[lost]}: came into use while it was removed" in held.stderr
    assert "register its flow again" in held.stderr
    removed = {row["name"] for row in json.loads(held.stdout) if row["removed"]}
    assert f"s3://prefect/{old[unused]}" in removed
    assert old[spared] in complete_bundles(servers, spared.name)
    done = platform.cli(*register)
    assert "prune-1/prune-1: unchanged" in done.stdout
    assert "prune-2/prune-2: repaired" in done.stdout
    for folder in old:
        assert_registered(servers, folder)


@contextmanager
def busy(folder: Path, rest_seconds: float) -> Iterator[list[int]]:
    """Write version after version into a folder, with a rest between them."""
    ended = threading.Event()
    versions = [1]

    def write() -> None:
        while not ended.wait(rest_seconds):
            versions.append(versions[-1] + 1)
            write_version(folder, versions[-1])

    write_version(folder, 1)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield versions
    finally:
        ended.set()
        thread.join()


def test_folder_that_changes_while_it_is_read_is_never_mixed(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Bundle, schedule and limit are of one version, whenever the files are rewritten."""
    folder = tmp_path / "moving"
    outcomes = []
    with busy(folder, rest_seconds=0.35) as versions:
        while len(versions) <= 10:
            done = platform.cli("flows", "register", str(folder))
            outcomes.append(done.returncode)
            if done.returncode:
                assert f"{folder}" in done.stderr
                assert "Traceback" not in done.stderr
            for deployment in deployments(servers, folder.name):
                prefix = prefix_of(deployment)
                version = int(servers.read("prefect", f"{prefix}/part0.txt").split()[0])
                assert deployment["global_concurrency_limit"]["limit"] == version
                assert deployment["schedules"][0]["schedule"]["cron"].startswith(f"{version % 60} ")
    assert outcomes.count(0) >= 2
    for files in complete_bundles(servers, folder.name).values():
        assert len({digest for path, digest in files.items() if path.startswith("part")}) == 1
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    assert_registered(servers, folder)


def test_folder_that_never_rests_is_refused(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A folder that is written to all the time is named, and nothing of it is registered."""
    folder = tmp_path / "restless"
    with busy(folder, rest_seconds=0.01):
        done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 1
    assert f"{folder}: is written to all the time" in done.stderr
    assert ".prefectignore" in done.stderr
    assert deployments(servers, folder.name) == []
    assert servers.objects("prefect", f"flows/{folder.name}/") == {}
