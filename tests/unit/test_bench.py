import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NAMES = sorted(p.stem for p in BENCH.glob("*.py") if "run_bench(bench, rounds" in p.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_says_what_it_measures(name: str) -> None:
    """Every benchmark starts as a script from anywhere and explains itself."""
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout


def test_every_benchmark_is_documented() -> None:
    """docs/benchmarks.md says how to run each benchmark."""
    document = (BENCH.parent / "docs" / "benchmarks.md").read_text()
    assert [name for name in NAMES if f"bench/{name}.py" not in document] == []
