"""How a person tells each server's pages who they are."""

from collections.abc import Mapping

from playwright.sync_api import HttpCredentials, Page


def log_in_to_prefect(page: Page, env: Mapping[str, str]) -> None:
    """Fill in Prefect's form, which takes user and password as one."""
    page.get_by_placeholder("admin:pass").fill(
        f"{env['PREFECT_USERNAME']}:{env['PREFECT_PASSWORD']}"
    )
    page.get_by_role("button", name="Login").click()


def log_in_to_minio(page: Page, env: Mapping[str, str]) -> None:
    """Fill in the form of MinIO's console, as the owner."""
    page.add_locator_handler(
        page.get_by_role("button", name="Acknowledge"),  # the licence, at a browser's first visit
        lambda button: button.click(),
    )
    page.get_by_role("textbox", name="Username").fill(env["MINIO_ROOT_USER"])
    page.get_by_role("textbox", name="Password").fill(env["MINIO_ROOT_PASSWORD"])
    page.get_by_role("button", name="Login").click()


def mlflow_login(env: Mapping[str, str]) -> HttpCredentials:
    """Return what the browser's own dialog is answered with."""
    return {"username": env["MLFLOW_ADMIN_USERNAME"], "password": env["MLFLOW_ADMIN_PASSWORD"]}
