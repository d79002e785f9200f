import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow
from embedded.watching import LIMIT_SECONDS, Watcher, silent_server
from gate import Gate
from inotify_limit import ONE_WATCH

NAME = "watch-test"
CRON = "scheduler: {method: cron, timezone: Asia/Taipei, cron: '0 9 * * *'}\n"


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


@pytest.fixture(scope="module")
def prefect_gate(platform: Platform) -> Iterator[Gate]:
    gate = Gate(platform.addresses.prefect)
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def s3_gate(platform: Platform) -> Iterator[Gate]:
    gate = Gate(platform.addresses.s3)
    yield gate
    gate.close()


@pytest.fixture(scope="module")
def environment(platform: Platform) -> dict[str, str]:
    return platform.environment("scheduler") | {"MLOPS_HOST_NAME": NAME}


@pytest.fixture(scope="module")
def watcher(
    open_folder: Path, environment: dict[str, str], prefect_gate: Gate, s3_gate: Gate
) -> Iterator[Watcher]:
    """A scheduler over a folder of its own; the tests take turns with it."""
    flow_dir = open_folder / "watched"
    flow_dir.mkdir()
    through = {
        "PREFECT_API_URL": f"{prefect_gate.url}/api",
        "AWS_ENDPOINT_URL_S3": s3_gate.url,
    }
    with Watcher(flow_dir, open_folder / "watch.log", environment | through) as running:
        running.wait_for_line("watching")
        yield running


@pytest.fixture
def flow_dir(watcher: Watcher) -> Path:
    return watcher.flow_dir


def deployment(servers: Servers, name: str) -> dict[str, Any] | None:
    response = servers.prefect.get(f"/deployments/name/{name}/{name}")
    found: dict[str, Any] | None = response.json() if response.status_code == 200 else None
    return found


def version(servers: Servers, name: str) -> str | None:
    found = deployment(servers, name)
    return found["version"] if found else None


def wait_until_registered(servers: Servers, name: str, last: str | None = None) -> str:
    """Wait for a version other than the last one, and return it."""

    def new_version() -> str | None:
        found = version(servers, name)
        return found if found != last else None

    return wait_for(new_version, LIMIT_SECONDS) or ""


def test_folder_is_registered_when_it_appears_and_when_it_changes(
    servers: Servers, watcher: Watcher, flow_dir: Path, tmp_path: Path
) -> None:
    """So is one that is copied file by file, without a word on what it lacks meanwhile."""
    complete = write_flow(tmp_path / "slow", "pass")
    (flow_dir / "slow").mkdir()
    shutil.copy(complete / "flow.yaml", flow_dir / "slow")
    write_flow(flow_dir / "dropped", "pass", more=CRON)
    first = wait_until_registered(servers, "dropped")
    shutil.copy(complete / "flow.py", flow_dir / "slow")
    write_flow(flow_dir / "dropped", "print(2)", more=CRON)
    wait_until_registered(servers, "dropped", first)
    wait_until_registered(servers, "slow")
    assert not watcher.count("slow", "is missing")


def test_every_way_of_writing_a_folder_is_noticed(
    servers: Servers, flow_dir: Path, tmp_path: Path
) -> None:
    """Moved in whole, saved by way of a temporary file, below config/, and many at once."""
    write_flow(tmp_path / "moved", "pass")
    (tmp_path / "moved").rename(flow_dir / "moved")
    nested = write_flow(tmp_path / "nested", "pass")
    (nested / "config").mkdir()
    (nested / "flow.yaml").rename(nested / "config" / "flow.yaml")
    shutil.copytree(nested, flow_dir / "nested")
    crowd = [f"crowd-{number}" for number in range(12)]
    for name in ["saved", *crowd]:
        write_flow(flow_dir / name, "pass")
    versions = {
        name: wait_until_registered(servers, name) for name in ("moved", "nested", "saved", *crowd)
    }

    text = (flow_dir / "saved" / "flow.py").read_text()
    (flow_dir / "saved" / "flow.py~tmp").write_text(text.replace("pass", "print(1)"))
    (flow_dir / "saved" / "flow.py~tmp").rename(flow_dir / "saved" / "flow.py")
    spec = flow_dir / "nested" / "config" / "flow.yaml"
    spec.write_text(spec.read_text() + "tags: [new]\n")
    for name in crowd:
        write_flow(flow_dir / name, "print(1)")
    for name in ("saved", "nested", *crowd):
        wait_until_registered(servers, name, versions[name])


def test_link_to_a_release_is_followed_when_it_switches(
    servers: Servers, watcher: Watcher, flow_dir: Path, tmp_path: Path
) -> None:
    """A linked folder is registered on each switch and on changes in the release it leads to."""
    releases = [write_flow(tmp_path / number / "linked", number) for number in ("41", "42")]
    (flow_dir / "linked").symlink_to(releases[0])
    last = wait_until_registered(servers, "linked")
    (tmp_path / "switch").symlink_to(releases[1])
    (tmp_path / "switch").rename(flow_dir / "linked")
    last = wait_until_registered(servers, "linked", last)
    write_flow(releases[1], "print(43)")
    wait_until_registered(servers, "linked", last)
    assert servers.deployment("linked")["path"] == f"{NAME}:{flow_dir / 'linked'}"
    assert not watcher.count("ERROR", "linked")


def test_mistake_is_told_once_and_leaves_the_deployment_as_it_was(
    servers: Servers, watcher: Watcher, flow_dir: Path
) -> None:
    """A broken flow.yaml stops neither its deployment nor other folders, until it is mended."""
    folder = write_flow(flow_dir / "breaking", "pass", more=CRON)
    wait_until_registered(servers, "breaking")
    before = servers.deployment("breaking")
    write_flow(folder, "print(1)", more=CRON + "colour: red")
    watcher.wait_for_line("ERROR", "breaking/flow.yaml: colour")
    write_flow(flow_dir / "unharmed", "pass")
    wait_until_registered(servers, "unharmed")
    after = servers.deployment("breaking")
    fields = ("pull_steps", "version", "paused", "schedules", "updated")
    assert {field: after[field] for field in fields} == {field: before[field] for field in fields}
    assert watcher.count("breaking/flow.yaml: colour") == 1

    write_flow(folder, "print(1)", more=CRON)
    wait_until_registered(servers, "breaking", before["version"])


def test_what_one_folder_alone_makes_fail_stops_no_other(
    servers: Servers, watcher: Watcher, flow_dir: Path
) -> None:
    """A folder that a server refuses is named once and tried again; the others go on."""
    # PostgreSQL cannot store this character, and so Prefect answers 503.
    write_flow(flow_dir / "indigestible", '"""\\0"""')
    write_flow(flow_dir / "innocent", "pass")
    wait_until_registered(servers, "innocent")
    watcher.wait_for_line("ERROR", "indigestible: not registered")
    write_flow(flow_dir / "innocent", "print(1)")
    wait_until_registered(servers, "innocent", version(servers, "innocent"))
    assert not watcher.count("trying again until it works")
    write_flow(flow_dir / "indigestible", "pass")
    wait_until_registered(servers, "indigestible")
    assert watcher.count("indigestible: not registered") == 1


def add_deployments(servers: Servers, flow_dir: Path) -> list[str]:
    """Create deployments whose folders below FLOW_DIR never were; return their ids."""
    ours = servers.deployment("removed")
    made = []
    for name, scheduler, steps in (
        ("another's", "another", ours["pull_steps"]),
        ("ordinary", NAME, []),
    ):
        response = servers.prefect.post(
            "/deployments/",
            json={
                "name": name,
                "flow_id": ours["flow_id"],
                "path": f"{scheduler}:{flow_dir / 'never-was'}",
                "pull_steps": steps,
            },
        )
        response.raise_for_status()
        made.append(response.json()["id"])
    return made


def test_vanished_folder_is_paused_until_it_is_back(
    servers: Servers, watcher: Watcher, flow_dir: Path, tmp_path: Path
) -> None:
    """Removed, renamed to another deployment or without flow.yaml: paused, and then resumed."""
    names = ("removed", "unspecified", "redirected", "held")
    for name in (*names, "old-name"):
        write_flow(flow_dir / name, "pass", more=CRON)
    for name in (*names, "old-name"):
        wait_until_registered(servers, name)
    held = servers.deployment("held")["id"]
    servers.prefect.post(f"/deployments/{held}/pause_deployment").raise_for_status()
    for name in names:
        shutil.copytree(flow_dir / name, tmp_path / name)
    # Two that are none of its business: another scheduler's, and one without our code.
    others = add_deployments(servers, flow_dir)

    for name in ("removed", "held"):
        shutil.rmtree(flow_dir / name)
    (flow_dir / "unspecified" / "flow.yaml").unlink()
    spec = flow_dir / "redirected" / "flow.yaml"
    spec.write_text(spec.read_text().replace("deploy_name: redirected", "deploy_name: other"))
    (flow_dir / "old-name").rename(flow_dir / "new-name")
    for name in ("removed", "unspecified", "redirected"):
        wait_for(lambda name=name: servers.deployment(name)["paused"], LIMIT_SECONDS)  # type: ignore[misc]
        assert servers.deployment(name)["path"] == f"gone {NAME}:{flow_dir / name}"
        assert servers.deployment(name)["schedules"][0]["active"] is True
    assert servers.deployment("held")["path"] == f"{NAME}:{flow_dir / 'held'}"
    renamed = servers.deployment("old-name")
    assert (renamed["path"], renamed["paused"]) == (f"{NAME}:{flow_dir / 'new-name'}", False)
    assert watcher.count("removed/removed: paused") == 1
    for each in others:
        assert servers.prefect.get(f"/deployments/{each}").json()["paused"] is False

    for name in names:
        shutil.copytree(tmp_path / name, flow_dir / name, dirs_exist_ok=True)
    for name in ("removed", "unspecified", "redirected"):
        wait_for(lambda name=name: not servers.deployment(name)["paused"], LIMIT_SECONDS)  # type: ignore[misc]
        assert servers.deployment(name)["path"] == f"{NAME}:{flow_dir / name}"
    write_flow(flow_dir / "held", "print(1)", more=CRON)
    wait_until_registered(servers, "held", version(servers, "held"))
    assert servers.deployment("held")["paused"] is True


def test_of_two_folders_of_one_name_the_first_stays(
    servers: Servers, watcher: Watcher, flow_dir: Path
) -> None:
    """Both are named in the log, and the second is registered when the first has gone."""
    write_flow(flow_dir / "twin", "pass")
    wait_until_registered(servers, "twin")
    shutil.copytree(flow_dir / "twin", flow_dir / "copy")
    both = f"{flow_dir / 'twin'} and {flow_dir / 'copy'} are both the deployment twin/twin"
    watcher.wait_for_line("ERROR", both)
    write_flow(flow_dir / "twin", "print(1)")
    wait_until_registered(servers, "twin", version(servers, "twin"))
    assert servers.deployment("twin")["path"] == f"{NAME}:{flow_dir / 'twin'}"
    shutil.rmtree(flow_dir / "twin")
    wait_for(
        lambda: servers.deployment("twin")["path"] == f"{NAME}:{flow_dir / 'copy'}", LIMIT_SECONDS
    )
    wait_for(lambda: not servers.deployment("twin")["paused"], LIMIT_SECONDS)
    assert watcher.count(both) == 1


@pytest.mark.parametrize("server", ["prefect", "s3"])
def test_what_happened_while_a_server_was_away_is_done_when_it_is_back(
    servers: Servers, watcher: Watcher, flow_dir: Path, request: pytest.FixtureRequest, server: str
) -> None:
    """Changes, new and vanished folders are caught up with; one line at each end of the outage."""
    gate: Gate = request.getfixturevalue(f"{server}_gate")
    changed, lost, new = (f"{server}-{what}" for what in ("changed", "lost", "new"))
    for name in (changed, lost):
        write_flow(flow_dir / name, "pass")
    last = wait_until_registered(servers, changed)
    wait_until_registered(servers, lost)
    begun, ended = (watcher.count(line) for line in ("until it works", "caught up"))

    gate.close()
    write_flow(flow_dir / changed, "print(1)")
    write_flow(flow_dir / new, "pass")
    watcher.wait_for_line("until it works", gate.url)
    shutil.rmtree(flow_dir / lost)
    gate.open()
    wait_until_registered(servers, changed, last)
    wait_until_registered(servers, new)
    wait_for(lambda: servers.deployment(lost)["paused"], LIMIT_SECONDS)
    wait_for(lambda: watcher.count("caught up") == ended + 1, LIMIT_SECONDS)
    assert watcher.count("until it works") == begun + 1


def test_edited_parameters_are_told_each_time_that_they_are_overwritten(
    servers: Servers, watcher: Watcher, flow_dir: Path, prefect_gate: Gate
) -> None:
    """So it is when the scheduler catches up, and the same edit comes again."""
    write_flow(flow_dir / "edited", "pass", signature="n: int = 1", more="parameters: {n: 4}")
    wait_until_registered(servers, "edited")
    deployment = f"/deployments/{servers.deployment('edited')['id']}"
    for times in (1, 2):
        servers.prefect.patch(deployment, json={"parameters": {"n": 7}}).raise_for_status()
        caught_up = watcher.count("caught up")
        outages = watcher.count("until it works")
        prefect_gate.close()
        write_flow(flow_dir / f"edited-{times}", "pass")  # which makes it ask for the server
        wait_for(lambda: watcher.count("until it works") > outages, LIMIT_SECONDS)  # noqa: B023
        prefect_gate.open()
        wait_for(lambda: watcher.count("caught up") > caught_up, LIMIT_SECONDS)  # noqa: B023
        assert servers.deployment("edited")["parameters"] == {"n": 4}
        assert watcher.count("WARNING", "parameter n: its value is overwritten") == times


def test_restarted_scheduler_finds_what_changed_meanwhile(
    servers: Servers, watcher: Watcher, flow_dir: Path
) -> None:
    """SIGTERM ends it with 0; the next one does the changes and says the rest in one line."""
    for name in ("meanwhile-lost", "meanwhile-changed"):
        write_flow(flow_dir / name, "pass")
        wait_until_registered(servers, name)
    assert watcher.stop() == 0
    shutil.rmtree(flow_dir / "meanwhile-lost")
    write_flow(flow_dir / "meanwhile-changed", "print(1)")
    before = len(watcher.lines())
    watcher.start()
    wait_for(lambda: servers.deployment("meanwhile-lost")["paused"], LIMIT_SECONDS)
    wait_for(lambda: watcher.count("watching") == 2, LIMIT_SECONDS)
    told = watcher.lines()[before:]
    assert "meanwhile-lost/meanwhile-lost: paused" in "\n".join(told)
    assert "1 updated" in told[-1]
    assert not [line for line in told[:-1] if "unchanged" in line]


def test_interrupt_gives_130(watcher: Watcher) -> None:
    """Ctrl-C ends the scheduler with the exit code of an interrupted command."""
    assert watcher.stop(signal.SIGINT) == 130


def test_signal_ends_a_registration_that_hangs(environment: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM is obeyed with exit code 0 also while the object store keeps it waiting."""
    write_flow(tmp_path / "flows" / "hanging", "pass")
    with silent_server() as (url, taken):
        environment = environment | {"AWS_ENDPOINT_URL_S3": url}
        with Watcher(tmp_path / "flows", tmp_path / "log", environment) as running:
            assert taken.wait(LIMIT_SECONDS)
            assert running.stop() == 0


def test_folder_that_comes_and_goes_pauses_nothing(
    servers: Servers, environment: dict[str, str], tmp_path: Path
) -> None:
    """FLOW_DIR may be missing, appear as one flow folder, and vanish; polling sees it too."""
    polled = environment | {"WATCHFILES_FORCE_POLLING": "true"}
    with Watcher(tmp_path / "lone", tmp_path / "log", polled) as running:
        running.wait_for_line("ERROR", f"{tmp_path / 'lone'}: no such folder; waiting")
        write_flow(tmp_path / "new" / "lone", "pass")
        (tmp_path / "new" / "lone").rename(tmp_path / "lone")
        last = wait_until_registered(servers, "lone")
        write_flow(tmp_path / "lone", "print(1)")
        last = wait_until_registered(servers, "lone", last)
        (tmp_path / "lone").rename(tmp_path / "away")
        running.wait_for_line("lone: no flow is there at all", "1 deployment(s) are left")
        assert running.count("no such folder") == 2
        assert servers.deployment("lone")["paused"] is False
        write_flow(tmp_path / "new" / "lone", "print(2)")
        (tmp_path / "new" / "lone").rename(tmp_path / "lone")
        wait_until_registered(servers, "lone", last)
        assert not running.count(": paused")


@pytest.mark.requires("inotify-limit")
def test_without_inotify_every_file_is_looked_at(
    servers: Servers, environment: dict[str, str], tmp_path: Path
) -> None:
    """Where the system's limit of watches is reached, one line says so and changes are seen."""
    write_flow(tmp_path / "flows" / "unwatched", "pass")
    with Watcher(tmp_path / "flows", tmp_path / "log", environment, prefix=ONE_WATCH) as running:
        running.wait_for_line("looking at every file", "fs.inotify.max_user_watches")
        last = wait_until_registered(servers, "unwatched")
        write_flow(tmp_path / "flows" / "unwatched", "print(1)")
        wait_until_registered(servers, "unwatched", last)
        assert running.count("looking at every file") == 1
        assert running.stop() == 0


def test_folder_that_was_named_must_be_there(environment: dict[str, str], tmp_path: Path) -> None:
    """A path on the command line that is not there is an error at once."""
    done = run_cli("flows", "watch", str(tmp_path / "typo"), environment=environment)
    assert done.returncode == 1
    assert f"{tmp_path / 'typo'}: no such folder" in done.stderr
