from pathlib import Path

import pytest

from mlops.data.dvc_config import DvcConfig
from mlops.errors import MlopsError


def write(project: Path, text: str, name: str = "config") -> None:
    (project / ".dvc").mkdir(exist_ok=True)
    (project / ".dvc" / name).write_text(text)


REMOTES = """\
[core]
    analytics = false
    remote = platform
['remote "platform"']
    url = s3://dvc/green_taxi/
['remote "below"']
    url = remote://platform/below
['remote "disk"']
    url = ../disk
['remote "round"']
    url = remote://round/x
"""


def test_remotes_are_found(tmp_path: Path) -> None:
    """The default remote, one by name, and one that is said relative to another."""
    write(tmp_path, REMOTES)
    config = DvcConfig(tmp_path)
    assert config.remote(None) == ("dvc", "green_taxi")
    assert config.remote("below") == ("dvc", "green_taxi/below")


def test_local_config_wins(tmp_path: Path) -> None:
    """What a user has set for this clone wins."""
    write(tmp_path, REMOTES)
    write(tmp_path, "['remote \"platform\"']\n    url = s3://other\n", "config.local")
    assert DvcConfig(tmp_path).remote(None) == ("other", "")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("disk", r"the remote 'disk' is \.\./disk, and not in S3"),
        ("none", "no remote 'none'"),
        ("round", "no remote 'round'"),
    ],
)
def test_remote_that_is_no_use_is_told(tmp_path: Path, name: str, what: str) -> None:
    """A remote that is elsewhere, or is not there, is named."""
    write(tmp_path, REMOTES)
    with pytest.raises(MlopsError, match=what):
        DvcConfig(tmp_path).remote(name)


def test_no_remote_at_all(tmp_path: Path) -> None:
    """A project without a default remote is told how to get one."""
    write(tmp_path, "")
    with pytest.raises(MlopsError, match="names no default remote") as error:
        DvcConfig(tmp_path).remote(None)
    assert "dvc remote add --default" in error.value.hint


def test_junk_is_named(tmp_path: Path) -> None:
    """A file that is no configuration is named."""
    write(tmp_path, "remote = x")
    with pytest.raises(MlopsError, match=r"\.dvc/config: not understood"):
        DvcConfig(tmp_path)
