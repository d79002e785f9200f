import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mlops import cli
from mlops.errors import MlopsError, UsageError


def run_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line with one command that raises `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def group() -> None:
        """Make `fail` a command of its own."""

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    return cli.run(["fail"])


def test_own_errors_are_said_with_their_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the user can mend is said without a traceback, and the code is 1."""
    code = run_raising(MlopsError("no server", hint="start one"), monkeypatch)
    assert code == 1
    assert capsys.readouterr().err == "mlops: no server\n  start one\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("both or none"), 2),
        (KeyboardInterrupt(), 130),
        (typer.Exit(1), 1),
        (typer.Exit(0), 0),
        (typer.BadParameter("not so"), 2),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way a command may end has its exit code."""
    assert run_raising(error, monkeypatch) == code


def test_output_that_cannot_be_written_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk behind the output is said in one line."""
    assert run_raising(OSError(errno.ENOSPC, "No space left on device"), monkeypatch) == 1
    assert "the output cannot be written: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nonsense"], ["lock", "--nonsense"], []])
def test_wrong_usage(arguments: list[str]) -> None:
    """An unknown command or option, or none at all, is wrong usage."""
    assert cli.run(arguments) == 2


def test_bug_leaves_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Anything else is a bug: code 3, and a traceback in a file that the message names."""
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    code = run_raising(ZeroDivisionError("by zero"), monkeypatch)
    (report,) = (tmp_path / "logs").iterdir()
    assert code == 3
    assert str(report) in capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0


def test_interrupted_process_ends_with_130(tmp_path: Path) -> None:
    """Ctrl-C in a real process is said in one line."""
    program = (
        "import os, signal, sys\n"
        "from mlops import cli\n"
        "@cli.app.command('wait')\n"
        "def wait() -> None:\n"
        "    print('ready', flush=True)\n"
        "    signal.pause()\n"
        "sys.exit(cli.run(['wait']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "mlops: interrupted\n"
    assert process.returncode == 130


def test_help_names_the_commands_without_heavy_imports() -> None:
    """The command line starts without the servers' and clients' libraries."""
    program = (
        "import sys\n"
        "from mlops import cli\n"
        "cli.run(['--help'])\n"
        "heavy = {'boto3', 'mlflow', 'prefect', 'psutil', 'psycopg2', 'supervisor', 'yaml'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    for command in ("demo", "test", "local", "flows", "lock"):
        assert f"\n  {command}" in done.stdout
    assert "imported: []" in done.stdout


def test_agents_are_asked_without_heavy_imports(tmp_path: Path) -> None:
    """`mlops agent status` does not wait for the libraries that an agent needs."""
    program = (
        "import os, pathlib, sys\n"
        "from mlops import cli\n"
        "from mlops.agent.presence import Presence, announced\n"
        "there = Presence(name='a', version='1', pid=1, machine='m', bind='127.0.0.1', port=9)\n"
        "with announced(pathlib.Path(os.environ['MLOPS_CACHE_DIR']), there):\n"
        "    print('code:', cli.run(['agent', 'status']))\n"
        "heavy = {'boto3', 'httpx', 'mlflow', 'prefect', 'prometheus_client', 'psutil'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MLOPS_CACHE_DIR": str(tmp_path)},
    )
    assert "a  127.0.0.1:9  does not answer" in done.stdout
    assert "code: 1\nimported: []" in done.stdout
