"""JupyterLab, as a data scientist uses it."""

import json
import re
from typing import Any

import pytest
from browser.conftest import OpenPage
from playwright.sync_api import HttpCredentials, Page, WebSocket, expect
from stacks.fixtures import OneHost, wait_for

pytestmark = [pytest.mark.requires("docker", "chromium"), pytest.mark.timeout(900)]
IMPORT_SECONDS = 300  # torch, MLflow and Prefect from a cold disk
CELL = """\
import mlflow, torch
mlflow.set_experiment("by hand")
with mlflow.start_run() as run:
    mlflow.log_metric("sum", torch.ones(2).sum().item())
print("logged", mlflow.get_run(run.info.run_id).data.metrics)"""


def open_lab(one_host: OneHost, open_page: OpenPage, login: HttpCredentials | None = None) -> Page:
    """Open JupyterLab with the token of `.env`, with no tabs of an earlier visit.

    Args:
        one_host: Where it is.
        open_page: What opens it.
        login: For the pages of other servers that are opened from it.
    """
    env = one_host.host.env()
    address = f"http://localhost:{env['JUPYTER_PORT']}/lab?reset&token={env['JUPYTER_TOKEN']}"
    page = open_page(address, login)
    expect(page.get_by_role("heading", name="Notebook")).to_be_visible()
    return page


@pytest.fixture
def lab(one_host: OneHost, open_page: OpenPage) -> Page:
    """JupyterLab."""
    return open_lab(one_host, open_page)


def test_notebook_logs_to_mlflow(one_host: OneHost, lab: Page) -> None:
    """A cell finds torch and logs to MLflow as the experimenter; the file is the host user's."""
    lab.get_by_role("button", name="Python 3").first.click()
    expect(lab.get_by_role("button", name="| Idle")).to_be_visible()
    lab.get_by_role("feed", name="Cells").get_by_role("textbox").click()
    lab.keyboard.insert_text(CELL)
    lab.keyboard.press("Shift+Enter")
    expect(lab.get_by_text("logged {'sum': 2.0}")).to_be_visible(timeout=IMPORT_SECONDS * 1000)
    expect(lab.get_by_role("button", name="| Idle")).to_be_visible()

    servers = one_host.servers
    run = servers.mlflow_runs("by hand")[0]
    assert [metric["value"] for metric in run["data"]["metrics"]] == [2]
    # MLflow lets whoever made an experiment manage it.
    asked = {
        "username": "experimenter",
        "resource_type": "experiment",
        "resource_id": run["info"]["experiment_id"],
    }
    permissions = f"{servers.mlflow_url}/api/3.0/mlflow/users/permissions/get"
    assert servers.mlflow.get(permissions, params=asked).json()["permission"] == "MANAGE"

    lab.keyboard.press("Control+s")
    dialog = lab.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("by-hand.ipynb")
    dialog.get_by_role("button", name="Rename and Save").click()
    notebook = one_host.host.folder / "dev-projects" / "by-hand.ipynb"
    wait_for(lambda: notebook.exists() and "logged" in notebook.read_text(), 60)
    expect(dialog).to_have_count(0)
    assert notebook.stat().st_uid == int(one_host.host.env()["HOST_UID"])
    # By now JupyterLab would have asked whether one wants to have them.
    expect(lab.get_by_text("news")).to_have_count(0)


def test_welcome_notebook_runs(one_host: OneHost, open_page: OpenPage) -> None:
    """The first notebook runs as it is, and its link leads to the run's page in MLflow."""
    env = one_host.host.env()
    # What the notebook tells to answer MLflow with.
    login: HttpCredentials = {
        "username": "experimenter",
        "password": env["MLFLOW_EXPERIMENTER_PASSWORD"],
    }
    lab = open_lab(one_host, open_page, login)
    lab.get_by_role("listitem", name="welcome.ipynb").dblclick()
    expect(lab.get_by_role("button", name="| Idle")).to_be_visible()
    lab.get_by_role("menuitem", name="Run", exact=True).click()
    lab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(lab.get_by_text("Deployments in Prefect")).to_be_visible(timeout=IMPORT_SECONDS * 1000)
    expect(lab.get_by_text("the same predictions: True")).to_be_attached()

    lab.keyboard.press("Control+s")
    file = one_host.host.folder / "dev-projects" / "welcome.ipynb"
    outputs = wait_for(lambda: saved_outputs(file.read_text()), 60)
    assert {each["output_type"] for each in outputs} == {
        *("stream", "display_data", "execute_result")
    }
    assert not [each["text"] for each in outputs if each.get("name") == "stderr"]

    link = lab.get_by_role("link", name="The run in MLflow")
    link.scroll_into_view_if_needed()
    with lab.expect_popup() as popup:
        link.click()
    metric = popup.value.get_by_role("row").filter(has_text="accuracy")
    (run,) = one_host.servers.mlflow_runs("welcome")
    (value,) = (each["value"] for each in run["data"]["metrics"])
    expect(metric).to_contain_text(str(value))


def saved_outputs(notebook: str) -> list[dict[str, Any]]:
    """Return what a notebook's cells have put out; nothing before the last one is saved."""
    cells = [each for each in json.loads(notebook)["cells"] if each["cell_type"] == "code"]
    return [each for cell in cells for each in cell["outputs"]] if cells[-1]["outputs"] else []


def test_terminal_is_bash_and_finds_dvc(lab: Page) -> None:
    """A command typed into the terminal is run by a login bash, which finds DVC."""
    shown: list[str] = []

    def follow(socket: WebSocket) -> None:
        if "/terminals/" in socket.url:
            socket.on("framereceived", lambda frame: shown.append(str(frame)))

    def shows(pattern: str) -> bool:
        lab.title()  # lets the browser's events arrive
        return re.search(pattern, "".join(shown)) is not None

    lab.on("websocket", follow)  # the letters themselves are drawn, and not in the page
    lab.get_by_role("button", name="Terminal").click()
    wait_for(lambda: shows("[#$] "), 60)  # the prompt
    lab.get_by_role("textbox", name="Terminal input").focus()
    lab.keyboard.type('shopt -q login_shell && echo "bash $BASH_VERSION, dvc $(dvc --version)"\n')
    wait_for(lambda: shows(r"bash 5\.\S+, dvc 3\."), 120)
