"""Registrations that go wrong: what is left is never half a flow, and the next one completes it."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, write_flow
from embedded.proxies import Attempt, Server, attempt, proxies
from embedded.registered import (
    CRON,
    assert_never_half,
    assert_registered,
    complete_bundles,
    deployments,
    prefix_of,
)
from embedded.small_disk import fill, small_disk
from fault_proxy import Fault, Request
from s3_server import ACCESS_KEY, SECRET_KEY, open_bucket, serve_s3

from mlops.bundles import download, fetch_manifest
from mlops.settings import S3Settings
from mlops.storage import ObjectStore

AT_ONCE = 4  # registrations that wait for a server more than they compute
FAULTS: tuple[Fault, ...] = ("refuse", "cut")
SERVERS: tuple[Server, ...] = ("prefect", "s3")
FROZEN: tuple[tuple[Server, int], ...] = (("prefect", 0), ("prefect", 3), ("s3", 0), ("s3", 3))
FROZEN_LIMIT_SECONDS = 120  # what a user may have to wait before a frozen server is given up
KILLS = 50
PAUSE_SECONDS = 0.1  # between two runs that look for the code of all flows


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def write_version(folder: Path, version: int) -> Path:
    """Make a small flow folder; each version has other code and another schedule."""
    return write_flow(
        folder,
        f"print({version})",
        more=CRON.format(minute=version),
        files={"data.txt": f"data {version}"},
    )


def assert_clear(done: subprocess.CompletedProcess[str], server: Server) -> None:
    """Make sure that one message names the server and the mend."""
    what, mend = {
        "prefect": (r"http://127\.0\.0\.1:\d+/api: the Prefect server does not answer", "API_URL"),
        "s3": (r"the object store at http://127\.0\.0\.1:\d+ does not answer", "ENDPOINT_URL_S3"),
    }[server]
    lines = done.stderr.splitlines()
    message = [line for line in lines if not line.startswith("mlops: warning: ")]
    assert done.returncode == 1, done.stderr
    assert re.match(f"mlops: {what}", message[0]), done.stderr
    assert mend in message[1]
    assert len(message) == 2, done.stderr


@pytest.fixture(scope="module")
def frozen(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Path, Future[Attempt]]]:
    """Registrations before servers that freeze; they wait while the other tests work."""
    root = tmp_path_factory.mktemp("frozen")
    with ThreadPoolExecutor() as pool:
        yield {
            folder: pool.submit(
                attempt, platform, folder, server, fault="hang", healthy_requests=passed
            )
            for server, passed in FROZEN
            for folder in [write_version(root / f"frozen-{server}-{passed}", 1)]
        }


@pytest.mark.usefixtures("frozen")  # which begin to wait here
@pytest.mark.parametrize("kind", ["first", "changed"])
def test_server_that_goes_away_at_any_request(
    platform: Platform, servers: Servers, tmp_path: Path, kind: str
) -> None:
    """Whichever request a server fails at, before it or before its answer, it is named, quickly.

    Nothing half is visible then, and the next registration completes it.
    """
    sound = write_version(tmp_path / f"away-{kind}", 1)
    counts = attempt(platform, sound).requests
    if kind == "changed":
        counts = attempt(platform, write_version(sound, 2)).requests
    cases = [
        (server, fault, passed)
        # The object store is asked for the same things again, below another hash.
        for server, fault in itertools.product(SERVERS if kind == "first" else SERVERS[:1], FAULTS)
        for passed in range(counts[server])
    ]
    assert len(cases) >= 10
    folders = [
        write_version(tmp_path / "-".join(("away", kind, *map(str, case))), 1) for case in cases
    ]
    if kind == "changed":
        assert platform.cli("flows", "register", str(tmp_path)).returncode == 0
        for folder in folders:
            write_version(folder, 2)

    def fail(case: tuple[Server, Fault, int], folder: Path) -> None:
        server, fault, passed = case
        tried = attempt(platform, folder, server, fault=fault, healthy_requests=passed)
        assert_clear(tried.done, server)
        assert tried.seconds < 30
        assert_never_half(servers, folder.name)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fail, cases, folders))
    done = platform.cli("flows", "register", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert_registered(servers, folder)


@pytest.mark.requires("mount")
@pytest.mark.parametrize("spared_bytes", [0, 1 << 20])
def test_disk_of_the_object_store_is_full(
    platform: Platform, servers: Servers, tmp_path: Path, spared_bytes: int
) -> None:
    """A full disk there is named as what to look at; with space again the next one completes."""
    folder = write_version(tmp_path / f"full-{spared_bytes}", 1)
    (folder / "data.bin").write_bytes(os.urandom(2 << 20))
    with small_disk(tmp_path / "disk") as filler, serve_s3(tmp_path / "disk") as url:
        environment = platform.environment("scheduler") | {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        fill(filler, spared_bytes)
        done = run_cli("flows", "register", str(folder), environment=environment)
        assert done.returncode == 1
        assert f"{url} answered" in done.stderr
        assert "is its disk full?" in done.stderr
        assert "Traceback" not in done.stderr
        store = open_bucket(url)
        assert not [o.key for o in store.objects("flows") if o.key.endswith("manifest.json")]
        assert deployments(servers, folder.name) == []

        filler.unlink()
        done = run_cli("flows", "register", str(folder), environment=environment)
        assert done.returncode == 0, done.stderr
        (deployment,) = deployments(servers, folder.name)
        assert len(list(store.objects(f"flows/{folder.name}"))) == 5
        servers.prefect.delete(f"/deployments/{deployment['id']}").raise_for_status()


@pytest.mark.requires("mount")
def test_disk_of_the_scheduler_is_full(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """Where a temporary file does not fit nothing is written, and the place is named."""
    long_default = f"text: str = {'x' * 10_000!r}"
    folder = write_flow(
        tmp_path / "no-space", "pass", more=CRON.format(minute=1), signature=long_default
    )
    with small_disk(tmp_path / "disk") as filler:
        environment = platform.environment("scheduler") | {
            "TMPDIR": str(tmp_path / "disk"),
            "PREFECT_HOME": str(tmp_path / "disk" / "prefect"),
        }
        fill(filler, 4096)
        done = run_cli("flows", "register", str(folder), environment=environment)
        assert done.returncode == 1
        assert f"{tmp_path}/disk" in done.stderr
        assert "No space left on device" in done.stderr
        assert "point TMPDIR elsewhere" in done.stderr
        assert "Traceback" not in done.stderr
        assert servers.objects("prefect", f"flows/{folder.name}/") == {}
        assert deployments(servers, folder.name) == []

        fill(filler, 0)  # Python then takes another folder by itself
        done = run_cli("flows", "register", str(folder), environment=environment)
        assert done.returncode == 0, done.stderr
        assert_registered(servers, folder)


def start_registration(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlops", "flows", "register", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_at_a_moment(platform: Platform, folder: Path, moment_seconds: float) -> bool:
    """Register a folder, and kill that after a while; return whether it still ran."""
    process = start_registration(folder, platform.environment("scheduler"))
    try:
        process.wait(moment_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() == -signal.SIGKILL


def kill_at_a_request(
    platform: Platform, folder: Path, server: Server, number: int, delay_seconds: float
) -> bool:
    """Register a folder, and kill that shortly after a request; return whether it still ran."""
    started: list[subprocess.Popen[bytes]] = []
    count = itertools.count()

    def kill_in_time(_request: Request) -> None:
        if next(count) == number:
            threading.Event().wait(delay_seconds)
            started[0].kill()

    with proxies(platform, server, before=kill_in_time) as between:
        started.append(start_registration(folder, between.environment))
        return started[0].wait() == -signal.SIGKILL


@contextmanager
def runs_elsewhere(
    platform: Platform, servers: Servers, names: list[str], folder: Path
) -> Iterator[set[str]]:
    """Get the code of flows as soon as it is there, as agents do for runs; yield what was got.

    None of it may ever be missing or damaged: when it is seen first, nor in the end.
    """
    key = platform.credentials.s3_key("agent")
    settings = S3Settings.from_environment(
        aws_endpoint_url_s3=platform.addresses.s3,
        aws_access_key_id=key.access_key_id,
        aws_secret_access_key=key.secret_access_key,
    )
    store = ObjectStore(settings, "prefect")
    ended = threading.Event()
    seen: set[str] = set()

    def run() -> None:
        for number in itertools.count():
            last = ended.wait(PAUSE_SECONDS)
            for prefix in map(prefix_of, deployments(servers, *names)):
                if prefix in seen and not last:
                    continue
                target = folder / str(number) / prefix
                target.mkdir(parents=True)
                download(store, prefix, fetch_manifest(store, prefix), target)
                seen.add(prefix)
            if last:
                return

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield seen
        finally:
            ended.set()
        running.result()


def test_killed_registration_is_completed_by_the_next(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """After `kill -9` at any moment every bundle with a manifest is whole, and so is every flow.

    Nor does a run that begins at the same time ever find half a folder.
    """
    root = tmp_path / "flows"
    probe = attempt(platform, write_version(root / "kill-probe", 1))
    folders = [write_version(root / f"kill-{number}", 1) for number in range(KILLS)]
    changed = folders[::2]
    assert run_cli(
        "flows", "register", *map(str, changed), environment=platform.environment("scheduler")
    ).returncode == 0  # fmt: skip
    for folder in changed:
        write_version(folder, 2)

    def kill_once(number: int, chances: random.Random) -> bool:
        ways = number // 2 % 4  # half by the clock, half by what the servers are asked
        if ways < 2:
            moment = chances.uniform(0, probe.seconds)
            return kill_at_a_moment(platform, folders[number], moment)
        server = SERVERS[ways % 2]
        request = chances.randrange(probe.requests[server])
        delay = chances.choice((0, 0, 0.002, 0.01))
        return kill_at_a_request(platform, folders[number], server, request, delay)

    def kill(number: int) -> str:
        folder = folders[number]
        chances = random.Random(number)  # noqa: S311  # no secret
        version = 3
        while not kill_once(number, chances):  # too late: it is registered
            write_version(folder, version)
            version += 1
        assert_never_half(servers, folder.name)
        versions = {
            key.split("/")[2] for key in servers.objects("prefect", f"flows/{folder.name}/")
        }
        unfinished = len(versions) - len(complete_bundles(servers, folder.name))
        state = ("nothing", "unfinished code")[unfinished] if len(versions) == unfinished else ""
        return f"{state or 'code'} {len(versions)}"

    names = [folder.name for folder in folders]
    with (
        runs_elsewhere(platform, servers, names, tmp_path / "runs") as seen,
        ThreadPoolExecutor(2) as pool,
    ):
        states = list(pool.map(kill, range(KILLS)))
    assert len(seen) >= len(changed)
    # All phases were hit: before, in the middle of and after the upload.
    assert {"nothing 0", "unfinished code 1", "code 1", "code 2"} <= {*states}
    done = platform.cli("flows", "register", str(root))
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert_registered(servers, folder)


def test_frozen_server_is_given_up(
    platform: Platform, servers: Servers, frozen: dict[Path, Future[Attempt]]
) -> None:
    """A server that takes a request and never answers holds nobody up for long."""
    for folder, running in frozen.items():
        tried = running.result(timeout=FROZEN_LIMIT_SECONDS)
        server: Server = "s3" if "s3" in folder.name else "prefect"
        assert_clear(tried.done, server)
        assert tried.seconds < FROZEN_LIMIT_SECONDS
        assert_never_half(servers, folder.name)
    root = next(iter(frozen)).parent
    done = platform.cli("flows", "register", str(root))
    assert done.returncode == 0, done.stderr
    for folder in frozen:
        assert_registered(servers, folder)
