import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops.scheduler.signature_process import SignatureProcess, UnreadableError


@pytest.fixture(scope="module")
def process() -> Iterator[SignatureProcess]:
    """A process with a time limit that a test can wait for."""
    signatures = SignatureProcess(limit_seconds=2)
    yield signatures
    signatures.close()


def read_default(process: SignatureProcess, folder: Path, expression: str) -> Any:
    """Return what the default of a parameter is, which takes running its code."""
    imports = "import os, signal, sys, time\n"
    (folder / "flow.py").write_text(f"{imports}\n\ndef main(value={expression}): ...\n")
    schema = process.read_schema(folder / "flow.py", "main", (folder,))
    return schema["properties"]["value"]["default"]


def test_code_does_not_see_the_schedulers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the scheduler's variables only those of the machine, and our marks, reach the code."""
    for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("ANY_TOKEN", "secret")
    monkeypatch.setenv("TZ", "Asia/Taipei")
    monkeypatch.setenv("MLOPS_INSTANCE", "mine")
    with closing(SignatureProcess()) as process:
        environment = read_default(process, tmp_path, "dict(os.environ)")
    assert "secret" not in environment.values()
    assert environment["TZ"] == "Asia/Taipei"
    assert environment["MLOPS_INSTANCE"] == "mine"
    assert environment["PATH"] == os.environ["PATH"]


def test_code_works_in_the_folder_of_its_source(process: SignatureProcess, tmp_path: Path) -> None:
    """What a flow's code writes by a relative path does not lie about elsewhere."""
    assert read_default(process, tmp_path, "os.getcwd()") == str(tmp_path)


def test_process_is_kept(process: SignatureProcess, tmp_path: Path) -> None:
    """Signatures are read by one process, other than this one, also when code has failed in it."""
    first = read_default(process, tmp_path, "os.getppid()")
    with pytest.raises(UnreadableError):
        read_default(process, tmp_path, "os._exit(3)")
    assert read_default(process, tmp_path, "os.getppid()") == first != os.getpid()


def test_code_leaves_nothing_to_the_next(process: SignatureProcess, tmp_path: Path) -> None:
    """What one flow's code does to its interpreter does not reach another's."""
    changed = "[os.environ.update(LEFT='x'), sys.path.insert(0, '/left'), setattr(sys, 'left', 1)]"
    read_default(process, tmp_path, changed)
    found = read_default(
        process, tmp_path, "['LEFT' in os.environ, '/left' in sys.path, hasattr(sys, 'left')]"
    )
    assert found == [False, False, False]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("time.sleep(600)", "its types and defaults take longer than 2 s; do the work in the"),
        ("os._exit(0)", "its types and defaults end the process, with exit code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "end the process, by SIGKILL"),
        ("sys.exit(3)", "SystemExit: 3"),
        (
            "[signal.signal(signal.SIGALRM, signal.SIG_IGN), time.sleep(600)]",
            "its types and defaults take longer than 2 s",
        ),
    ],
)
def test_code_that_hangs_or_ends_is_told_and_the_next_is_read(
    process: SignatureProcess, tmp_path: Path, expression: str, reason: str
) -> None:
    """Whatever a flow's code does, the scheduler goes on and says what it was."""
    with pytest.raises(UnreadableError, match=reason):
        read_default(process, tmp_path, expression)
    assert read_default(process, tmp_path, "1 + 1") == 2


def test_error_of_several_lines_is_told_in_one(process: SignatureProcess, tmp_path: Path) -> None:
    """What pydantic says of a model stands in the report as one mistake, without its web pages."""
    (tmp_path / "models.py").write_text(
        "from pydantic import BaseModel\n\n\nclass Model(BaseModel):\n    size: int\n\n\nModel()\n"
    )
    (tmp_path / "flow.py").write_text("import models\n\n\ndef main(): ...\n")
    with pytest.raises(UnreadableError, match="1 validation error for Model size Field") as error:
        process.read_schema(tmp_path / "flow.py", "main", ())
    assert "\n" not in str(error.value)
    assert "https://" not in str(error.value)


def test_warning_of_a_library_is_not_printed(
    process: SignatureProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a flow's code and its libraries print while it is read reaches nobody."""
    read_default(process, tmp_path, "[print('x'), print('x', file=sys.stderr)] and 1")
    assert capfd.readouterr() == ("", "")


def test_process_that_was_killed_is_started_again(
    process: SignatureProcess, tmp_path: Path
) -> None:
    """Between two signatures the process may be lost without harm."""
    child = read_default(process, tmp_path, "os.getppid()")
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert read_default(process, tmp_path, "1 + 1") == 2


SCHEDULER = """
import sys, time
from pathlib import Path
from mlops.scheduler.signature_process import SignatureProcess

SignatureProcess(limit_seconds=5).read_schema(Path(sys.argv[1]), "main", ())
print("read", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("busy", [False, True])
def test_process_ends_with_a_killed_scheduler(tmp_path: Path, *, busy: bool) -> None:
    """Nothing is left of the process when its parent is killed, whether it is at work or not."""
    os.mkfifo(tmp_path / "pids")
    (tmp_path / "flow.py").write_text(
        "import os, time\nfrom pathlib import Path\n\n"
        "told = Path('pids').write_text(f'{os.getpid()} {os.getppid()}')\n"
        f"slept = time.sleep({600 * busy})\n\n"
        "def main(value=told): ...\n"
    )
    command = [sys.executable, "-c", SCHEDULER, str(tmp_path / "flow.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as scheduler:
        fork, child = map(int, (tmp_path / "pids").read_text().split())
        left = [psutil.Process(pid) for pid in ((fork, child) if busy else (child,))]
        assert scheduler.stdout is not None
        assert busy or scheduler.stdout.readline() == b"read\n"
        scheduler.kill()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert alive == []
