"""Pulling data: `mlops data pull` against `dvc pull`, and against boto3 for large files.

10,000 files of 20 kB and two of 400 MB lie in S3 as DVC lays them out. In each round, in turn: ours
and DVC's with empty caches, ours and DVC's with all of it in their caches and none of it in place;
then the large files by ours and by boto3's transfers in parts, with the client made before, both
without the start of Python. DVC comes from the package index, in the version of a new project.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from measure import Clock, Findings, Measure, announce, compare_speed, run_bench, timed_command
from object_stores import ObjectStoreName, Transfers, object_store, object_store_options
from platform_under_test import clean_environment, open_folder, own_platform

from mlops.experimenter.project import TEMPLATE
from mlops.settings import S3Settings
from mlops.storage import ObjectStore
from mlops.uv_program import find_uv

FILES, FILE_BYTES = 10_000, 20_000
LARGE_FILES, LARGE_BYTES = 2, 400_000_000
FOLDERS = 20
BUCKET, REMOTE = "dvc", "bench"
AGAINST_DVC, AGAINST_BOTO3 = 3, 0.9
THREADS = 10  # boto3's default


class Data(NamedTuple):
    """The hashes of what was pushed: of the folders of small and of large files, and of these."""

    folder: str
    large_folder: str
    large: list[str]


def bench(rounds: int, s3: ObjectStoreName) -> Findings:
    """Pull by each way.

    Args:
        rounds: How often.
        s3: The server.
    """
    with open_folder() as folder, own_platform(folder) as platform:
        announce("installing DVC")
        dvc = _install_dvc(folder / "dvc-venv")
        platform.run("local", "up")
        platform.stop_all_but(("postgres", "s3"))
        with object_store(s3, platform):
            environment = platform.environment("experimenter")
            announce("pushing")
            data = _push(_store(environment))
            found = _rounds(rounds, environment, data, dvc, folder / "work")
    return list(found.values()), [
        compare_speed(found["data pull, cold"], found["dvc pull, cold"], AGAINST_DVC),
        compare_speed(found["data pull, warm"], found["dvc pull, warm"], AGAINST_DVC),
        compare_speed(found["large, data pull"], found["large, boto3"], AGAINST_BOTO3),
    ]


def _rounds(
    rounds: int, environment: dict[str, str], data: Data, dvc: Path, work: Path
) -> dict[str, Measure]:
    clock = Clock()
    work.mkdir()
    project = _make_project(work / "project", data, dvc)
    cache, place = work / "cache", work / "place"
    environment = environment | {
        "MLOPS_DATA_CACHE_DIR": str(cache),
        "PATH": f"{dvc.parent}{os.pathsep}{os.environ['PATH']}",
    }
    ours = [sys.executable, "-m", "mlops", "data", "pull", "--json"]
    small: list[str | Path] = [*ours, f"s3://{BUCKET}/{REMOTE}@{data.folder}", "--to", place]
    large: list[str | Path] = [*ours, f"s3://{BUCKET}/{REMOTE}@{data.large_folder}", "--to", place]
    theirs: list[str | Path] = [dvc, "pull", "--quiet", "small.dvc"]
    dvc_cache = project / ".dvc" / "cache"
    boto3 = Transfers(environment, BUCKET, THREADS)
    for number in range(rounds):
        announce(f"round {number + 1} of {rounds}")
        _remove(cache, place, dvc_cache, project / "small")
        clock.time("data pull, cold", timed_command, small, environment)
        clock.time("dvc pull, cold", timed_command, theirs, environment, project)
        _remove(place, project / "small")
        clock.time("data pull, warm", timed_command, small, environment)
        clock.time("dvc pull, warm", timed_command, theirs, environment, project)
        _remove(cache, place, dvc_cache, project / "small")
        clock.add("large, data pull", _pull_large(large, environment))
        _remove(cache, place)
        place.mkdir()
        files = {_key(each): place / each for each in data.large}
        clock.time("large, boto3", boto3.download, files)
    return clock.measures()


def _pull_large(command: Sequence[str | Path], environment: dict[str, str]) -> float:
    """Return the seconds that our pull of the large files says it took."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def _store(environment: Mapping[str, str]) -> ObjectStore:
    """Return the bucket with the data."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    values = {name.lower(): environment[name] for name in names}
    return ObjectStore(S3Settings.from_environment(**values), BUCKET)


def _push(store: ObjectStore) -> Data:
    """Write random files as `dvc push` does."""

    def put(number: int) -> dict[str, str]:
        body = os.urandom(FILE_BYTES)
        md5 = _md5(body)
        store.write(_key(md5), body)
        return {"md5": md5, "relpath": f"{number % FOLDERS:02}/{number:05}.bin"}

    def put_list(files: list[dict[str, str]]) -> str:
        body = json.dumps(files).encode()
        folder = f"{_md5(body)}.dir"
        store.write(_key(folder), body)
        return folder

    with ThreadPoolExecutor(8) as pool:
        folder = put_list(list(pool.map(put, range(FILES))))
    large = []
    for _ in range(LARGE_FILES):
        body = os.urandom(LARGE_BYTES)
        large.append(_md5(body))
        store.write(_key(large[-1]), body)
    return Data(folder, put_list([{"md5": each, "relpath": each} for each in large]), large)


def _key(data_hash: str) -> str:
    return f"{REMOTE}/files/md5/{data_hash[:2]}/{data_hash[2:]}"


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _install_dvc(venv: Path) -> Path:
    """Install the DVC of a new project, and return its program."""
    requirements = (TEMPLATE / "requirements.txt").read_text()
    wanted = re.search(r"^dvc\[.*", requirements, re.MULTILINE)
    assert wanted
    environment = dict(os.environ)
    timed_command([find_uv(), "venv", "--quiet", "--python", sys.executable, venv], environment)
    timed_command(
        [
            *(find_uv(), "pip", "install", "--quiet", "--compile-bytecode"),
            *("--python", str(venv), wanted[0]),
        ],
        environment,
    )
    return venv / "bin" / "dvc"


def _make_project(project: Path, data: Data, dvc: Path) -> Path:
    """Make a project that tracks the small files."""
    project.mkdir()
    environment = clean_environment()
    for arguments in (["init", "--no-scm", "--quiet"], ["remote", "add", "-d", "bench"]):
        end = [f"s3://{BUCKET}/{REMOTE}"] if arguments[0] == "remote" else []
        timed_command([dvc, *arguments, *end], environment, project)
    (project / "small.dvc").write_text(
        f"outs:\n- md5: {data.folder}\n  size: {FILES * FILE_BYTES}\n  nfiles: {FILES}\n"
        "  hash: md5\n  path: small\n"
    )
    return project


if __name__ == "__main__":
    run_bench(bench, rounds=3, more=object_store_options())
