"""Registering flows: `mlops flows register` against `prefect deploy` of the same flow.

The peer's prefect.yaml pushes the folder to the same bucket and gets it from there, with the steps
of prefect-aws, as ours does; both talk to the same servers, in turn. First one flow: unchanged, and
with a line changed each time. Then many small folders, from nothing and unchanged: ours in one
command, the peer in a loop of one command per folder, over fewer of them; what is compared is the
time per folder. Last a folder that the scheduler watches: how long after the last write to it its
deployment is the new one.
"""

import os
import random
import sys
import time
from pathlib import Path

import httpx
from measure import (
    Findings,
    Measure,
    Ratio,
    announce,
    compare,
    hold_against,
    run_bench,
    timed_command,
    wait_until,
)
from platform_under_test import Platform, open_folder, own_platform

FOLDERS = 200
PEER_FOLDERS = 10
CHANGES = 10  # of a watched folder
FLOW = '''\
from prefect import flow


@flow(name="{name}")
def train(rounds: int = 3, rate: float = 0.1) -> None:
    """Print what it was given.

    Args:
        rounds: How often.
        rate: How fast.
    """
    print(rounds, rate)
'''
FLOW_YAML = """\
deployment:
  flow_py_name: train.py
  flow_name: train
  deploy_name: {name}
scheduler:
  method: cron
  cron: '0 9 * * *'
"""
PREFECT_YAML = """\
name: {name}
push:
  - prefect_aws.deployments.steps.push_to_s3:
      bucket: prefect
      folder: peer/{name}
pull:
  - prefect_aws.deployments.steps.pull_from_s3:
      bucket: prefect
      folder: peer/{name}
deployments:
  - name: {name}
    entrypoint: train.py:train
    work_pool:
      name: default-agent-pool
    schedules:
      - cron: '0 9 * * *'
"""


def bench(rounds: int) -> Findings:
    """Register with both.

    Args:
        rounds: How often one flow is registered each way; many folders are, half as often.
    """
    with open_folder() as folder, own_platform(folder) as platform:
        platform.run("local", "up")
        peer = Peer(platform, folder / "prefect")
        one = _one_flow(rounds, platform, peer, folder)
        many = _many_folders(max(1, rounds // 2), platform, peer, folder)
        watched = _watched_folder(platform)
    bare = Measure(
        what="python -c pass",
        unit="s",
        values=tuple(
            timed_command([sys.executable, "-c", "pass"], dict(os.environ)) for _ in range(rounds)
        ),
    )
    names = ("flows register", "prefect deploy")
    ratios = [
        Ratio(
            what="flows register, unchanged, beyond the interpreter's start",
            value=one[names[0], "unchanged"].median - bare.median,
            unit="s",
            limit=0.5,
        )
    ]
    ratios += [
        hold_against(many[names[0], what], limit)
        for what, limit in (("from nothing", 60.0), ("unchanged", 5.0))
    ]
    ratios.append(
        Ratio(what=f"{watched.what}, the slowest", value=max(watched.values), unit="s", limit=2.0)
    )
    ratios += [
        compare(one[names[0], what], one[names[1], what]) for what in ("unchanged", "changed")
    ]
    ratios += [
        Ratio(
            what=f"flows register, a folder of many, {what}",
            peer=f"prefect deploy, a folder, {what}",
            value=many[names[0], what].median / FOLDERS / many[names[1], what].median,
        )
        for what in ("from nothing", "unchanged")
    ]
    return [bare, *one.values(), *many.values(), watched], ratios


class Peer:
    """`prefect deploy`, in the environment of the scheduler.

    Args:
        platform: The servers.
        home: Prefect's own folder.
    """

    def __init__(self, platform: Platform, home: Path) -> None:
        self._environment = platform.environment("scheduler") | {"PREFECT_HOME": str(home)}

    def deploy(self, folder: Path) -> float:
        """Deploy a folder and return the seconds that it took.

        Raises:
            RuntimeError: It failed.
        """
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        return timed_command(command, self._environment, folder)


def _one_flow(
    rounds: int, platform: Platform, peer: Peer, parent: Path
) -> dict[tuple[str, str], Measure]:
    ours = _write(parent / "one", "ours", peer=False)
    theirs = _write(parent / "one", "theirs", peer=True)
    platform.run("flows", "register", str(ours))
    peer.deploy(theirs)
    values: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        announce(f"one flow: round {number + 1} of {rounds}")
        for what in ("unchanged", "changed"):
            if what == "changed":
                for folder in (ours, theirs):
                    _change(folder, number)
            values.setdefault(("flows register", what), []).append(
                platform.run("flows", "register", str(ours))
            )
            values.setdefault(("prefect deploy", what), []).append(peer.deploy(theirs))
    return {
        (name, what): Measure(what=f"{name}, one flow, {what}", unit="s", values=tuple(seconds))
        for (name, what), seconds in values.items()
    }


def _many_folders(
    rounds: int, platform: Platform, peer: Peer, parent: Path
) -> dict[tuple[str, str], Measure]:
    values: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        announce(f"many folders: round {number + 1} of {rounds}")
        root = parent / f"many-{number}"
        for index in range(FOLDERS):
            _write(root / "ours", f"ours-{number}-{index}", peer=False)
        theirs = [
            _write(root / "theirs", f"theirs-{number}-{index}", peer=True)
            for index in range(PEER_FOLDERS)
        ]
        for what in ("from nothing", "unchanged"):
            values.setdefault(("flows register", what), []).append(
                platform.run("flows", "register", str(root / "ours"))
            )
            values.setdefault(("prefect deploy", what), []).extend(map(peer.deploy, theirs))
    what_ours = f"flows register, {FOLDERS} folders"
    whats = {"flows register": what_ours, "prefect deploy": "prefect deploy, each folder"}
    return {
        (name, what): Measure(what=f"{whats[name]}, {what}", unit="s", values=tuple(seconds))
        for (name, what), seconds in values.items()
    }


def _watched_folder(platform: Platform) -> Measure:
    environment = platform.environment("scheduler")
    user, _, password = environment["PREFECT_API_AUTH_STRING"].partition(":")
    moments = random.Random(0)  # noqa: S311  # no secret
    seconds: list[float] = []
    with httpx.Client(base_url=environment["PREFECT_API_URL"], auth=(user, password)) as prefect:

        def version() -> str | None:
            response = prefect.get("/deployments/name/watched/watched")
            return str(response.json()["version"]) if response.is_success else None

        folder = _write(platform.flow_dir, "watched", peer=False)
        wait_until(lambda: version() is not None, "the watched folder's first registration")
        for number in range(CHANGES):
            announce(f"watched folder: change {number + 1} of {CHANGES}")
            time.sleep(moments.uniform(1, 3))  # in no rhythm of the scheduler's
            before = version()
            _change(folder, number)
            seconds.append(
                wait_until(
                    lambda: version() != before,  # noqa: B023  # called at once
                    "the watched folder's registration",
                    poll_seconds=0.01,
                )
            )
    return Measure(
        what="last write of a watched folder to registered", unit="s", values=tuple(seconds)
    )


def _change(folder: Path, number: int) -> None:
    with (folder / "train.py").open("a") as file:
        file.write(f"# {number}\n")


def _write(parent: Path, name: str, *, peer: bool) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(FLOW.format(name=name))
    specification = ("prefect.yaml", PREFECT_YAML) if peer else ("flow.yaml", FLOW_YAML)
    (folder / specification[0]).write_text(specification[1].format(name=name))
    return folder


if __name__ == "__main__":
    run_bench(bench, rounds=6)
