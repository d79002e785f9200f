"""How long all four stacks take on one host: `docker compose up -d --wait`, from built images.

Started from empty volumes (with migrations), again after `down`, and when everything is up. Needs
Docker and the images (`docker compose build`).
"""

import sys
import tempfile
from pathlib import Path

from measure import Clock, Findings, announce, hold_against, run_bench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stacks.fixtures import ports
from stacks.projects import Host

LIMITS = {
    "up, from empty volumes": 90.0,
    "up, again after down": 60.0,
}


def bench(rounds: int) -> Findings:
    """Start the stacks from nothing, `rounds` times.

    Args:
        rounds: How often.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            announce(f"round {number + 1} of {rounds}")
            host = Host(Path(folder, str(number)), ports())
            host.preset()
            host.init()
            project = host.project()
            try:
                for name in ("up, from empty volumes", "up, with everything up"):
                    clock.time(name, project.up)
                clock.time("down", project.down)
                clock.time("up, again after down", project.up)
            finally:
                host.remove()
    measures = clock.measures()
    return (
        list(measures.values()),
        [hold_against(measures[name], limit) for name, limit in LIMITS.items()],
    )


if __name__ == "__main__":
    run_bench(bench, rounds=3)
