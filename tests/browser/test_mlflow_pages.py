"""MLflow's pages, as somebody who compares runs uses them."""

import pytest
from browser.conftest import OpenPage
from browser.logins import mlflow_login
from playwright.sync_api import expect
from stacks.fixtures import OneHost, completed, wait_for

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]
RUN_TAG = "mlops.prefect_flow_run_id"


def test_run_shows_its_metric_and_picture(one_host: OneHost, open_page: OpenPage) -> None:
    """The run that a flow run left shows the metric, and among its artifacts the picture."""
    servers = one_host.servers
    wait_for(lambda: servers.deployment("stacked/stacked"), 60)
    flow_run = servers.start_run("stacked/stacked")
    completed(servers, flow_run)
    run = next(
        run
        for run in servers.mlflow_runs("stacked")
        if {"key": RUN_TAG, "value": flow_run} in run["data"]["tags"]
    )
    page = open_page(servers.mlflow_url, mlflow_login(one_host.host.env()))
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name="Experiments").click()
    page.get_by_role("link", name="stacked", exact=True).click()
    page.get_by_role("link", name=run["info"]["run_name"]).click()
    print(page.url, page.locator("body").aria_snapshot())
    expect(page.get_by_role("row").filter(has_text="score")).to_contain_text("0.5")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("picture.png").click()
    print(page.url, page.locator("body").aria_snapshot())
    picture = page.get_by_role("img", name="picture.png")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == 320
