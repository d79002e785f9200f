"""Prefect's pages, as somebody who looks after flows uses them."""

import pytest
from browser.conftest import STEP_SECONDS, OpenPage
from browser.logins import log_in_to_prefect
from playwright.sync_api import Page, expect
from stacks.fixtures import OneHost, completed, wait_for

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]


@pytest.fixture
def deployment_page(one_host: OneHost, flow_run: str, open_page: OpenPage) -> Page:
    """The page of the deployment that the scheduler registered, after a login."""
    _ = flow_run
    page = open_page(one_host.servers.prefect_url)
    log_in_to_prefect(page, one_host.host.env())
    page.get_by_role("link", name="Deployments").click()
    page.get_by_role("row").get_by_role("link", name="stacked").first.click()
    expect(page.get_by_text("Completed").first).to_be_visible()
    return page


def test_deployment_shows_its_schedule(deployment_page: Page) -> None:
    """The deployment's page says when it runs and that the schedule is on."""
    schedule = deployment_page.get_by_role("complementary")
    expect(schedule.get_by_text("Every minute")).to_be_visible()
    expect(schedule.get_by_role("switch")).to_be_checked()


def test_quick_run_completes(one_host: OneHost, deployment_page: Page) -> None:
    """The quick-run button starts a run, whose page follows it to its end and has its log."""
    page = deployment_page
    page.get_by_role("button", name="Run", exact=True).click()
    with page.expect_response("**/create_flow_run") as response:
        page.get_by_role("menuitem", name="Quick run").click()
    run = response.value.json()
    page.get_by_role("link", name=run["name"]).first.click()
    completed(one_host.servers, run["id"])
    expect(page.get_by_role("main").get_by_text("Completed", exact=True)).to_be_visible()
    # The page asks for the log no more once the run has ended; the last lines may come later.
    wait_for(lambda: "trained by stacked" in one_host.servers.log(run["id"]), STEP_SECONDS)
    page.reload()
    expect(page.get_by_text("trained by stacked")).to_be_visible()
