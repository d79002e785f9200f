"""Where the time goes from the trigger to a flow's first line, request by request.

An agent of ours and its runs reach the Prefect server through a proxy that notes when each request
and its answer pass. An empty flow is run again and again from its warm process. Beside it the floor
of the parts: one request that does nothing, a fork of a process that has imported Prefect, and a
start of Prefect in a new process.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
from agents import OURS, agents_under_test, warm_up
from measure import Findings, Measure, announce, run_bench
from tracing import Passage, tracing_proxy

MILLISECONDS = 1e3
FLOOR_ROUNDS = 50


def bench(rounds: int) -> Findings:
    """Run an empty flow `rounds` times.

    Args:
        rounds: How often.
    """
    with agents_under_test() as (platform, flows, agents):
        environment = platform.environment("agent")
        with tracing_proxy(environment["PREFECT_API_URL"]) as proxy:
            agents.start(OURS, OURS, api=proxy.api)
            flows.write("empty", [OURS])
            warm_up(flows, agents, "empty", [OURS])
            deployment = flows.deployment("empty", OURS)
            steps: dict[str, list[tuple[float, float]]] = {}
            whole: list[float] = []
            for number in range(rounds):
                announce(f"round {number + 1} of {rounds}")
                time.sleep(1)  # nothing of the run before is in the way
                proxy.passages.clear()
                triggered = time.time()
                run, note = flows.start(deployment)
                flows.wait_for_end([run])
                first_line = float(note.read_text())
                whole.append((first_line - triggered) * MILLISECONDS)
                for name, asked, answered in _before(proxy.passages, first_line):
                    times = ((asked - triggered) * MILLISECONDS, (answered - asked) * MILLISECONDS)
                    steps.setdefault(name, []).append(times)
        floors = _floors(environment["PREFECT_API_URL"])
    measures = [_measure("trigger to first line", whole)]
    order = sorted(steps, key=lambda name: statistics.median(at for at, _ in steps[name]))
    for name in order:
        if len(steps[name]) > rounds / 2:
            at = statistics.median(at for at, _ in steps[name])
            measures.append(_measure(f"{at:.0f} ms: {name}", [took for _, took in steps[name]]))
    return [*measures, *floors], []


def _before(passages: list[Passage], moment: float) -> Iterator[Passage]:
    """Yield what was asked before a moment; a second request of the same name is another step."""
    seen: dict[str, int] = {}
    for passage in sorted(passages, key=lambda each: each.asked):
        if passage.asked < moment:
            count = seen[passage.name] = seen.get(passage.name, 0) + 1
            yield passage._replace(name=passage.name + (f" ({count})" if count > 1 else ""))


def _measure(what: str, values: list[float]) -> Measure:
    return Measure(what=what, unit="ms", values=tuple(values))


def _floors(api: str) -> list[Measure]:
    """Time the parts alone."""
    asking: list[float] = []
    with httpx.Client() as client:
        for _ in range(FLOOR_ROUNDS):
            began = time.perf_counter()
            client.get(f"{api}/health").raise_for_status()
            asking.append((time.perf_counter() - began) * MILLISECONDS)
    import prefect.flow_engine  # noqa: F401, PLC0415  # what a warm process has

    forking: list[float] = []
    for _ in range(FLOOR_ROUNDS):
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        forking.append((time.perf_counter() - began) * MILLISECONDS)
    starting: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import prefect.flow_engine"], check=True)
        starting.append((time.perf_counter() - began) * MILLISECONDS)
    return [
        _measure("floor: a request that does nothing", asking),
        _measure("floor: a fork of a process with Prefect, and its end", forking),
        _measure("floor: a new process that imports Prefect", starting),
    ]


if __name__ == "__main__":
    run_bench(bench, rounds=20)
