from pathlib import Path

import pytest

from mlops.agent.gpus import describe_gpus

# The driver's program, which no machine without its hardware has.
NVIDIA_SMI = """\
#!/bin/sh
echo '0, GPU-a, NVIDIA H100'
echo '1, GPU-b, NVIDIA L4'
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return program


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("all", "0: NVIDIA H100, 1: NVIDIA L4"),
        (("1",), "1: NVIDIA L4"),
        (("GPU-a", "7"), "GPU-a: NVIDIA H100, 7"),
        ((), "none"),
    ],
)
def test_gpus_are_named(ids: tuple[str, ...] | str, expected: str) -> None:
    """What a run may use is told by number and name; a number that the driver lacks stays."""
    assert describe_gpus("all" if ids == "all" else tuple(ids)) == expected


def test_driver_that_fails_names_nothing(driver: Path) -> None:
    """An agent starts although the driver's program does not work."""
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert describe_gpus("all") == "none"
    assert describe_gpus(("0",)) == "0"
