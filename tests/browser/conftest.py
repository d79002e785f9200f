"""A real browser, and pages in it that talk to the server that they came from and nobody else."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser.elsewhere import Elsewhere, elsewhere
from playwright.sync_api import (
    Browser,
    HttpCredentials,
    Page,
    Request,
    TimeoutError,  # noqa: A004  # Playwright's own
    expect,
    sync_playwright,
)
from stacks.fixtures import OneHost, completed, wait_for
from stacks.hosts import NAME
from stacks.projects import bridge_address

CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--disable-gpu", "--disable-quic")  # beside Playwright's own
# Chromium itself asks there about forms that it sees, whatever the flags: not the page's doing.
CHROMIUMS_OWN = "content-autofill.googleapis.com"
STEP_SECONDS = 60  # for one condition; a loaded machine takes its time
expect.set_options(timeout=STEP_SECONDS * 1000)

LOADS = 5
LOAD_SECONDS = 30
IDLE_SECONDS = 5

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's own Chromium; ended with the module, whose event loop other tests must not see."""
    # As containers know it; this machine itself may not.
    rules = f"--host-resolver-rules=MAP {NAME} {bridge_address()}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def flow_run(one_host: OneHost) -> str:
    """A run of the flow that lies in flows/, which has completed: its id."""
    wait_for(lambda: one_host.servers.deployment("stacked/stacked"), 60)
    run_id = one_host.servers.start_run("stacked/stacked")
    completed(one_host.servers, run_id)
    return run_id


@pytest.fixture
def other_hosts() -> Iterator[Elsewhere]:
    """Where requests of pages to other hosts than their own end."""
    with elsewhere() as proxy:
        yield proxy


@pytest.fixture
def open_page(
    chromium: Browser, other_hosts: Elsewhere, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[OpenPage]:
    """Open an address in a window of its own, as somebody who was never here.

    When the test ends, what the window shows is kept as a picture named after the test.
    """
    pages: list[Page] = []

    def open_page(url: str, login: HttpCredentials | None = None) -> Page:
        context = chromium.new_context(
            viewport={"width": 1280, "height": 800},
            http_credentials=login,
            proxy={"server": other_hosts.url, "bypass": urlsplit(url).hostname or ""},
        )
        context.set_default_timeout(STEP_SECONDS * 1000)
        page = context.new_page()
        pages.append(page)
        _load(page, url)
        return page

    yield open_page
    output = Path(os.environ.get("MLOPS_TEST_OUTPUT", tmp_path)) / "screenshots"
    name = re.sub(r"[^a-z0-9.]+", "-", request.node.name.removeprefix("test_")).strip("-")
    for page in pages:
        page.screenshot(path=output / f"{name}.png")
        page.context.close()
    assert not [line for line in other_hosts.asked if CHROMIUMS_OWN not in line]


def _load(page: Page, url: str) -> None:
    """Open an address, again where Chromium dropped requests or waits for ever for one.

    It drops what is under way when any network interface comes or goes, a container's included.
    """
    dropped: list[Request] = []

    def note(request: Request) -> None:
        if request.failure == "net::ERR_NETWORK_CHANGED":
            dropped.append(request)

    page.on("requestfailed", note)
    for _ in range(LOADS):
        dropped.clear()
        with contextlib.suppress(TimeoutError):
            page.goto(url, timeout=LOAD_SECONDS * 1000)
            # MLflow's pages are never idle: what a test waits for is on them long before.
            with contextlib.suppress(TimeoutError):
                page.wait_for_load_state("networkidle", timeout=IDLE_SECONDS * 1000)
            if not dropped:
                return
