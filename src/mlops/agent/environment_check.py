"""Whether Prefect starts in an environment, which is more than that its packages are there."""

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from mlops.agent.uv_process import (
    ProcessCancelledError,
    ProcessFailedError,
    clean_environment,
    run_process,
)

# What is imported stays: it is not looked through for garbage, neither meanwhile nor at the end.
_COLLECT_NOTHING = "import atexit, gc; gc.disable(); atexit.register(gc.freeze)\n"
_CHECK = "import prefect.engine, prefect_aws, mlflow"
# What a flow is known to import is compiled on the way. What that says, its runs will.
_IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException:
        pass
"""
_LIMIT_SECONDS = 300.0
_LOW_PRIORITY = 15  # of nice's 19


def find_fault(
    python: Path,
    *,
    modules: Sequence[str] = (),
    cancel: threading.Event | None = None,
    descriptors: Sequence[int] = (),
    is_urgent: bool = True,
) -> str:
    """Start what every run starts, and say what is wrong; empty: nothing.

    This also compiles what every run imports: packages come without bytecode, and to compile all
    of them takes longer than it gives.

    Args:
        python: The environment's interpreter.
        modules: To be compiled as well, with all that they import.
        cancel: Stops it when set; nothing is found then.
        descriptors: Locks that it shall hold.
        is_urgent: Somebody waits for it; otherwise everything else goes first.
    """
    priority = () if is_urgent else ("nice", "-n", str(_LOW_PRIORITY))
    with tempfile.TemporaryDirectory(prefix="mlops-check-") as scratch:
        environment = clean_environment() | {
            "PREFECT_HOME": f"{scratch}/prefect",  # a profile may name any server
            "PYTHONNOUSERSITE": "1",
        }
        for code in (_CHECK, _IMPORT_EACH) if modules else (_CHECK,):
            try:
                run_process(
                    [*priority, str(python), "-c", _COLLECT_NOTHING + code, *modules],
                    folder=Path(scratch),
                    environment=environment,
                    on_line=lambda _: None,
                    cancel=cancel,
                    descriptors=descriptors,
                    limit_seconds=_LIMIT_SECONDS,
                )
            except ProcessCancelledError:
                return ""
            except ProcessFailedError as error:
                return error.output if code is _CHECK else ""
    return ""
