"""The commands for work on the platform itself: `mlops test` and `mlops lock`."""

import sys
from typing import Annotated

import typer


def run_checks(
    pytest_arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Given to pytest as they are; the linters are left out then."),
    ] = None,
) -> None:
    """Run lint, type checks and every test that this machine can run."""
    from mlops.development import checks
    from mlops.settings import CheckoutSettings

    checkout = CheckoutSettings.from_environment().require()
    checks.require_tools()
    results = []
    if not pytest_arguments:
        results += checks.run_linters(checkout, lambda name: print(f"{name} …", flush=True))
    results.append(checks.run_tests(checkout, pytest_arguments or []))

    print()
    for result in results:
        verdict = "passed" if result.passed else "FAILED"
        print(f"{result.name:8} {verdict} {result.seconds:7.1f} s")
    skipped = [skip for result in results for skip in result.skipped]
    print(f"skipped  {len(skipped) or 'nothing'}")
    for skip in skipped:
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

    checkout = CheckoutSettings.from_environment().require()
    expected = locks.expected_files(checkout, uv=locks.find_uv(), upgrade=upgrade)
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
