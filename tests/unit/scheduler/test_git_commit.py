import os
import subprocess
from pathlib import Path

import pytest

from mlops import lineage
from mlops.scheduler.git_commit import git_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    """A flow folder in a repository, committed."""
    folder = tmp_path / "flows" / "one"
    folder.mkdir(parents=True)
    (folder / "flow.py").write_text("one = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return folder


def test_committed_code_has_its_commit(flow: Path) -> None:
    """What is written elsewhere in the repository does not matter."""
    (flow.parent / "other.py").write_text("two\n")
    assert git_commit(flow, ["flow.py"]) == git(flow, "rev-parse", "HEAD")


def test_code_that_no_commit_has_is_marked(flow: Path) -> None:
    """A changed file, and one that git does not know or ignores, make the code another."""
    dirty = f"{git(flow, 'rev-parse', 'HEAD')}-dirty"
    (flow / ".gitignore").write_text("data.csv\n")
    (flow / "data.csv").write_text("1\n")
    assert git_commit(flow, ["flow.py", "data.csv"]) == dirty
    (flow / "flow.py").write_text("one = 2\n")
    assert git_commit(flow, ["flow.py"]) == dirty


def test_without_a_repository_there_is_none(tmp_path: Path) -> None:
    """Neither a plain folder nor a repository without a commit has one."""
    assert git_commit(tmp_path, []) is None
    git(tmp_path, "init", "--quiet")
    assert git_commit(tmp_path, []) is None


def test_git_does_not_see_our_secrets(flow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that the repository's configuration names is run without our credentials."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = flow / "seen"
    git(flow, "config", "filter.spy.clean", f"env > {seen}; cat")
    (flow / ".gitattributes").write_text("*.py filter=spy\n")
    os.utime(flow / "flow.py", (1, 1))
    git_commit(flow, ["flow.py"])
    assert "secret" not in seen.read_text()


def test_version_carries_the_commit() -> None:
    """What a deployment's version tells is read back; other versions tell nothing."""
    content_hash, commit = "1" * 64, f"{'2' * 40}-dirty"
    version = lineage.version_text(content_hash, commit)
    assert (lineage.hash_of(version), lineage.commit_of(version)) == ("1" * 12, commit)
    plain = lineage.version_text(content_hash, None)
    assert (lineage.hash_of(plain), lineage.commit_of(plain)) == ("1" * 12, None)
    assert (lineage.hash_of("v1"), lineage.commit_of(None)) == ("", None)
