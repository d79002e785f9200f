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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from unittest.mock import patch

import psutil
from pydantic import BaseModel, ConfigDict, computed_field

Answer = TypeVar("Answer")

COMMAND_SECONDS = 600
UNITS = {"s": "seconds"}


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
    """One median against another, or by itself against a limit.

    Attributes:
        what: What is ours.
        peer: What it is held against; None: only the limit.
        value: The one over the other; of two speeds, when it should be large.
        unit: Of the value, when it has no peer.
        limit: What it should not exceed.
        floor: What it should not fall below.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    peer: str | None = None
    value: float
    unit: str = ""
    limit: float | None = None
    floor: float | None = None

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def met(self) -> bool | None:
        """Whether the value is within its bounds; None: it is only told."""
        if self.limit is None and self.floor is None:
            return None
        return (self.limit is None or self.value <= self.limit) and (
            self.floor is None or self.value >= self.floor
        )


class Report(BaseModel):
    """What a benchmark found; also what `--json` prints."""

    model_config = ConfigDict(frozen=True)

    bench: str
    date: str
    machine: Machine
    measures: tuple[Measure, ...]
    ratios: tuple[Ratio, ...]


class Clock:
    """Times what is done, by name."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {}

    def time(self, what: str, act: Callable[..., Answer], *arguments: Any) -> Answer:
        """Do something and return what it returns."""
        began = time.monotonic()
        answer = act(*arguments)
        self.add(what, time.monotonic() - began)
        return answer

    def add(self, what: str, seconds: float) -> None:
        """Note what was timed elsewhere."""
        self._taken.setdefault(what, []).append(seconds)

    def within(self, what: str, owner: type, method: str) -> AbstractContextManager[object]:
        """Time the calls of a method as long as the context lasts."""
        stock = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            return self.time(what, lambda: stock(*arguments, **named))

        return patch.object(owner, method, timed)

    def measures(self) -> dict[str, Measure]:
        """Return all that was timed."""
        return {
            what: Measure(what=what, unit="s", values=tuple(values))
            for what, values in self._taken.items()
        }


Findings = tuple[list[Measure], list[Ratio]]


def compare(measure: Measure, peer: Measure, limit: float | None = None) -> Ratio:
    """Return one median over another.

    Args:
        measure: What is ours.
        peer: What it is held against, from the same run.
        limit: What the ratio should not exceed.
    """
    return Ratio(what=measure.what, peer=peer.what, value=measure.median / peer.median, limit=limit)


def hold_against(measure: Measure, limit: float | None) -> Ratio:
    """Return a median as what is held against a limit in its unit; None: it is only told."""
    return Ratio(what=measure.what, value=measure.median, unit=measure.unit, limit=limit)


def compare_speed(measure: Measure, peer: Measure, floor: float | None = None) -> Ratio:
    """Return how fast one is as a part of another, from the seconds that the same work took.

    Args:
        measure: What is ours.
        peer: What it is held against, from the same run.
        floor: What the ratio should not fall below.
    """
    speed = peer.median / measure.median
    return Ratio(what=f"speed of {measure.what}", peer=peer.what, value=speed, floor=floor)


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


def run_bench(
    bench: Callable[..., Findings], *, rounds: int, more: argparse.ArgumentParser | None = None
) -> None:
    """Run a benchmark as a command: read its options, run it, print what it found.

    Args:
        bench: Measures; is given `rounds`, and the value of each option of `more`, by name.
        rounds: How many, unless the command line says otherwise.
        more: Options of its own; made with `add_help=False`.
    """
    module = sys.modules[bench.__module__]
    name = Path(str(module.__file__)).stem
    parser = argparse.ArgumentParser(
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[more] if more else [],
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    signal.signal(signal.SIGTERM, _end)  # so that the servers are stopped
    machine = _describe_machine()
    measures, ratios = bench(**options)
    report = Report(
        bench=name,
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine,
        measures=tuple(measures),
        ratios=tuple(ratios),
    )
    print(json.dumps(report.model_dump(), indent=2) if as_json else "\n".join(_lines(report)))


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
    """Yield the report as docs/benchmarks.md shows it, in Markdown."""
    machine = report.machine
    yield (
        f"{report.bench}, {report.date}: {machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, {machine.system}, Python {machine.python}, "
        f"load before {machine.load_before}"
    )
    yield from ("", "| target | measured | |", "| --- | --- | --- |")
    for ratio in report.ratios:
        unit = f" {ratio.unit}" if ratio.unit else ""
        peer = f" / {ratio.peer}" if ratio.peer else ""
        bound = "".join(
            f" {sign} {value:g}{unit}"
            for sign, value in (("≤", ratio.limit), ("≥", ratio.floor))
            if value is not None
        )
        verdict = {None: "no target", True: "met", False: "**missed**"}[ratio.met]
        yield f"| {ratio.what}{peer}{bound} | {_figure(ratio.value)}{unit} | {verdict} |"
    shown = None
    for measure in report.measures:
        if measure.unit != shown:
            shown = measure.unit
            yield from ("", f"| | {UNITS.get(shown, shown)} | n |", "| --- | --- | --- |")
        low, high = _figure(min(measure.values)), _figure(max(measure.values))
        bounds = f" ({low}–{high})" if low != high else ""  # noqa: RUF001  # a range
        yield f"| {measure.what} | {_figure(measure.median)}{bounds} | {len(measure.values)} |"


def _figure(value: float) -> str:
    """Return a number with as many digits as a person reads: two or three that count."""
    if abs(value) >= 1000:  # where :g would turn to powers of ten
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"
