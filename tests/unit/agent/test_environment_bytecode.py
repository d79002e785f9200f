"""Bytecode that environments share: only of files that they have in common."""

import compileall
import os
import subprocess
import sys
from pathlib import Path

from mlops.agent.environment_bytecode import share_bytecode


def compiled(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in folder.rglob("*.pyc")}


def test_only_the_bytecode_of_common_files_is_taken_over(tmp_path: Path) -> None:
    """A file that is the same one is not compiled again; one that only looks the same is."""
    donor, target = tmp_path / "donor", tmp_path / "target"
    for folder in (donor, target):
        (folder / "package" / "sub").mkdir(parents=True)
    for name in ("package/same.py", "package/sub/deep.py", "package/other.py"):
        (donor / name).write_text("WORD = 'donor'\n")
    for name in ("package/same.py", "package/sub/deep.py"):
        os.link(donor / name, target / name)
    (target / "package" / "other.py").write_text("WORD = 'owner'\n")
    stamp = (donor / "package" / "other.py").stat()
    os.utime(target / "package" / "other.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    compileall.compile_dir(donor, quiet=1)

    assert share_bytecode(target, [tmp_path / "gone", donor, donor]) == 2
    assert compiled(target) == {"same", "deep"}
    code = "import package.same, package.other; print(package.same.WORD, package.other.WORD)"
    command = [sys.executable, "-v", "-c", code]
    run = subprocess.run(command, cwd=target, capture_output=True, text=True, check=True)
    assert run.stdout == "donor owner\n"
    assert f"matches {target / 'package' / 'same.py'}" in run.stderr
    assert f"matches {target / 'package' / 'other.py'}" not in run.stderr
