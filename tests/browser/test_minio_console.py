"""MinIO's console, as the platform's owner uses it."""

import pytest
from browser.conftest import OpenPage
from browser.logins import log_in_to_minio
from playwright.sync_api import expect
from stacks.fixtures import OneHost

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]


def test_code_of_a_flow_is_shown(one_host: OneHost, flow_run: str, open_page: OpenPage) -> None:
    """The owner finds a flow's code below its name and hash in the bucket `prefect`."""
    _ = flow_run
    key = one_host.servers.keys("prefect", "flows/stacked/")[0]
    page = open_page(one_host.servers.console_url)
    log_in_to_minio(page, one_host.host.env())
    page.get_by_role("button", name="prefect").click()
    for name in key.split("/")[:-1]:
        page.get_by_role("main").get_by_text(name, exact=True).click()
    expect(page.get_by_text("flow.py")).to_be_visible()
