"""Registrations through proxies that stand before the platform's servers."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from embedded.conftest import Platform, run_cli
from fault_proxy import FaultProxy

Server = Literal["prefect", "s3"]


class Proxies(NamedTuple):
    """A proxy before each server, and the environment of a registration through them."""

    prefect: FaultProxy
    s3: FaultProxy
    environment: dict[str, str]


class Attempt(NamedTuple):
    """How a registration through proxies ended."""

    done: subprocess.CompletedProcess[str]
    seconds: float
    requests: dict[Server, int]


@contextmanager
def proxies(platform: Platform, server: Server | None = None, **options: Any) -> Iterator[Proxies]:
    """Put a proxy before each server.

    Args:
        platform: The servers.
        server: Whose proxy has options.
        **options: Those of `FaultProxy`.
    """
    with (
        FaultProxy(
            platform.addresses.prefect, **(options if server == "prefect" else {})
        ) as prefect,
        FaultProxy(platform.addresses.s3, **(options if server == "s3" else {})) as s3,
    ):
        environment = platform.environment("scheduler") | {
            "PREFECT_API_URL": f"{prefect.url}/api",
            "AWS_ENDPOINT_URL_S3": s3.url,
        }
        yield Proxies(prefect, s3, environment)


def attempt(
    platform: Platform, folder: Path, server: Server | None = None, **options: Any
) -> Attempt:
    """Register a folder through proxies; see `proxies`."""
    with proxies(platform, server, **options) as between:
        began = time.monotonic()
        done = run_cli("flows", "register", str(folder), environment=between.environment)
        seconds = time.monotonic() - began
        counts: dict[Server, int] = {
            "prefect": len(between.prefect.requests),
            "s3": len(between.s3.requests),
        }
        return Attempt(done, seconds, counts)
