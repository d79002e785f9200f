"""What keeps the pages under test to themselves."""

import pytest
from browser.conftest import OpenPage
from browser.elsewhere import Elsewhere
from playwright.sync_api import Error

pytestmark = pytest.mark.requires("docker", "chromium")


def test_request_to_another_host_is_noticed(open_page: OpenPage, other_hosts: Elsewhere) -> None:
    """A page that asks another host for something would fail its test, and gets nothing."""
    page = open_page("about:blank")
    with pytest.raises(Error, match="ERR_HTTP_RESPONSE_CODE_FAILURE"):
        page.goto("http://elsewhere.example.org/")
    assert any("elsewhere.example.org" in line for line in other_hosts.asked)
    other_hosts.asked.clear()
