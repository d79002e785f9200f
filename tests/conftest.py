"""What a test may demand of the machine, by the marker `requires`.

    @pytest.mark.requires("docker")

A test whose demand is not met is skipped, with the reason. Where the whole suite must run
(CI=true) it fails instead, unless no machine can be expected to have it. A new demand is a
function below that returns why it is not met.
"""

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from inotify_limit import ONE_WATCH
from memory_cgroups import make_memory_cgroup

from mlops.garbage import collect_seldom
from mlops.uv_program import find_uv

collect_seldom()
# Prefect's client would start a server of its own for whatever a test logs or emits. Before any
# other module: Prefect reads its settings when it is imported.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"

pytest_plugins = [
    "distribution",
    "embedded.projects",
    "prebuilt",
    "stacks.images",
    "stacks.fixtures",
    "stacks.hosts",
]


def _apt() -> str:
    """Debian's package manager."""
    return "" if shutil.which("apt-get") else "apt is not installed"


def _chromium() -> str:
    """Debian's Chromium."""
    return "" if Path("/usr/bin/chromium").exists() else "chromium is not installed"


@cache
def _docker() -> str:
    """A Docker daemon that answers."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    done = subprocess.run(["docker", "info"], capture_output=True, check=False)
    return "the Docker daemon does not answer" if done.returncode else ""


def _go() -> str:
    """What MinIO is built with."""
    return "" if shutil.which("go") else "go is not installed"


def _gpu() -> str:
    """A GPU of NVIDIA's, with its driver."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, check=False)
    return "" if done.stdout else "nvidia-smi finds no GPU"


def _own_authorities() -> str:
    """Authorities that were added to this machine, which images are to trust, too."""
    added = Path("/usr/local/share/ca-certificates").rglob("*.crt")
    return "" if any(added) else "the machine trusts nobody besides the public authorities"


@cache
def _package_index() -> str:
    """A package index from which pip can download."""
    done = subprocess.run(
        [find_uv(), "pip", "compile", "--quiet", "--no-cache", "--no-deps", "-"],
        input="six",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"UV_SYSTEM_CERTS": "true"},
    )
    return "no package index can be reached" if done.returncode else ""


def _s3_client() -> str:
    """Debian's client of S3."""
    return "" if shutil.which("minio-client") else "minio-client is not installed"


def _mmdebstrap() -> str:
    """What Debian's root file systems are made with."""
    return "" if shutil.which("mmdebstrap") else "mmdebstrap is not installed"


def _root() -> str:
    """The right to become another user."""
    return "" if os.geteuid() == 0 else "not root"


@cache
def _mount() -> str:
    """The right to mount a file system; root in a container may lack it."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if (
            shutil.which("mount") is None
            or subprocess.run(mount, capture_output=True, check=False).returncode
        ):
            return "file systems cannot be mounted"
        subprocess.run(["umount", folder], check=True)
    return ""


@cache
def _memory_cgroup() -> str:
    """The right to limit the memory of processes."""
    group = make_memory_cgroup("mlops-demand", limit_bytes=2**30)
    if group is None:
        return "no memory cgroup can be made"
    group.rmdir()
    return ""


@cache
def _inotify_limit() -> str:
    """A limit of inotify watches of one's own, in a user namespace."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    done = subprocess.run([*ONE_WATCH, "true"], capture_output=True, check=False)
    return "the limit of inotify watches cannot be set" if done.returncode else ""


def _taxi_months() -> str:
    """Two months of the taxi commission's records, beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    found = len(list(folder.glob("green_tripdata_*.parquet")))
    return "" if found > 1 else f"the months of trips are not in {folder}"


# CI may lack them, too: not every machine has a GPU, or trusts others than everybody does.
RARE = {"gpu", "own-authorities"}
DEMANDS: dict[str, Callable[[], str]] = {
    "apt": _apt,
    "chromium": _chromium,
    "docker": _docker,
    "go": _go,
    "gpu": _gpu,
    "inotify-limit": _inotify_limit,
    "memory-cgroup": _memory_cgroup,
    "mmdebstrap": _mmdebstrap,
    "mount": _mount,
    "own-authorities": _own_authorities,
    "package-index": _package_index,
    "root": _root,
    "s3-client": _s3_client,
    "taxi-months": _taxi_months,
}


def pytest_configure() -> None:
    """Let what the tests start be interrupted: a job in a shell's background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let what was imported for the tests never be looked through for garbage again."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or in CI fail, a test that demands what is not here."""
    for marker in item.iter_markers("requires"):
        for demand in marker.args:
            reason = DEMANDS[demand]()
            if reason and os.environ.get("CI") == "true" and demand not in RARE:
                pytest.fail(f"needs {demand}: {reason}", pytrace=False)
            if reason:
                pytest.skip(f"needs {demand}: {reason}")
