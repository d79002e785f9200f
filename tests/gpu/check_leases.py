"""Leases on a real GPU: run by hand where there is one, as no test machine of ours has any.

    PYTHONPATH=src python3 tests/gpu/check_leases.py

Needs torch with CUDA, nvidia-ml-py, pydantic, filelock and psutil; no servers and no network. It
prints a line per check and exits with 1 at the first that fails.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

from mlops.agent.gpu_leases import GpuLease, GpuLeases, Shortage
from mlops.agent.nvml import Nvml
from mlops.agent.run_processes import ATTEMPT_VARIABLE

LIMIT_SECONDS = 60.0
# Allocates on the device, says what it sees, and holds on until it is told to end.
TRAINS = """
import sys, torch
count = torch.cuda.device_count()
if count:
    held = torch.ones(64 << 20, device="cuda")
    torch.cuda.synchronize()
print(count, torch.cuda.get_device_name(0) if count else "no GPU", flush=True)
sys.stdin.readline()
"""


def check(what: str, *, holds: bool) -> None:
    """Print a check's outcome, and end at the first that fails."""
    print("ok  " if holds else "FAIL", what, flush=True)
    if not holds:
        sys.exit(1)


def wait_for(holds: Callable[[], bool]) -> bool:
    """Return whether something comes true within the limit."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def start(variables: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    """Start a process that uses what it sees, and return what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINS],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def main() -> None:
    """Go through what the fake of the unit tests takes for granted."""
    devices = Nvml().devices()
    print("devices:", *devices, sep="\n  ")
    check("the driver shows devices", holds=bool(devices))
    first = devices[0]
    check("nobody uses the first", holds=not Nvml().is_in_use(first.uuid))

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        by_number = GpuLeases(cache, [first.number], worker="first")
        by_uuid = GpuLeases(cache, [first.uuid], worker="second")
        run, other = uuid4(), uuid4()

        def is_free(leases: GpuLeases, number: UUID) -> bool:
            found = leases.reserve(number, 1) is None
            leases.cancel_reservation(number)
            return found

        for leases in (by_number, by_uuid):
            check("it is leased", holds=leases.reserve(run, 1) is None)
            attempt = uuid4().hex
            with leases.lease(run, attempt) as lease:
                variables = lease.environment | {ATTEMPT_VARIABLE: attempt}
                print("    ", variables)
                process, told = start(variables)
                check(f"its run sees one device: {told}", holds=told == f"1 {first.name}")
                rival = by_uuid if leases is by_number else by_number
                taken = rival.reserve(other, 1)
                check("another agent does not get it", holds=taken == Shortage(1, 0))
                end(process)
            free = wait_for(partial(is_free, rival, other))
            check("it is free after a killed run", holds=free)

        process, told = start(GpuLease().environment)
        check(f"a run without a lease sees none: {told}", holds=told == "0 no GPU")
        end(process)

        process, told = start({})
        print("     somebody else:", told)
        check("the driver shows that it is in use", holds=Nvml().is_in_use(first.uuid))
        found = by_number.reserve(run, 1)
        check("it is skipped", holds=found == Shortage(leased=0, foreign=1))
        end(process)
        check("it is free when they have gone", holds=wait_for(partial(is_free, by_number, run)))
        missing = GpuLeases(cache, ["99"], worker="third")
        check(f"a number too many is told: {missing.problems}", holds=not missing.devices)


if __name__ == "__main__":
    main()
