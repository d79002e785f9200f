"""How long all four stacks take on one host: `docker compose up -d --wait`, from built images.

Started from empty volumes (with migrations), again after `down`, and when everything is up. Needs
Docker and the images (`docker compose build`).
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import Findings, Measure, Ratio, announce, run_bench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stacks.fixtures import ports
from stacks.projects import Host

LIMITS = {
    "up, from empty volumes": 90.0,
    "up, again after down": 60.0,
    "up, with everything up": None,
    "down": None,
}


def bench(rounds: int) -> Findings:
    values: dict[str, list[float]] = {name: [] for name in LIMITS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            announce(f"round {number + 1} of {rounds}")
            host = Host(Path(folder, str(number)), ports())
            host.preset()
            host.init()
            project = host.project()
            try:
                for name in ("up, from empty volumes", "up, with everything up"):
                    values[name].append(_seconds(project.up))
                values["down"].append(_seconds(project.down))
                values["up, again after down"].append(_seconds(project.up))
            finally:
                host.remove()
    measures = [Measure(what=name, unit="s", values=tuple(v)) for name, v in values.items()]
    limits = [
        Ratio(what=m.what, peer="seconds", value=m.median, limit=LIMITS[m.what]) for m in measures
    ]
    return measures, limits


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


if __name__ == "__main__":
    run_bench(bench, rounds=3)
