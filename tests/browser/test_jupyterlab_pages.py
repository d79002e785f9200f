"""JupyterLab, as a data scientist uses it."""

import pytest
from browser.conftest import OpenPage
from playwright.sync_api import Page, expect
from stacks.fixtures import OneHost

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]
CELL = """\
import mlflow, torch
mlflow.set_experiment("by hand")
with mlflow.start_run() as run:
    mlflow.log_metric("two", float(torch.ones(2).sum()))
print("logged by", run.info.user_id, "as", run.info.run_id)"""


@pytest.fixture
def lab(one_host: OneHost, open_page: OpenPage) -> Page:
    """JupyterLab, opened with the token of `.env`."""
    env = one_host.host.env()
    page = open_page(f"http://127.0.0.1:{env['JUPYTER_PORT']}/lab?token={env['JUPYTER_TOKEN']}")
    expect(page.get_by_role("heading", name="Notebook")).to_be_visible()
    return page


def test_notebook_logs_to_mlflow(one_host: OneHost, lab: Page) -> None:
    """A cell of a new notebook finds torch, and logs to MLflow as the experimenter."""
    region = lab.get_by_role("region", name="main area content")
    region.get_by_role("button", name="Python 3").first.click()
    lab.get_by_role("textbox").last.click()
    lab.keyboard.insert_text(CELL)
    lab.keyboard.press("Shift+Enter")
    print(lab.locator("body").aria_snapshot())
    expect(lab.get_by_text("logged by")).to_be_visible()
    print(lab.locator("body").aria_snapshot())
    runs = one_host.servers.mlflow_runs("by hand")
    assert [m["value"] for m in runs[0]["data"]["metrics"]] == [2]
    lab.keyboard.press("Control+s")
    host = one_host.host
    notebook = host.folder / "dev-projects" / "Untitled.ipynb"
    assert notebook.stat().st_uid == int(host.env()["HOST_UID"])


def test_terminal_is_bash_and_finds_dvc(lab: Page) -> None:
    """The terminal is bash, and finds DVC."""
    lab.get_by_role("button", name="Terminal").click()
    print(lab.locator("body").aria_snapshot())
    lab.get_by_role("textbox", name="Terminal input").wait_for()
    lab.keyboard.type("dvc --version && echo $BASH_VERSION\n")
    print(lab.locator("body").aria_snapshot())


def test_no_news_is_offered(lab: Page) -> None:
    """JupyterLab does not ask whether to fetch news."""
    expect(lab.get_by_text("news")).to_have_count(0)
