"""`dvc push` and `dvc pull` against boto3 with as many threads, on the same S3 server.

DVC is the one that a new project gets, as an experimenter; each command is timed whole, as its
user waits for it, and what `dvc --version` takes is told beside it. A push goes to a new place, a
pull into a new clone without a cache. The peer is boto3's transfer manager, in this process: it
uploads the same files, and lists and downloads them into an empty folder. Both send as many
requests at once; the default is DVC's own: four for each core.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from measure import Findings, Measure, announce, compare_speed, run_bench, timed_command
from object_stores import ObjectStoreName, Transfers, object_store, object_store_options
from platform_under_test import Platform, open_folder, own_platform

FILES = 2000
SMALL_BYTES = 20_000
LARGE_BYTES = 400_000_000
LARGE_FILES = 2
BLOCK_BYTES = 1 << 20
BUCKET = "dvc"


class Data(NamedTuple):
    """What is pushed and pulled: files of one size in a folder."""

    name: str
    files: int
    size: int  # of each, in bytes

    @property
    def title(self) -> str:
        """How it is called in the report."""
        large = self.size >= 10**6
        return f"{self.files} files of {f'{self.size // 10**6} MB' if large else '20 kB'}"


class Way(Protocol):
    """A way to transfer data; each method returns the seconds that it took."""

    def push(self, name: str, prefix: str) -> float:
        """Push the folder of that name to a prefix in the bucket."""

    def pull(self, name: str, prefix: str, place: Path) -> float:
        """Pull it into a folder below a place that does not exist yet."""


def bench(rounds: int, s3: ObjectStoreName, files: int, jobs: int) -> Findings:
    """Push and pull both kinds of data by both ways, in turn.

    Args:
        rounds: How often.
        s3: The server.
        files: How many small ones.
        jobs: Requests at once, of both.
    """
    kinds = (Data("small", files, SMALL_BYTES), Data("large", LARGE_FILES, LARGE_BYTES))
    taken: dict[tuple[str, str, Data], list[float]] = {
        (who, what, data): []
        for data in kinds
        for what in ("push", "pull")
        for who in ("dvc", "boto3")
    }
    with open_folder() as folder, own_platform(folder) as platform:
        platform.run("local", "up")
        platform.stop_all_but(("postgres", "s3"))
        with object_store(s3, platform):
            project = Project(platform, folder, kinds, jobs)
            peer = Boto3(platform, project.folder, jobs)
            ways: list[tuple[str, Way]] = [("dvc", project), ("boto3", peer)]
            for number in range(rounds):
                for data in kinds:
                    announce(f"round {number + 1} of {rounds}: {data.title}")
                    for who, way in ways:
                        prefix = f"{number}/{who}"
                        taken[who, "push", data].append(way.push(data.name, prefix))
                    for who, way in ways:
                        place = folder / "pulled"
                        prefix = f"{number}/{who}"
                        taken[who, "pull", data].append(way.pull(data.name, prefix, place))
                        _check(place / data.name, data)
                        shutil.rmtree(place)
                    peer.transfers.remove(f"{number}/")
                ways.reverse()
            start = tuple(project.dvc("--version") for _ in range(rounds))
    measures = {
        (who, what, data): Measure(
            what=f"{f'dvc {what}' if who == 'dvc' else f'boto3, {what}'}, {data.title}",
            unit="s",
            values=tuple(values),
        )
        for (who, what, data), values in taken.items()
    }
    return (
        [*measures.values(), Measure(what="dvc --version", unit="s", values=start)],
        [
            compare_speed(measures["dvc", what, data], measures["boto3", what, data]).model_copy(
                update={"peer": "boto3"}
            )
            for data in kinds
            for what in ("push", "pull")
        ],
    )


def _check(folder: Path, data: Data) -> None:
    sizes = [path.stat().st_size for path in folder.iterdir()]
    if sizes != [data.size] * data.files:
        raise RuntimeError(f"{folder}: not all of {data.title}")


class Project:
    """A new project with data in DVC, and its `dvc`.

    Args:
        platform: Whose experimenter works in it.
        parent: Where it is made.
        kinds: Its data; none of the files is like another.
        jobs: Requests at once.
    """

    def __init__(
        self, platform: Platform, parent: Path, kinds: tuple[Data, ...], jobs: int
    ) -> None:
        self.folder = parent / "project"
        self._jobs = str(jobs)
        self._site_cache = parent / "dvc-site-cache"
        self._environment = platform.environment("experimenter") | {
            "DVC_SITE_CACHE_DIR": str(self._site_cache),
            "DVC_NO_ANALYTICS": "1",
        }
        announce("a new project, and its packages")
        mlops = [sys.executable, "-m", "mlops", "project"]
        timed_command([*mlops, "new", self.folder.name, "--in", str(parent)], self._environment)
        timed_command([*mlops, "exec", "dvc", "--version"], self._environment, self.folder)
        for data in kinds:
            announce(f"dvc add: {data.title}")
            _write(self.folder / data.name, data)
            self.dvc("add", "--quiet", data.name)
        for command in (["add", "--all"], ["commit", "--quiet", "--message", "Add the data"]):
            timed_command(["git", *command], self._environment, self.folder)

    def dvc(self, *arguments: str, folder: Path | None = None) -> float:
        """Run `dvc …` and return the seconds that it took."""
        program = self.folder / ".venv" / "bin" / "dvc"
        return timed_command([program, *arguments], self._environment, folder or self.folder)

    def push(self, name: str, prefix: str) -> float:
        """Push from the project, to a remote that DVC has not seen."""
        return self._transfer("push", self.folder, name, prefix)

    def pull(self, name: str, prefix: str, place: Path) -> float:
        """Pull into a new clone."""
        timed_command(["git", "clone", "--quiet", self.folder, place], self._environment)
        return self._transfer("pull", place, name, prefix)

    def _transfer(self, what: str, folder: Path, name: str, prefix: str) -> float:
        shutil.rmtree(self._site_cache, ignore_errors=True)  # where it notes what a remote has
        remote = f"['remote \"platform\"']\n    url = s3://{BUCKET}/{prefix}\n"
        (folder / ".dvc" / "config.local").write_text(remote)
        return self.dvc(what, "--quiet", "--jobs", self._jobs, f"{name}.dvc", folder=folder)


class Boto3:
    """The same by boto3's transfer manager, in this process.

    Args:
        platform: The servers.
        source: What lies in it is pushed.
        jobs: Requests at once.
    """

    def __init__(self, platform: Platform, source: Path, jobs: int) -> None:
        self._source = source
        self.transfers = Transfers(platform.environment("experimenter"), BUCKET, jobs)

    def push(self, name: str, prefix: str) -> float:
        """Upload the files."""
        began = time.monotonic()
        files = (self._source / name).iterdir()
        self.transfers.upload({f"{prefix}/{name}/{path.name}": path for path in files})
        return time.monotonic() - began

    def pull(self, name: str, prefix: str, place: Path) -> float:
        """List and download them."""
        folder = place / name
        folder.mkdir(parents=True)
        began = time.monotonic()
        keys = self.transfers.keys(f"{prefix}/{name}/")
        self.transfers.download({key: folder / Path(key).name for key in keys})
        return time.monotonic() - began


def _write(folder: Path, data: Data) -> None:
    folder.mkdir()
    for number in range(data.files):
        with (folder / f"{number:05}.bin").open("wb") as file:
            for start in range(0, data.size, BLOCK_BYTES):
                file.write(os.urandom(min(BLOCK_BYTES, data.size - start)))


if __name__ == "__main__":
    options = object_store_options()
    options.add_argument("--files", type=int, default=FILES, help="small ones; %(default)s")
    jobs = 4 * (os.cpu_count() or 1)
    options.add_argument("--jobs", type=int, default=jobs, help="requests at once; %(default)s")
    run_bench(bench, rounds=3, more=options)
