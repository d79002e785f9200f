"""Pulling data: `mlops data pull` against `dvc pull`, and against boto3 for large files.

10,000 files of 20 kB and two of 400 MB lie in S3 as DVC lays them out. In each round, in turn: ours
and DVC's with empty caches, ours and DVC's with all of it in their caches and none of it in place;
then the large files by ours and by boto3's transfers in parts, with the client made before, both
without the start of Python. The server is the embedded one, and then MinIO, if there is a `minio`
on PATH. DVC comes from the package index, in the version of a new project.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from measure import (
    Findings,
    Measure,
    Ratio,
    announce,
    compare,
    run_bench,
    timed_command,
    wait_until,
)
from platform_under_test import clean_environment, free_ports, open_folder, own_platform

from mlops.errors import MlopsError
from mlops.experimenter.project import TEMPLATE
from mlops.settings import S3Settings
from mlops.storage import ObjectStore
from mlops.uv_program import find_uv

FILES, FILE_BYTES = 10_000, 20_000
LARGE_FILES, LARGE_BYTES = 2, 400_000_000
FOLDERS = 20
BUCKET, REMOTE = "dvc", "bench"
AGAINST_DVC, AGAINST_BOTO3 = 1 / 3, 1 / 0.9


class Server(NamedTuple):
    """An S3 server, and the environment of its clients."""

    name: str
    environment: dict[str, str]

    @property
    def store(self) -> ObjectStore:
        """The bucket with the data."""
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        values = {name.lower(): self.environment[name] for name in names}
        return ObjectStore(S3Settings.from_environment(**values), BUCKET)

    def boto3_client(self) -> Any:
        """A client of boto3's."""
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )


class Data(NamedTuple):
    """The hashes of what was pushed: of the folders of small and of large files, and of these."""

    folder: str
    large_folder: str
    large: list[str]


def bench(rounds: int) -> Findings:
    """Pull by each way.

    Args:
        rounds: How often.
    """
    measures: list[Measure] = []
    ratios: list[Ratio] = []
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        announce("installing DVC")
        dvc = _install_dvc(folder / "dvc-venv")
        platform = stack.enter_context(own_platform(folder))
        platform.run("local", "up")
        platform.stop_all_but(("s3",))
        servers = [Server("rclone", platform.environment("experimenter"))]
        if shutil.which("minio"):
            servers.append(stack.enter_context(_minio(folder / "minio")))
        for server in servers:
            announce(f"{server.name}: pushing")
            data = _push(server.store)
            announce(f"{server.name}: {rounds} rounds")
            work = folder / f"work-{server.name}"
            taken = _rounds(rounds, server, data, dvc, work)
            shutil.rmtree(work)
            found = {
                what: Measure(what=f"{server.name}: {what}", unit="s", values=tuple(values))
                for what, values in taken.items()
            }
            measures += found.values()
            ratios += [
                compare(found["data pull, cold"], found["dvc pull, cold"], AGAINST_DVC),
                compare(found["data pull, warm"], found["dvc pull, warm"], AGAINST_DVC),
                compare(found["large, data pull"], found["large, boto3"], AGAINST_BOTO3),
            ]
    _print_table(measures)
    return measures, ratios


def _rounds(
    rounds: int, server: Server, data: Data, dvc: Path, work: Path
) -> dict[str, list[float]]:
    work.mkdir()
    project = _make_project(work / "project", data, dvc)
    cache, place = work / "cache", work / "place"
    environment = server.environment | {
        "MLOPS_DATA_CACHE_DIR": str(cache),
        "PATH": f"{dvc.parent}{os.pathsep}{os.environ['PATH']}",
    }
    ours = [sys.executable, "-m", "mlops", "data", "pull", "--json"]
    small: list[str | Path] = [*ours, f"s3://{BUCKET}/{REMOTE}@{data.folder}", "--to", place]
    theirs: list[str | Path] = [dvc, "pull", "--quiet", "small.dvc"]
    dvc_cache = project / ".dvc" / "cache"
    client = server.boto3_client()
    taken: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        taken.setdefault(what, []).append(seconds)
        announce(f"{what}: {seconds:.2f} s")

    for _ in range(rounds):
        _remove(cache, place, dvc_cache, project / "small")
        note("data pull, cold", timed_command(small, environment))
        note("dvc pull, cold", timed_command(theirs, environment, project))
        _remove(place, project / "small")
        note("data pull, warm", timed_command(small, environment))
        note("dvc pull, warm", timed_command(theirs, environment, project))
        _remove(cache, place, dvc_cache, project / "small")
        note("large, data pull", _pull_large(ours, data, place, environment))
        _remove(cache, place)
        place.mkdir()
        began = time.perf_counter()
        for each in data.large:
            client.download_file(BUCKET, _key(each), str(place / each))
        note("large, boto3", time.perf_counter() - began)
    return taken


def _pull_large(command: list[str], data: Data, place: Path, environment: dict[str, str]) -> float:
    """Return the seconds that our pull of the large files says it took."""
    done = subprocess.run(
        [*command, f"s3://{BUCKET}/{REMOTE}@{data.large_folder}", "--to", str(place)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)["seconds"])


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


@contextmanager
def _minio(folder: Path) -> Iterator[Server]:
    """Start MinIO with a bucket."""
    folder.mkdir()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    keys = {
        "MINIO_ROOT_USER": "bench",
        "MINIO_ROOT_PASSWORD": hashlib.sha256(url.encode()).hexdigest(),
    }
    environment = clean_environment() | {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": keys["MINIO_ROOT_USER"],
        "AWS_SECRET_ACCESS_KEY": keys["MINIO_ROOT_PASSWORD"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = Server("MinIO", environment)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["minio", "server", "--quiet", "--address", f"127.0.0.1:{port}", folder / "data"],
            env=clean_environment() | keys,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: _makes_bucket(server), "MinIO")
        yield server
    finally:
        process.terminate()
        process.wait()


def _makes_bucket(server: Server) -> bool:
    try:
        server.boto3_client().create_bucket(Bucket=BUCKET)
        list(server.store.objects(REMOTE))
    except (MlopsError, Exception):  # noqa: BLE001  # not there yet, in whatever way it says so
        return False
    return True


def _print_table(measures: list[Measure]) -> None:
    """Print the seconds for docs/benchmarks.md."""
    announce("| | seconds | n |\n| --- | --- | --- |")
    for each in measures:
        low, high = min(each.values), max(each.values)
        announce(f"| {each.what} | {each.median:.2f} ({low:.2f}-{high:.2f}) | {len(each.values)} |")


if __name__ == "__main__":
    run_bench(bench, rounds=3)
