"""The hashed locks in `requirements/`: one per role, all with the same versions.

`test` is the union of the roles that a checkout tests. It is resolved first and the others are
resolved under it, so that a flow, an image and a checkout never disagree about a version. The
locks hold names, versions and hashes; from which index they are fetched is the machine's own
configuration.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from mlops.agent.environment_packages import default_requirements
from mlops.errors import MlopsError

UNION = "test"
ROLES = ("server", "scheduler", "agent", "local")
EXPERIMENTER = "experimenter"  # not in the union: no test needs JupyterLab and DVC in a checkout
# What MLflow demands and its server does not import: a third of the server's image.
LEFT_OUT = {"server": ("matplotlib", "pyarrow", "scikit-learn", "scipy", "skops")}
# What `./mlops` itself needs where no uv is installed.
BOOTSTRAP = "bootstrap"
BUILD = "build"  # makes our wheel in the images
# The environment of flows without requirements, as the agent's image brings it along.
FLOW_DEFAULT = "flow-default"
# A layer of its own in the images, and not in the union: with CUDA it is 5 GB.
TORCH = "torch"
PACKAGES = {  # of the locks that are no extra of ours
    BOOTSTRAP: ["uv"],
    BUILD: ["hatchling"],
    FLOW_DEFAULT: default_requirements(),
    TORCH: ["numpy", "torch>=2.7,<3"],  # it hands arrays over to NumPy, but does not ask for it
}
# Each is resolved under those before it.
NAMES = (UNION, *ROLES, BOOTSTRAP, BUILD, FLOW_DEFAULT, EXPERIMENTER, TORCH)
# Examples whose pins follow the locks, so that their packages are in uv's cache already.
PINNED_EXAMPLES = (
    "dev-projects/green_taxi/requirements.txt",
    "flows/digits/requirements.txt",
    "flows/digits_torch/requirements.txt",
    "flows/green_taxi/requirements.txt",
    "src/mlops/experimenter/new_project/requirements.txt",
)

_LOCKED = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(?P<extras>\[[\w,-]+\])?==(?P<version>[^\s;]+)", re.MULTILINE
)


def _uv_compile(
    source: list[str], output: Path, *, uv: str, checkout: Path, stdin: str = ""
) -> None:
    command = [
        uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links",
        "--custom-compile-command", "./mlops lock",
        "--output-file", str(output), *source,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=checkout, input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MlopsError(
            f"requirements/{output.name}: cannot be resolved:\n{done.stderr.strip()}",
            hint="see the dependencies in pyproject.toml",
        )


def compile_locks(checkout: Path, folder: Path, *, uv: str, upgrade: bool) -> None:
    """Write all locks into `folder`.

    Args:
        checkout: Where pyproject.toml lies.
        folder: Where the locks go; versions in locks that are there already are kept.
        uv: The uv executable.
        upgrade: Take the newest versions instead of keeping those that are locked.

    Raises:
        MlopsError: The dependencies cannot be resolved together.
    """
    newest = ["--upgrade"] if upgrade else []
    extras = [option for extra in (UNION, *ROLES) for option in ("--extra", extra)]
    _uv_compile(
        ["pyproject.toml", *extras, *newest], folder / f"{UNION}.txt", uv=uv, checkout=checkout
    )
    done = [UNION]

    def resolve(name: str, *source: str, stdin: str = "") -> None:
        """Resolve under the locks that are done; why a package is there the union says."""
        limits = [part for lock in done for part in ("--constraints", str(folder / f"{lock}.txt"))]
        _uv_compile(
            [*source, "--no-annotate", *newest, *limits],
            folder / f"{name}.txt", uv=uv, checkout=checkout, stdin=stdin,
        )  # fmt: skip

    for name in NAMES[1:]:
        if name in PACKAGES:
            resolve(name, "-", stdin="\n".join(PACKAGES[name]))
        else:
            overrides = folder / f"{name}-overrides.in"
            # A marker that never holds is how uv leaves a dependency out.
            left_out = (f"{package}; python_version < '3'\n" for package in LEFT_OUT.get(name, ()))
            overrides.write_text("".join(left_out))
            resolve(name, "pyproject.toml", "--extra", name, "--overrides", str(overrides))
        if name not in ROLES:  # those hold nothing that the union does not
            done.append(name)


def locked_versions(lock: str) -> dict[str, str]:
    """Return the version of each package in a lock's text.

    A package that is locked at several versions (one per Python version) is left out.
    """
    versions: dict[str, set[str]] = {}
    for match in _LOCKED.finditer(lock):
        versions.setdefault(match["name"], set()).add(match["version"])
    return {name: one.pop() for name, one in versions.items() if len(one) == 1}


def follow_lock(requirements: str, versions: dict[str, str]) -> str:
    """Return the text of a requirements file with its `==` pins set to the locked versions."""
    return _LOCKED.sub(
        lambda match: (
            f"{match['name']}{match['extras'] or ''}"
            f"=={versions.get(match['name'], match['version'])}"
        ),
        requirements,
    )


def expected_files(checkout: Path, *, uv: str, upgrade: bool = False) -> dict[Path, str]:
    """Return what the locks and the examples' pins should say.

    Args:
        checkout: The checkout; nothing in it is changed.
        uv: The uv executable.
        upgrade: As for `compile_locks`.

    Returns:
        Path relative to the checkout, and the text that the file should have.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for lock in (checkout / "requirements").glob("*.txt"):
            shutil.copy(lock, folder)
        compile_locks(checkout, folder, uv=uv, upgrade=upgrade)
        expected = {
            Path("requirements") / f"{name}.txt": (folder / f"{name}.txt").read_text()
            for name in NAMES
        }
    versions: dict[str, str] = {}
    for name in (TORCH, EXPERIMENTER, UNION):  # where they know the same package, they agree
        versions |= locked_versions(expected[Path("requirements") / f"{name}.txt"])
    for example in PINNED_EXAMPLES:
        path = Path(example)
        expected[path] = follow_lock((checkout / path).read_text(), versions)
    return expected


def stale_files(checkout: Path, expected: dict[Path, str]) -> list[Path]:
    """Return which files, relative to the checkout, differ from what they should say."""
    return [
        path
        for path, text in expected.items()
        if not (checkout / path).is_file() or (checkout / path).read_text() != text
    ]
