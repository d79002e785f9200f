"""An agent of a test's own, beside the platform's."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from embedded.conftest import Platform


@contextlib.contextmanager
def own_agent(platform: Platform, pool: str, folder: Path, **more: str) -> Iterator[Path]:
    """Serve a work pool for as long as the context lasts; yield the agent's log.

    Args:
        platform: Its servers; the environments of its own agent are shared, to save time.
        pool: Made when missing.
        folder: For the agent's cache and log; nothing else is in it.
        **more: Variables of the agent.
    """
    shared = platform.home / "agent" / "environments"
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "environments").symlink_to(shared)
    environment = platform.environment("agent") | {
        "POOL_NAME": pool,
        "MLOPS_CACHE_DIR": str(folder),
        "MLOPS_STOP_SECONDS": "0",
        "PREFECT_HOME": str(folder / "prefect"),
        **more,
    }
    path = folder / "log"
    with path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops", "agent", "start"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield path
            process.terminate()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait()
