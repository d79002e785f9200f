import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlops

PROJECT = Path(__file__).parents[2]
FOLDERS = ("server", "flow_scheduler", "flow_agent", "ml_experimenter")


def dockerfile(folder: str) -> str:
    return (PROJECT / folder / "Dockerfile").read_text()


def steps(folder: str) -> list[str]:
    """Return a Dockerfile's RUN instructions, each in one line."""
    text = re.sub(r"(?m)^ *#.*\n", "", dockerfile(folder))
    return re.findall(r"(?m)^RUN .*", text.replace("\\\n", " "))


def stage(text: str, name: str) -> str:
    """Return a stage's instructions, without the comments after them."""
    (found,) = re.findall(
        rf"^FROM [^\n]+ AS {name}\n(.*?)(?=^FROM )", text, re.MULTILINE | re.DOTALL
    )
    return re.sub(r"\n\n#.*", "\n", str(found), flags=re.DOTALL).strip()


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_image_has_the_packages_version(folder: str) -> None:
    """The label says the version that the command line has."""
    assert f'image.version="{mlops.__version__}"' in dockerfile(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_images_are_built_alike(folder: str) -> None:
    """The stages that the images have in common differ in the lock's name only."""
    for name in ("builder", "code"):
        assert stage(dockerfile(folder), name) == stage(dockerfile("server"), name)
    bases = set(re.findall(r"^FROM (python:\S+)", "".join(map(dockerfile, FOLDERS)), re.MULTILINE))
    assert len(bases) == 1
    assert "# syntax=" not in dockerfile(folder)  # would need an image registry


@pytest.mark.parametrize("folder", FOLDERS)
def test_images_are_small_and_have_no_root(folder: str) -> None:
    """What builds is left behind in stages of its own, on bases with exact tags."""
    text = dockerfile(folder)
    stages = re.findall(r"(?m)^FROM (\S+)(?: AS (\S+))?$", text)
    assert len(stages) > 2
    names = {name for _, name in stages} | {"${VARIANT}"}
    assert all(re.search(r":\d+\.\d+\.\d+-", base) for base, _ in stages if base not in names)
    last = text[text.rindex("\nFROM ") :]
    assert re.findall("(?m)^USER (.+)", last) in (["10001:10001"], ["${HOST_UID}:${HOST_GID}"])
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", last))
    assert labels == {"title", "description", "version", "licenses"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_packages_are_known_by_hash(folder: str) -> None:
    """Nothing is installed from an index without a lock, but for torch's other builds."""
    commands = [part for step in steps(folder) for part in re.split(r"&&|;|\|", step)]
    installs = [c for c in commands if re.search(r"\bpip |uv build|(?<!apt-get )install -", c)]
    assert installs
    for command in installs:
        # `"$@"` is what the two calls of torch's function give it.
        known = "--require-hashes|--offline|--torch-backend|install --directory|/opt/torch .*\\$@"
        assert re.search(known, command), command


@pytest.mark.parametrize("folder", FOLDERS)
def test_downloads_are_cached(folder: str) -> None:
    """A build anew takes from caches what an earlier one has downloaded; torch would be twice."""
    for step in steps(folder):
        if re.search(r"\bpip |uv build", step) and "--no-cache" not in step:
            assert "--mount=type=cache,target=/root/.cache" in step
        if "apt-get" in step:
            assert "--mount=type=cache,target=/var/cache/apt,sharing=locked" in step
            assert "--mount=type=cache,target=/var/lib/apt,sharing=locked" in step
            # Or every package would be deleted once it is installed.
            assert step.index("rm -f /etc/apt/apt.conf.d/docker-clean") < step.index("apt-get")


def test_torch_is_one_layer() -> None:
    """The experimenter and the agent say the same about torch, so Docker builds and keeps one."""
    assert stage(dockerfile("flow_agent"), "torch") == stage(dockerfile("ml_experimenter"), "torch")


def test_default_environment_is_built_by_a_part_of_our_code() -> None:
    """Its stage has every module of ours that its build imports, and no other one."""
    code = "import mlops.agent.prebuild, sys; print(*(n for n in sys.modules if n[:5] == 'mlops'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    copies = re.findall(r"\bsrc/mlops/\S+", stage(dockerfile("flow_agent"), "environments"))
    files = {file for pattern in copies for file in PROJECT.glob(pattern)}
    modules = {".".join(f.relative_to(PROJECT / "src").with_suffix("").parts) for f in files}
    assert {name.removesuffix(".__init__") for name in modules} == set(done.stdout.split())


def test_jupyter_configuration_is_json() -> None:
    """JupyterLab would only warn about a file that it cannot read."""
    files = list((PROJECT / "ml_experimenter" / "jupyter").rglob("*.json"))
    assert files
    assert all(json.loads(file.read_text()) for file in files)
