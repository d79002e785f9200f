"""What every benchmark shares: its options, its numbers, and the machine that they come from."""

import argparse
import datetime as dt
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import psutil
from pydantic import BaseModel, ConfigDict, computed_field

COMMAND_SECONDS = 600


class Machine(BaseModel):
    """Where the numbers come from."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    load_before: float  # of the last minute


class Measure(BaseModel):
    """One thing that was measured several times."""

    model_config = ConfigDict(frozen=True)

    what: str
    unit: str
    values: tuple[float, ...]

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)


class Ratio(BaseModel):
    """One median against another, or against a plain limit in the same unit."""

    model_config = ConfigDict(frozen=True)

    what: str
    peer: str
    value: float
    limit: float | None = None  # none: it is only told

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def met(self) -> bool | None:
        """Whether the value is within the limit."""
        return None if self.limit is None else self.value <= self.limit


class Report(BaseModel):
    """What a benchmark found; also what `--json` prints."""

    model_config = ConfigDict(frozen=True)

    bench: str
    date: str
    machine: Machine
    measures: tuple[Measure, ...]
    ratios: tuple[Ratio, ...]


Findings = tuple[list[Measure], list[Ratio]]


def compare(measure: Measure, peer: Measure, limit: float | None = None) -> Ratio:
    """Return one median over another.

    Args:
        measure: What is ours.
        peer: What it is held against, from the same run.
        limit: What the ratio should not exceed.
    """
    return Ratio(what=measure.what, peer=peer.what, value=measure.median / peer.median, limit=limit)


def announce(line: str) -> None:
    """Say on stderr what goes on."""
    print(line, file=sys.stderr, flush=True)


def timed_command(
    command: Sequence[str | Path], environment: dict[str, str], folder: Path | None = None
) -> float:
    """Run a command and return the seconds that it took.

    Args:
        command: Its command line.
        environment: All of its environment.
        folder: Its working directory; default: ours.

    Raises:
        RuntimeError: It failed.
    """
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    took = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return took


def wait_until(
    met: Callable[[], bool],
    what: str,
    *,
    limit_seconds: float = 180.0,
    poll_seconds: float = 0.05,
) -> float:
    """Wait for a condition and return the seconds that it took.

    Args:
        met: Asked again and again.
        what: Named in the error.
        limit_seconds: How long to wait.
        poll_seconds: How long between two questions.

    Raises:
        TimeoutError: The condition was not met in time.
    """
    began = time.monotonic()
    while not met():
        if time.monotonic() - began > limit_seconds:
            raise TimeoutError(f"{what}: not after {limit_seconds:.0f} s")
        time.sleep(poll_seconds)
    return time.monotonic() - began


def run_bench(bench: Callable[[int], Findings], *, rounds: int) -> None:
    """Run a benchmark as a command: read its options, run it, print what it found.

    Args:
        bench: Takes the number of rounds and measures.
        rounds: How many, unless the command line says otherwise.
    """
    module = sys.modules[bench.__module__]
    name = Path(str(module.__file__)).stem
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)  # so that the servers are stopped
    machine = _describe_machine()
    measures, ratios = bench(options.rounds)
    report = Report(
        bench=name,
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine,
        measures=tuple(measures),
        ratios=tuple(ratios),
    )
    print(json.dumps(report.model_dump(), indent=2) if options.json else "\n".join(_lines(report)))


def _end(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _describe_machine() -> Machine:
    information = Path("/proc/cpuinfo")
    found = (
        re.search(r"model name\s*: (.*)", information.read_text()) if information.exists() else None
    )
    return Machine(
        cpu=found[1] if found else platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=round(os.getloadavg()[0], 2),
    )


def _lines(report: Report) -> Iterable[str]:
    machine = report.machine
    yield (
        f"{report.bench}, {report.date}: {machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, {machine.system}, Python {machine.python}, "
        f"load before {machine.load_before}"
    )
    yield ""
    for measure in report.measures:
        low, high = min(measure.values), max(measure.values)
        yield (
            f"{measure.what:58} {measure.median:8.4g} {measure.unit:3} "
            f"({low:.4g} to {high:.4g}, n={len(measure.values)})"
        )
    yield ""
    for ratio in report.ratios:
        verdict = (
            ""
            if ratio.met is None
            else f"  (at most {ratio.limit:g}: {'met' if ratio.met else 'MISSED'})"
        )
        yield f"{ratio.what} / {ratio.peer} = {ratio.value:.3g}{verdict}"
