import os
from pathlib import Path

import pytest

from mlops.agent import cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 8),
        ({"quota": "300000", "period": "100000"}, 3),
        ({"quota": "-1", "period": "100000"}, 8),
        ({}, 8),
    ],
)
def test_cores_that_a_container_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    """The time that the kernel grants counts, in either version of its files, else the cores."""
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "OLD_QUOTA", tmp_path / "quota")
    monkeypatch.setattr(cores, "OLD_PERIOD", tmp_path / "period")
    assert cores.usable_cores() == expected
