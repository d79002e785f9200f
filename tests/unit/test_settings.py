import json
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.settings import AgentSettings, CheckoutSettings, PrefectSettings

PLATFORM = {
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000",
    "AWS_ACCESS_KEY_ID": "agent-1",
    "AWS_SECRET_ACCESS_KEY": "s3-secret",
    "PREFECT_API_URL": "http://127.0.0.1:4200/api",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5050",
}


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in AgentSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in PLATFORM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_environment_is_read(platform: pytest.MonkeyPatch) -> None:
    """The contract's variables reach the settings, parsed."""
    platform.setenv("GPU_IDS", '["0", "1"]')
    platform.setenv("POOL_NAME", "gpus")
    settings = AgentSettings.from_environment()
    assert settings.gpu_ids == ("0", "1")
    assert settings.pool_name == "gpus"
    assert settings.aws_secret_access_key.get_secret_value() == "s3-secret"
    assert settings.ui_url == "http://127.0.0.1:4200"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("nonsense", "not an address; allowed: http://<host>:<port>"),
        ("http://", "not an address"),
        ("ftp://host", "not an address"),
        ("http://user:word@host:1", "holds credentials"),
    ],
)
def test_what_is_no_address_is_refused(
    platform: pytest.MonkeyPatch, address: str, expected: str
) -> None:
    """Every server's address is checked, and its credentials are not repeated."""
    for name in ("AWS_ENDPOINT_URL_S3", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        platform.setenv(name, address)
    with pytest.raises(MlopsError) as caught:
        AgentSettings.from_environment()
    assert str(caught.value).count(expected) == 3
    assert "word" not in str(caught.value)


def test_empty_is_missing_where_a_value_is_needed(platform: pytest.MonkeyPatch) -> None:
    """What Compose hands on from a `.env` that lacks it is told as not set, with the mend."""
    for name in ("AWS_SECRET_ACCESS_KEY", "MLOPS_HOST_NAME"):
        platform.setenv(name, "")
    with pytest.raises(MlopsError) as raised:
        AgentSettings.from_environment()
    assert "AWS_SECRET_ACCESS_KEY: not set" in raised.value.message
    assert "MLOPS_HOST_NAME: not set" in raised.value.message
    assert "`./mlops init` completes .env" in raised.value.hint


def test_login_without_a_password(platform: pytest.MonkeyPatch) -> None:
    """A `.env` without Prefect's password gives the name of its user alone, which is no login."""
    platform.setenv("PREFECT_API_AUTH_STRING", "admin:")
    with pytest.raises(MlopsError, match=r"no password; allowed: .*PREFECT_PASSWORD"):
        AgentSettings.from_environment()


def test_empty_variables_are_as_if_not_set(platform: pytest.MonkeyPatch) -> None:
    """Compose hands on unset variables as empty ones."""
    for name in ("QUEUE_NAME", "TORCH_BACKEND", "GPU_IDS"):
        platform.setenv(name, "")
    settings = AgentSettings.from_environment()
    assert settings.queue_name is None
    assert settings.torch_backend is None
    assert settings.gpu_ids == ()


@pytest.mark.parametrize("ids", ["all", None])
def test_all_gpus(platform: pytest.MonkeyPatch, ids: str | None) -> None:
    """Where nobody says anything else, an agent shows its runs what it sees itself."""
    if ids:
        platform.setenv("GPU_IDS", ids)
    assert AgentSettings.from_environment().gpu_ids == "all"


def test_options_win(platform: pytest.MonkeyPatch) -> None:
    """An option that was given wins over the environment; one that was not does not."""
    platform.setenv("POOL_NAME", "gpus")
    assert AgentSettings.from_environment(pool_name="cpus").pool_name == "cpus"
    assert AgentSettings.from_environment(pool_name=None).pool_name == "gpus"


@pytest.mark.parametrize("ids", ["0,1", "[0, 1]", json.dumps({"0": 1})])
def test_wrong_gpu_ids(platform: pytest.MonkeyPatch, ids: str) -> None:
    """GPU_IDS in another shape is refused, with an example of the right one."""
    platform.setenv("GPU_IDS", ids)
    with pytest.raises(MlopsError, match=r'GPU_IDS: .*\["0","1"\]'):
        AgentSettings.from_environment()


def test_all_missing_variables_at_once(platform: pytest.MonkeyPatch) -> None:
    """Every missing variable is named in one message."""
    for name in PLATFORM:
        platform.delenv(name)
    with pytest.raises(MlopsError) as raised:
        AgentSettings.from_environment()
    for name in PLATFORM:
        assert f"{name}: not set" in raised.value.message


def test_secrets_are_not_shown(platform: pytest.MonkeyPatch) -> None:
    """Printing settings shows no secret."""
    platform.setenv("PREFECT_API_AUTH_STRING", "admin:hunter2")
    assert "hunter2" not in repr(PrefectSettings.from_environment())
    assert "s3-secret" not in repr(AgentSettings.from_environment())


def test_cache_is_absolute(platform: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache's place does not move with the current folder."""
    platform.setenv("HOME", str(tmp_path))
    platform.delenv("MLOPS_CACHE_DIR", raising=False)
    assert AgentSettings.from_environment().mlops_cache_dir == tmp_path / ".cache/mlops"


def test_checkout_is_required_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a checkout, what needs one says so."""
    monkeypatch.delenv("MLOPS_CHECKOUT", raising=False)
    with pytest.raises(MlopsError, match="in a checkout only"):
        CheckoutSettings.from_environment().require()
