"""The GPUs of this host, as people call them."""

import shutil
import subprocess
from collections.abc import Sequence
from typing import Literal

NONE = "none"
TIMEOUT_SECONDS = 20.0


def describe_gpus(ids: Sequence[str] | Literal["all"]) -> str:
    """Return the GPUs that runs of this host may use, such as `0: NVIDIA H100`.

    Args:
        ids: Numbers or UUIDs, as for CUDA_VISIBLE_DEVICES; `all`: those that the driver shows.

    Returns:
        One after the other, with commas between; `none` without any. What the driver does not
        know, or where it does not answer, is there without a name.
    """
    names = _names()
    if ids == "all":
        ids = [number for number in names if number.isdigit()]
    return ", ".join(f"{each}: {names[each]}" if each in names else each for each in ids) or NONE


def _names() -> dict[str, str]:
    """Return the name of each GPU by its number and by its UUID."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    try:
        done = subprocess.run(
            [program, "--query-gpu=index,uuid,name", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    names: dict[str, str] = {}
    for line in done.stdout.splitlines():
        number, uuid, name = (each.strip() for each in line.split(",", 2))
        names |= {number: name, uuid: name}
    return names
