"""The pages at an address that is not loopback, and by a name."""

from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from browser.conftest import OpenPage
from browser.logins import log_in_to_minio, log_in_to_prefect, mlflow_login
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from playwright.sync_api import expect
from stacks.fixtures import wait_for
from stacks.hosts import NAME, ServerHost
from stacks.platform import Servers

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]


@pytest.fixture(params=["address", "name"])
def servers(request: pytest.FixtureRequest, server_host: ServerHost) -> Servers:
    """The servers at the bridge's address, and by the name that containers know."""
    host = server_host.address if request.param == "address" else NAME
    return Servers(server_host.servers.env, host)


def test_prefect_works(servers: Servers, open_page: OpenPage) -> None:
    """Prefect's pages find their data at the address that they came from."""
    page = open_page(servers.prefect_url)
    log_in_to_prefect(page, servers.env)
    page.get_by_role("link", name="Work Pools").click()
    expect(page.get_by_role("link", name="default-agent-pool").first).to_be_visible()


def test_mlflow_works(servers: Servers, open_page: OpenPage) -> None:
    """MLflow accepts what its own page posts: an experiment is made, and its runs are searched."""
    name = f"made at {urlsplit(servers.mlflow_url).hostname}"
    page = open_page(servers.mlflow_url, mlflow_login(servers.env))
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name="Experiments", exact=True).click()
    page.get_by_test_id("create-experiment-button").click()
    page.get_by_label("Experiment Name").fill(name)
    with (
        page.expect_response("**/runs/search") as searched,
        page.expect_response("**/experiments/create") as created,
    ):
        page.get_by_role("dialog").get_by_role("button", name="Create").click()
    assert created.value.ok
    assert searched.value.ok
    expect(page.get_by_role("main").get_by_role("link", name=name)).to_be_visible()


def test_minio_console_works(
    server_host: ServerHost, servers: Servers, open_page: OpenPage
) -> None:
    """The console lists the buckets, and what is in them."""
    key = f"shown at {urlsplit(servers.console_url).hostname}"
    server_host.servers.s3.put_object(Bucket="dvc", Key=key, Body=b"x")
    page = open_page(servers.console_url)
    log_in_to_minio(page, servers.env)
    bucket = page.get_by_role("heading", name="dvc")

    def is_open() -> bool:
        """Whether a click has opened the bucket; one during the page's own start is lost."""
        with suppress(PlaywrightTimeoutError):  # the button is gone when a click was only slow
            page.get_by_role("button", name="dvc").click(timeout=10_000)
        with suppress(PlaywrightTimeoutError):
            bucket.wait_for(timeout=10_000)
        return bucket.is_visible()

    wait_for(is_open, 90)
    expect(page.get_by_text(key)).to_be_visible()
