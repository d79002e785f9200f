"""The commands for work on the platform itself: `mlops test` and `mlops lock`."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer


def run_checks(
    pytest_arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Given to pytest as they are; the linters are left out then."),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Run tests that failed once more, alone.")
    ] = False,
) -> None:
    """Run lint, type checks and every test that this machine can run."""
    from mlops.development import checks
    from mlops.settings import CheckoutSettings

    settings = CheckoutSettings.from_environment()
    checkout = settings.require()
    checks.require_tools()
    arguments = pytest_arguments or []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(1) as beside:
        # Beside the tests, which do not keep all cores busy while they begin.
        linting = None if arguments else beside.submit(checks.run_linters, checkout)
        reports = settings.mlops_test_output or Path(temporary)
        longest = ["--durations=40"] if settings.mlops_test_output else []
        tests = checks.run_tests(checkout, [*longest, *arguments], reports)
        if retry and not tests.passed:
            print("\nonce more, what has failed", flush=True)
            tests = checks.retry_tests(checkout, arguments, reports, tests)
        results = [*(linting.result() if linting else ()), tests]

    print()
    for result in results:
        verdict = "passed" if result.passed else "FAILED"
        print(f"{result.name:8} {verdict} {result.seconds:7.1f} s")
    for test in tests.retried:
        print(f"passed only when tried again: {test}")
    print(f"skipped  {len(tests.skipped) or 'nothing'}")
    for skip in tests.skipped:
        print(f"  {skip.test}: {skip.reason}")
    if not all(result.passed for result in results):
        sys.stdout.flush()
        raise typer.Exit(1)


def lock(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail if a lock is out of date.")
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Take the newest versions that fit.")
    ] = False,
) -> None:
    """Bring requirements/*.txt up to date with pyproject.toml."""
    from mlops.development import locks
    from mlops.errors import MlopsError
    from mlops.settings import CheckoutSettings
    from mlops.uv_program import find_uv

    checkout = CheckoutSettings.from_environment().require()
    expected = locks.expected_files(checkout, uv=find_uv(), upgrade=upgrade)
    stale = locks.stale_files(checkout, expected)
    if check and stale:
        raise MlopsError(
            f"out of date: {', '.join(str(path) for path in stale)}", hint="run `./mlops lock`"
        )
    for path in stale:
        (checkout / path).write_text(expected[path])
        print(f"wrote {path}")
    if not stale:
        print("the locks are up to date")
