"""Empty flows per minute, the memory of many runs, and what several agents cost the server.

The peer is `prefect worker start --limit 8` on a work pool of its own, with its stock settings, on
the same Prefect server. Runs are queued first, in a pool that is paused; what counts is the time
from when the first one is taken to the last one's end. Each side works alone. Then 1, 2 and 4 of
our agents share the work, 1, 4 and 16 take single runs while the requests that pass to the server
are counted, and the Prefect server is killed and started again while 500 runs are queued. Memory is
PSS: a page that processes share counts once.
"""

import argparse
import os
import signal
import time
from collections.abc import Callable

import psutil
from agents import OURS, SLOTS, STOCK, WHO, Agents, Flows, agents_under_test, warm_up
from measure import Findings, Measure, Ratio, announce, compare, run_bench
from platform_under_test import Platform
from tracing import TracingProxy, tracing_proxy

RUNS = 160
STOCK_RUNS = 48
QUEUED = 500
SINGLE_RUNS = 10
MEGABYTE = 1e6
HEAVY = ["pandas", "sklearn.ensemble"]
REQUIREMENTS = "pandas\nscikit-learn\n"


def bench(rounds: int, quick: bool) -> Findings:  # an option
    """Measure flows a minute and memory `rounds` times, and the rest once.

    Args:
        rounds: How often.
        quick: Whether to leave the rest out.
    """
    with agents_under_test() as (platform, flows, agents):
        for pool in (OURS, STOCK):
            agents.start(pool, pool)
        flows.write("empty", [OURS, STOCK])
        flows.write("loaded", [OURS, STOCK], imports=HEAVY, requirements=REQUIREMENTS)
        for name in ("empty", "loaded"):
            warm_up(flows, agents, name, [OURS, STOCK])
        agents.wait_until_warm(OURS, count=4)
        rates: dict[str, list[float]] = {OURS: [], STOCK: []}
        work: dict[tuple[str, str], list[float]] = {}
        memory: dict[str, list[float]] = {OURS: [], STOCK: []}
        for number in range(rounds):
            for pool in (OURS, STOCK):
                announce(f"round {number + 1} of {rounds}: {WHO[pool]}")
                count = RUNS if pool == OURS else STOCK_RUNS
                server, machine = _server_seconds(platform), _machine_seconds()
                rates[pool].append(_rate(flows, pool, count))
                for of, seconds in (
                    ("the Prefect server", _server_seconds(platform) - server),
                    ("all there is", _machine_seconds() - machine),
                ):
                    work.setdefault((pool, of), []).append(seconds / count)
                memory[pool].append(_memory(flows, agents, pool))
        measures, ratios = _findings(rates, memory, work)
        if quick:
            return measures, ratios
        agents.stop(STOCK)
        restarted = _restart(platform, flows)
        several = _several(flows, agents)
        requests = _requests(platform, flows, agents)
    more_measures, more_ratios = _more_findings(several, requests, restarted)
    return [*measures, *more_measures], [*ratios, *more_ratios]


def _rate(flows: Flows, pool: str, count: int) -> float:
    """Queue empty flows while the pool is paused; return how many are run a minute."""
    deployment = flows.deployment("empty", pool)
    flows.pause(pool, is_paused=True)
    numbers = [flows.start(deployment)[0] for _ in range(count)]
    flows.pause(pool, is_paused=False)
    flows.wait_for_end(numbers)
    return count / flows.seconds_between(numbers) * 60


def _server_seconds(platform: Platform) -> float:
    """Return the processor time that the Prefect server has taken, without its database."""
    times = psutil.Process(platform.supervisor.processes()["prefect"]["pid"]).cpu_times()
    return float(times.user + times.system)


def _machine_seconds() -> float:
    """Return the processor time that everything on this machine has taken."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _memory(flows: Flows, agents: Agents, pool: str) -> float:
    """Let as many runs as there are slots be idle; return the memory of all in MB."""
    end = flows.folder / f"end-{pool}-{time.monotonic_ns()}"
    deployment = flows.deployment("loaded", pool)
    runs = [flows.start(deployment, until=str(end)) for _ in range(SLOTS)]
    deadline = time.monotonic() + 120
    while not all(note.exists() for _, note in runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    taken = agents.memory_bytes(pool) / MEGABYTE
    end.touch()
    flows.wait_for_end([number for number, _ in runs])
    return taken


def _restart(platform: Platform, flows: Flows) -> tuple[int, int]:
    """Kill the Prefect server while runs are queued; return how many completed, and were begun."""
    announce(f"{QUEUED} queued runs, the server is killed in the middle")
    deployment = flows.deployment("empty", OURS)
    numbers = [flows.start(deployment)[0] for _ in range(QUEUED)]
    while flows.not_ended(numbers) > QUEUED / 2:
        time.sleep(0.5)
    os.kill(platform.supervisor.processes()["prefect"]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        try:
            flows.wait_for_end(numbers)
            break
        except OSError:
            time.sleep(1)
    return QUEUED - flows.not_ended(numbers), sum(flows.starts(numbers))


def _several(flows: Flows, agents: Agents) -> dict[int, float]:
    """Return how many empty flows several of our agents run a minute."""
    rates = {}
    names = [OURS]
    for count in (1, 2, 4):
        while len(names) < count:
            names.append(f"{OURS}-{len(names)}")
            agents.start(names[-1], OURS)
        announce(f"{count} of our agents")
        flows.wait_for_end([flows.start(flows.deployment("empty", OURS))[0] for _ in range(24)])
        for name in names[1:]:
            agents.wait_until_warm(name)
        rates[count] = _rate(flows, OURS, RUNS)
    for name in names[1:]:
        agents.stop(name)
    return rates


def _requests(platform: Platform, flows: Flows, agents: Agents) -> dict[int, float]:
    """Return the requests to the server for each single run, by the number of agents."""
    agents.stop(OURS)
    requests = {}
    deployment = flows.deployment("empty", OURS)
    with tracing_proxy(platform.environment("agent")["PREFECT_API_URL"]) as proxy:
        names: list[str] = []
        for count in (1, 4, 16):
            while len(names) < count:
                names.append(f"counted-{len(names)}")
                agents.start(names[-1], OURS, api=proxy.api, slots=2)
            announce(f"{count} agents take single runs")
            time.sleep(35)  # each agent knows the others by then
            for _ in range(3):
                flows.first_line_seconds(deployment)
            idle = _count(proxy, lambda: time.sleep(20)) / 20
            began = time.monotonic()
            during = _count(
                proxy, lambda: [flows.first_line_seconds(deployment) for _ in range(SINGLE_RUNS)]
            )
            requests[count] = (during - idle * (time.monotonic() - began)) / SINGLE_RUNS
        for name in names:
            agents.stop(name)
    return requests


def _count(proxy: TracingProxy, act: Callable[[], object]) -> int:
    before = proxy.requests
    act()
    return proxy.requests - before


def _findings(
    rates: dict[str, list[float]],
    memory: dict[str, list[float]],
    work: dict[tuple[str, str], list[float]],
) -> Findings:
    rate = {
        pool: Measure(what=f"empty flows, {WHO[pool]}", unit="a minute", values=tuple(values))
        for pool, values in rates.items()
    }
    taken = {
        pool: Measure(what=f"{SLOTS} idle runs, {WHO[pool]}", unit="MB", values=tuple(values))
        for pool, values in memory.items()
    }
    speed = rate[OURS].median / rate[STOCK].median
    worked = [
        Measure(
            what=f"a run from its making to its end, {WHO[pool]}: {of}",
            unit="s of a core",
            values=tuple(values),
        )
        for (pool, of), values in work.items()
    ]
    return [*rate.values(), *worked, *taken.values()], [
        Ratio(what=rate[OURS].what, peer=rate[STOCK].what, value=speed, floor=8),
        compare(taken[OURS], taken[STOCK], limit=0.5),
    ]


def _more_findings(
    several: dict[int, float], requests: dict[int, float], restarted: tuple[int, int]
) -> Findings:
    completed, begun = restarted
    measures = [
        *(
            Measure(what=f"empty flows, {count} agents of ours", unit="a minute", values=(value,))
            for count, value in several.items()
        ),
        *(
            Measure(what=f"a run, {count} agents of ours", unit="requests", values=(value,))
            for count, value in requests.items()
        ),
    ]
    return measures, [
        Ratio(what=f"{QUEUED} queued, server killed: completed", value=completed, floor=QUEUED),
        Ratio(what=f"{QUEUED} queued, server killed: begun", value=begun, limit=QUEUED),
        Ratio(what="empty flows, 4 agents / 1 agent", value=several[4] / several[1]),
        Ratio(what="requests for a run, 16 agents / 1 agent", value=requests[16] / requests[1]),
    ]


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--quick", action="store_true", help="flows a minute and memory alone")
    run_bench(bench, rounds=3, more=options)
