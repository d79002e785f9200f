from pathlib import Path

import pytest

from mlops.credentials import Credentials, load_credentials, load_or_create_credentials
from mlops.errors import MlopsError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "credentials.env"


def test_created_once(path: Path) -> None:
    """The first call makes the file, private; the second finds the same secrets."""
    first = load_or_create_credentials(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_credentials(path) == first
    assert load_credentials(path) == first
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_nothing_is_guessable_or_shared() -> None:
    """Every secret differs from every other and from the next platform's."""
    one, other = Credentials().model_dump(), Credentials().model_dump()
    names = {"prefect_username", "mlflow_admin_username"}
    secrets = [v for c in (one, other) for k, v in c.items() if k not in names]
    assert len(set(secrets)) == len(secrets)
    assert min(len(v) for k, v in one.items() if "password" in k or "secret" in k) >= 64


def test_each_role_has_its_own_key() -> None:
    """The S3 identities of the roles are separate."""
    credentials = Credentials()
    roles = ("mlflow", "scheduler", "agent", "experimenter", "prune")
    assert len({credentials.s3_key(role).access_key_id for role in roles}) == len(roles)


def test_new_release_adds_and_keeps(path: Path) -> None:
    """A secret that an older file lacks is added; those that are there stay as they are."""
    first = load_or_create_credentials(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("PRUNE_")))
    second = load_or_create_credentials(path)
    assert second.prune_s3_secret_access_key != first.prune_s3_secret_access_key
    assert second.postgres_password == first.postgres_password
    assert path.stat().st_mode & 0o777 == 0o600


def test_missing_file_says_what_to_do(path: Path) -> None:
    """Without the file the hint is to start the platform."""
    with pytest.raises(MlopsError, match="no credentials here") as raised:
        load_credentials(path)
    assert "mlops local up" in raised.value.hint


def test_file_open_to_others_is_refused(path: Path) -> None:
    """A file that other users may read is refused, with the mend."""
    load_or_create_credentials(path)
    path.chmod(0o640)
    with pytest.raises(MlopsError, match="other users may read it") as raised:
        load_credentials(path)
    assert raised.value.hint == f"chmod 600 {path}"


def test_foreign_file_is_refused_without_its_values(path: Path) -> None:
    """Unknown names are named; their values, which may be secrets, are not."""
    load_or_create_credentials(path)
    path.write_text(path.read_text() + "STRANGE=hunter2\n")
    with pytest.raises(MlopsError, match="not understood: STRANGE") as raised:
        load_credentials(path)
    assert "hunter2" not in str(raised.value)
