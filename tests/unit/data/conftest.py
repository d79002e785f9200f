from pathlib import Path

import pytest
from dvc_remote import DvcRemote, Host

from mlops.storage import ObjectStore


@pytest.fixture
def remote(store: ObjectStore) -> DvcRemote:
    return DvcRemote(store)


@pytest.fixture
def host(tmp_path: Path, s3_url: str) -> Host:
    return Host(tmp_path, s3_url)
