"""Projects with a pipeline, as DVC's files describe them, for tests without DVC."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml


def write_project(
    folder: Path,
    stages: dict[str, Any],
    *,
    params: str = "",
    added: tuple[str, ...] = (),
    remote: str = "s3://dvc/taxi",
) -> Path:
    """Make a project all of whose stages have run.

    Args:
        folder: The project.
        stages: Those of dvc.yaml.
        params: What is in params.yaml.
        added: Paths that were tracked with `dvc add`.
        remote: The default remote's address.
    """
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    remote = platform\n['remote \"platform\"']\n    url = {remote}\n"
    )
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    locked = {
        name: {"outs": [{"path": path, "hash": "md5", "md5": hash_of(path)} for path in outs(each)]}
        for name, each in stages.items()
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": locked}))
    if params:
        (folder / "params.yaml").write_text(params)
    for path in added:
        file = folder / f"{path}.dvc"
        file.parent.mkdir(parents=True, exist_ok=True)
        out = {"path": file.stem, "hash": "md5", "md5": hash_of(path)}
        file.write_text(json.dumps({"outs": [out]}))
    return folder


def outs(stage: dict[str, Any]) -> list[str]:
    """Return the paths of a stage's outputs."""
    return [
        path
        for each in stage.get("outs", [])
        for path in ([each] if isinstance(each, str) else each)
    ]


def hash_of(path: str) -> str:
    """Return the hash that the data at a path is said to have."""
    return f"{hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()}.dir"
