"""From trigger to a flow's first line: our agent against an unmodified Prefect worker.

The peer is `prefect worker start` on a work pool of its own, with its stock settings, on the same
Prefect server. Both run the same flows, which our scheduler has registered, in turn; runs that
make our agent's environment and its warm process come first and are not counted. Each trigger
waits for a random moment of the stock worker's poll interval (10 s), so that neither gains from
when it is asked. The flow itself notes when its function begins. `--torch` adds a flow that
imports torch (5 GB), which only our agent runs.
"""

import argparse
import random
import statistics
import time

from agents import OURS, STOCK, WHO, agents_under_test, warm_up
from measure import Findings, Measure, Ratio, announce, compare, run_bench

POLL_INTERVAL_SECONDS = 10.0  # PREFECT_WORKER_QUERY_SECONDS, as it comes
HEAVY = ["pandas", "sklearn.ensemble", "mlflow"]
REQUIREMENTS = "pandas\nscikit-learn\nmlflow\n"


def bench(rounds: int, torch: bool) -> Findings:  # an option of the command line
    """Run each flow `rounds` times on each.

    Args:
        rounds: How often.
        torch: Whether the large flow imports torch, too.
    """
    moments = random.Random(0)  # noqa: S311  # no secret
    taken: dict[tuple[str, str], list[float]] = {}
    with agents_under_test() as (_, flows, agents):
        for pool in (OURS, STOCK):
            agents.start(pool, pool)
        flows.write("empty", [OURS, STOCK])
        flows.write("large", [OURS, STOCK], imports=HEAVY, requirements=REQUIREMENTS)
        who = {"empty": [OURS, STOCK], "large": [OURS, STOCK]}
        if torch:
            with_torch = ["torch", *HEAVY]
            flows.write("torch", [OURS], imports=with_torch, requirements=f"torch\n{REQUIREMENTS}")
            who["torch"] = [OURS]
        for name, pools in who.items():
            warm_up(flows, agents, name, pools)
            agents.wait_until_warm(OURS, count=2 * (1 + list(who).index(name)))
            for number in range(rounds):
                announce(f"{name}: round {number + 1} of {rounds}")
                for pool in pools:
                    if STOCK in pools:
                        time.sleep(moments.uniform(0, POLL_INTERVAL_SECONDS))
                    seconds = flows.first_line_seconds(flows.deployment(name, pool))
                    taken.setdefault((name, pool), []).append(seconds)
    return _findings(taken)


def _findings(taken: dict[tuple[str, str], list[float]]) -> Findings:
    label = {
        "empty": "an empty flow",
        "large": "a flow that imports pandas, scikit-learn and mlflow",
        "torch": "the same with torch",
    }
    measures = {
        key: Measure(
            what=f"trigger to first line of {label[key[0]]}, {WHO[key[1]]}",
            unit="s",
            values=tuple(values),
        )
        for key, values in taken.items()
    }
    empty = measures["empty", OURS]
    ratios = [
        Ratio(what=empty.what, value=empty.median, unit="s", limit=0.5),
        Ratio(what=f"{empty.what}, p95", value=_p95(empty), unit="s", limit=1.0),
        compare(empty, measures["empty", STOCK], limit=1 / 15),
    ]
    for name in ("large", "torch"):
        if large := measures.get((name, OURS)):
            ratios.append(Ratio(what=large.what, value=large.median, unit="s", limit=0.7))
            if peer := measures.get((name, STOCK)):
                ratios.append(compare(large, peer))
    return list(measures.values()), ratios


def _p95(measure: Measure) -> float:
    if len(measure.values) == 1:
        return measure.values[0]
    return statistics.quantiles(measure.values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--torch", action="store_true", help="with a flow that imports torch")
    run_bench(bench, rounds=20, more=options)
