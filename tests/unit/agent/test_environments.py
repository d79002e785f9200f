"""Real environments, built by the real uv from the real index; one set is shared by the tests."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from uv import find_uv_bin

from mlops.agent.environment_build import LOCK_NAME
from mlops.agent.environments import (
    Environment,
    EnvironmentBuildCancelledError,
    EnvironmentBuildError,
    EnvironmentCache,
    EnvironmentGoneError,
    EnvironmentSpec,
)

pytestmark = pytest.mark.requires("package-index")
LIMIT = 100 * 10**9
PROJECT = Path(__file__).parents[3]
# Not "spawn": it runs the main program again, which a worker of pytest-xdist reads from its input.
FORK = multiprocessing.get_context("fork")


def ignore(_: str) -> None:
    pass


def wait_for(condition: Callable[[], bool], limit_seconds: float = 60) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def build_apart(root: Path, folder: Path, pipe: Connection) -> None:
    """Build the default environment in a process of its own, and send what it says."""
    environment = EnvironmentCache(root, limit_bytes=LIMIT).ensure(
        EnvironmentSpec(folder), pipe.send
    )
    pipe.send(environment)


def start_build(root: Path, folder: Path) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=build_apart, args=(root, folder, theirs))
    process.start()
    theirs.close()
    return process, ours


def versions(environment: Environment) -> dict[str, str]:
    """Ask the environment itself what is installed in it."""
    code = (
        "import json; from importlib.metadata import distributions;"
        "print(json.dumps({d.name.lower(): d.version for d in distributions()}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([environment.python, "-c", code]))
    return found


@dataclass(frozen=True)
class Shared:
    """The default environment, built by two processes at once after a third was killed."""

    root: Path
    folder: Path
    environment: Environment
    results: list[Environment]
    lines: list[str]
    left_behind: list[Path]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    root, folder = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("flow")
    killed, pipe = start_build(root, folder)
    while "resolved" not in pipe.recv():  # uv installs from here on
        pass
    assert killed.pid
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    left_behind = list((root / "builds").iterdir())
    results, lines = [], []
    builders = [start_build(root, folder) for _ in range(2)]
    for process, pipe in builders:
        while not isinstance(received := pipe.recv(), Environment):
            lines.append(received)
        results.append(received)
        process.join()
    built = max(results, key=lambda environment: environment.seconds)
    return Shared(root, folder, built, results, lines, left_behind)


@pytest.fixture
def copy(shared: Shared, tmp_path: Path) -> Iterator[EnvironmentCache]:
    """A copy of the shared cache, made of links: files may be removed from it, not changed."""
    root = tmp_path / "cache"
    key, build = shared.environment.key, shared.environment.folder.name
    for name in (f"{key}.json", f"builds/{build}", f"leases/{build}.lock"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-al", shared.root / name, root / name], check=True)
    yield EnvironmentCache(root, limit_bytes=LIMIT)
    shutil.rmtree(root)


def test_two_processes_build_once(shared: Shared) -> None:
    """Of two processes that need the same environment one builds and the other waits for it."""
    assert sorted(result.seconds > 0 for result in shared.results) == [False, True]
    assert shared.results[0].folder == shared.results[1].folder
    assert any("being built already" in line for line in shared.lines)
    # Who waits sees what the other one does.
    assert len([line for line in shared.lines if "built in" in line]) == 2


def test_a_killed_builder_is_in_nobodys_way(shared: Shared) -> None:
    """What a killed builder left is not taken for an environment, and is swept."""
    assert len(shared.left_behind) == 1
    assert shared.environment.folder not in shared.left_behind

    def swept() -> bool:
        EnvironmentCache(shared.root, limit_bytes=LIMIT).sweep()  # the killed one's uv may live on
        return not shared.left_behind[0].exists()

    wait_for(swept)
    assert shared.environment.python.exists()


def test_the_default_environment_holds_the_tested_versions(shared: Shared) -> None:
    """Without requirements a flow finds Prefect, MLflow's client and boto3 as tested here."""
    installed = versions(shared.environment)
    for name in ("prefect", "prefect-aws", "mlflow-skinny"):
        assert installed[name] == metadata.version(name)
    assert "boto3" in installed
    assert "mlflow" not in installed  # its many dependencies are of use only to a flow's own
    assert int(installed["fastapi"].split(".")[1]) < 150  # 0.155 and later break Prefect
    assert int(installed["setuptools"].split(".")[0]) < 81  # has pkg_resources
    lock = (shared.environment.folder / LOCK_NAME).read_text()
    assert f"prefect=={installed['prefect']}\n" in lock
    subprocess.run([shared.environment.folder / "bin" / "prefect", "--version"], check=True)


def test_a_prebuilt_environment_goes_before_the_caches_own(
    tmp_path: Path, prebuilt: Path, copy: EnvironmentCache, shared: Shared
) -> None:
    """One that the image brings along is used in place, whatever the cache holds or may hold."""
    lines: list[str] = []
    own = copy.ensure(EnvironmentSpec(shared.folder), lines.append)
    root = own.folder.parent.parent
    (tmp_path / "image").symlink_to(prebuilt)
    cache = EnvironmentCache(root, limit_bytes=1, prebuilt=tmp_path / "image")
    # Without requirements there is no torch to choose either.
    found = cache.ensure(EnvironmentSpec(shared.folder, torch_backend="cpu"), lines.append)
    assert found.folder.is_relative_to(tmp_path / "image")
    assert found.key == shared.environment.key
    assert versions(found)["prefect"] == metadata.version("prefect")
    sources = set(found.folder.glob("lib/*/site-packages/prefect/**/*.py"))
    compiled = set(found.folder.glob("lib/*/site-packages/prefect/**/*.pyc"))
    assert len(compiled) >= len(sources) > 0
    with cache.lease(found), cache.lease(own):
        cache.shrink(lines.append)
        cache.sweep()
    assert found.python.exists()
    assert found.folder not in [entry.folder for entry in cache.entries()]
    assert lines == []

    # An update of the image took it away: the cache's own does.
    (tmp_path / "image").unlink()
    again = cache.ensure(EnvironmentSpec(shared.folder), lines.append)
    assert again.folder == own.folder


def test_an_environment_is_reused_at_once(shared: Shared) -> None:
    """A second run finds the environment without a build and without a word."""
    lines: list[str] = []
    cache = EnvironmentCache(shared.root, limit_bytes=LIMIT)
    cache.ensure(EnvironmentSpec(shared.folder), lines.append)
    started = time.monotonic()
    again = cache.ensure(EnvironmentSpec(shared.folder), lines.append)
    assert time.monotonic() - started < 0.1
    assert (again.folder, again.seconds, lines) == (shared.environment.folder, 0, [])


def test_a_uv_lock_is_installed_as_it_is(tmp_path: Path, shared: Shared) -> None:
    """A project's lock gives its versions, of ours too, and the rest is fitted around them."""
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname = 'flow'\nversion = '0'\nrequires-python = '>=3.11'\n"
        "dependencies = ['idna==3.10', 'fastapi==0.140.0', 'prefect==3.8.7']\n"
    )
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=tmp_path, check=True)
    cache = EnvironmentCache(shared.root, limit_bytes=LIMIT)
    environment = cache.ensure(EnvironmentSpec(tmp_path), ignore)
    installed = versions(environment)
    assert (installed["idna"], installed["fastapi"]) == ("3.10", "0.140.0")
    assert installed["prefect"] == "3.8.7"
    for name in ("prefect-aws", "mlflow"):
        assert installed[name] == metadata.version(name)


def write_local_package(folder: Path) -> None:
    """Write a package with a script, which keeps the environment that it was built in."""
    package = folder / "tiny"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def main():\n    print('hello')\n")
    (folder / "setup.py").write_text(
        "import json, os, setuptools\n"
        "open('tiny/seen.json', 'w').write(json.dumps(dict(os.environ)))\n"
        "setuptools.setup(name='tiny', version='1', packages=['tiny'],\n"
        "    package_data={'tiny': ['*.json']},\n"
        "    entry_points={'console_scripts': ['tiny=tiny:main']})\n"
    )


@dataclass(frozen=True)
class OldFlow:
    """The environment of a flow with pins of 2023 and a package of its own."""

    environment: Environment
    pins: dict[str, str]
    lines: list[str]
    changed: list[Path]


@pytest.fixture(scope="module")
def old_flow(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> OldFlow:
    folder = tmp_path_factory.mktemp("old")
    pins = {
        "mlflow": "2.5.0",
        "pandas": "2.0.2",
        "scikit-learn": "1.2.2",
        "xgboost": "1.7.6",
        "dill": "0.3.6",
        "hyperopt": "0.2.7",
    }
    write_local_package(folder / "lib")
    (folder / "requirements.txt").write_text("-r more.txt\n-e ./lib\n")
    (folder / "more.txt").write_text("".join(f"{n}=={v}\n" for n, v in pins.items()))
    before = {*folder.rglob("*")}
    lines: list[str] = []
    spec = EnvironmentSpec(folder, "requirements.txt", python="3.11")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        patch.setenv("PYTHONPATH", "/nowhere")
        patch.setenv("VIRTUAL_ENV", "/nowhere")
        cache = EnvironmentCache(shared.root, limit_bytes=LIMIT)
        environment = cache.ensure(spec, lines.append)
    changed = sorted({*folder.rglob("*")} ^ before)
    shutil.rmtree(folder)
    return OldFlow(environment, pins, lines, changed)


def test_old_pins_get_an_older_client(old_flow: OldFlow) -> None:
    """Pins of 2023 resolve to an older Prefect 3, with the setuptools that they need unsaid."""
    installed = versions(old_flow.environment)
    assert {name: installed[name] for name in old_flow.pins} == old_flow.pins
    assert installed["prefect"].startswith("3.")
    assert any("setuptools 80" in line for line in old_flow.lines)
    code = "import mlflow.sklearn, hyperopt, xgboost, pkg_resources, prefect"
    subprocess.run([old_flow.environment.python, "-c", code], check=True)


def test_a_local_package_is_copied(old_flow: OldFlow) -> None:
    """A package in the flow's folder is there without it, and built without the agent's secrets."""
    assert old_flow.changed == []
    folder = old_flow.environment.folder
    assert subprocess.check_output([folder / "bin" / "tiny"]) == b"hello\n"
    (seen,) = folder.glob("lib/*/site-packages/tiny/seen.json")
    assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH"} & json.loads(seen.read_text()).keys()
    assert "s3cret" not in seen.read_text()


def test_what_cannot_be_resolved_is_told_by_uv(tmp_path: Path, shared: Shared) -> None:
    """The error holds uv's own message, and nothing of the build stays."""
    (tmp_path / "requirements.txt").write_text("idna==3.10\nidna>=3.11\n")
    builds = set((shared.root / "builds").iterdir())
    cache = EnvironmentCache(shared.root, limit_bytes=LIMIT)
    with pytest.raises(EnvironmentBuildError) as raised:
        cache.ensure(EnvironmentSpec(tmp_path, "requirements.txt"), ignore)
    assert "No solution found" in raised.value.output
    assert "idna>=3.11" in str(raised.value)
    assert set((shared.root / "builds").iterdir()) <= builds


def test_a_wrong_hash_is_refused(tmp_path: Path, shared: Shared) -> None:
    """Hashes in the flow's requirements are verified."""
    (tmp_path / "requirements.txt").write_text(f"idna==3.9 --hash=sha256:{'0' * 64}\n")
    cache = EnvironmentCache(shared.root, limit_bytes=LIMIT)
    with pytest.raises(EnvironmentBuildError, match="Hash mismatch"):
        cache.ensure(EnvironmentSpec(tmp_path, "requirements.txt"), ignore)


def test_a_build_can_be_cancelled(tmp_path: Path) -> None:
    """A cancelled run's build ends soon and leaves nothing."""
    cancel = threading.Event()

    def stop(line: str) -> None:
        if "resolved" in line:
            cancel.set()

    cache = EnvironmentCache(tmp_path / "cache", limit_bytes=LIMIT)
    with pytest.raises(EnvironmentBuildCancelledError):
        cache.ensure(EnvironmentSpec(tmp_path), stop, cancel=cancel)
    assert list((tmp_path / "cache" / "builds").iterdir()) == []
    assert list((tmp_path / "cache" / "leases").iterdir()) == []


@pytest.mark.requires("mount")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A full disk fails the build with its reason, and is left as empty as it was."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        cache = EnvironmentCache(disk, limit_bytes=LIMIT)
        with pytest.raises(EnvironmentBuildError, match="No space left"):
            cache.ensure(EnvironmentSpec(tmp_path), ignore)
        assert list((disk / "builds").iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_damaged_environment_is_built_again(copy: EnvironmentCache, shared: Shared) -> None:
    """An environment with missing files is replaced, even while a run still uses it."""
    damaged = copy.ensure(EnvironmentSpec(shared.folder), ignore)
    next(damaged.folder.glob("lib/*/site-packages/prefect/engine.py")).unlink()
    root = damaged.folder.parent.parent
    other_process = EnvironmentCache(root, limit_bytes=LIMIT)
    lines: list[str] = []
    with copy.lease(damaged):
        mended = other_process.ensure(EnvironmentSpec(shared.folder), lines.append)
        assert "damaged (files are missing" in lines[0]
        assert (mended.key, mended.folder == damaged.folder) == (damaged.key, False)
        subprocess.run([mended.python, "-c", "import prefect.engine"], check=True)
        other_process.sweep()
        assert damaged.python.exists()
    other_process.sweep()
    assert not damaged.python.exists()
    assert mended.python.exists()


def test_an_environment_that_does_not_start_is_dropped(
    copy: EnvironmentCache, shared: Shared
) -> None:
    """A run that fails has its environment looked at, until Prefect has once started there."""
    broken = copy.ensure(EnvironmentSpec(shared.folder), ignore)
    next(broken.folder.glob("lib/*/site-packages/prefect/engine.py")).unlink()
    assert "No module named 'prefect.engine'" in copy.judge(broken, 1)
    lines: list[str] = []
    copy.ensure_ahead(EnvironmentSpec(shared.folder), lines.append, modules=["csv", "no_such"])
    assert "built in" in lines[-1]
    told: list[str] = []
    for _ in range(2):
        again = copy.ensure(EnvironmentSpec(shared.folder), told.append)
    assert again.folder != broken.folder
    assert "ahead of time" in told[0]
    assert told[1:] == lines  # to the first run only
    assert (copy.hits, copy.misses) == (3, 0)
    assert next(again.folder.glob("lib/*/site-packages/prefect/__pycache__/engine.*.pyc"))
    next(again.folder.glob("lib/*/site-packages/prefect/engine.py")).unlink()
    assert copy.judge(again, 1) == ""  # it has started: the flow is to blame


def test_what_is_built_ahead_takes_nothings_place(
    copy: EnvironmentCache, shared: Shared, tmp_path: Path
) -> None:
    """Where the cache is full of what was used lately nothing is built ahead of time."""
    own = copy.ensure(EnvironmentSpec(shared.folder), ignore)
    root = own.folder.parent.parent
    (tmp_path / "requirements.txt").write_text("six\n")
    lines: list[str] = []
    full = EnvironmentCache(root, limit_bytes=1)
    full.ensure_ahead(EnvironmentSpec(tmp_path, "requirements.txt"), lines.append)
    assert "the cache is full" in lines[0]
    assert list((root / "builds").iterdir()) == [own.folder]


def test_the_least_recently_used_go_unless_in_use(copy: EnvironmentCache, shared: Shared) -> None:
    """Above the limit an environment goes, but not while it is leased, nor right after its use."""
    environment = copy.ensure(EnvironmentSpec(shared.folder), ignore)
    root = environment.folder.parent.parent
    small = EnvironmentCache(root, limit_bytes=1)

    def is_there() -> bool:
        return environment.key in [entry.key for entry in small.entries()]

    def age() -> None:
        for lease in (root / "leases").iterdir():
            os.utime(lease, (0, 0))

    small.shrink(ignore)
    assert is_there()
    with copy.lease(environment):
        age()
        small.shrink(ignore)
        assert environment.python.exists()
        assert [e.in_use for e in small.entries() if e.key == environment.key] == [True]
    small.shrink(ignore)
    assert is_there()  # used a moment ago
    age()
    lines: list[str] = []
    small.shrink(lines.append)
    assert any(f"{environment.key}: removed" in line for line in lines)
    assert not environment.folder.exists()
    with pytest.raises(EnvironmentGoneError), copy.lease(environment):
        pass


def test_a_lease_outlives_its_process(copy: EnvironmentCache, shared: Shared) -> None:
    """A run that inherited the lease keeps its environment when the agent is gone."""
    environment = copy.ensure(EnvironmentSpec(shared.folder), ignore)
    with copy.lease(environment) as descriptor:
        run = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    try:
        assert any(e.in_use for e in copy.entries() if e.key == environment.key)
    finally:
        run.kill()
        run.wait()
    assert not any(e.in_use for e in copy.entries())
