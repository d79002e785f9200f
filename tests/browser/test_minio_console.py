"""MinIO's console, as the platform's owner uses it."""

import pytest
from browser.conftest import OpenPage
from browser.logins import log_in_to_minio
from playwright.sync_api import expect
from stacks.fixtures import OneHost, wait_for

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]


def test_code_of_a_flow_is_shown(one_host: OneHost, open_page: OpenPage) -> None:
    """The owner finds a flow's code below its name and hash in the bucket `prefect`."""
    wait_for(lambda: one_host.servers.deployment("stacked/stacked"), 60)
    _, _, content_hash, _ = one_host.servers.keys("prefect", "flows/stacked/")[0].split("/", 3)
    page = open_page(one_host.servers.console_url)
    log_in_to_minio(page, one_host.host.env())
    for name in ("prefect", "flows", "stacked", content_hash):
        page.get_by_role("main").get_by_text(name, exact=True).click()
    expect(page.get_by_text("flow.py")).to_be_visible()
    print(page.url, page.locator("body").aria_snapshot())
