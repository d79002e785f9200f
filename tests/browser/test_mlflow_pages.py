"""MLflow's pages, as somebody who compares runs uses them."""

import pytest
from browser.conftest import OpenPage
from browser.logins import mlflow_login
from playwright.sync_api import Page, expect
from stacks.fixtures import PICTURE_SIZE, OneHost

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]
FLOW_RUN_TAG = "mlops.prefect_flow_run_id"


@pytest.fixture
def run_page(one_host: OneHost, flow_run: str, open_page: OpenPage) -> Page:
    """The page of the run that a flow run left behind."""
    tag = {"key": FLOW_RUN_TAG, "value": flow_run}
    runs = one_host.servers.mlflow_runs("stacked")
    name = next(run["info"]["run_name"] for run in runs if tag in run["data"]["tags"])
    page = open_page(one_host.servers.mlflow_url, mlflow_login(one_host.host.env()))
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name="Experiments", exact=True).click()
    page.get_by_role("link", name="stacked", exact=True).click()
    page.get_by_role("link", name=name).click()
    # The assistant, which opens by itself.
    page.get_by_role("button", name="Close", exact=True).click()
    return page


def test_run_shows_its_metric(run_page: Page) -> None:
    """The metric that the flow logged is on the run's first page."""
    expect(run_page.get_by_role("row").filter(has_text="score")).to_contain_text("0.5")


def test_run_shows_its_picture(run_page: Page) -> None:
    """The picture that the flow logged is shown among the run's artifacts."""
    run_page.get_by_role("tab", name="Artifacts").click()
    run_page.get_by_text("picture.png").click()
    picture = run_page.get_by_role("img", name="picture.png")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == PICTURE_SIZE[0]
