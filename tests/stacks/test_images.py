"""What is in the images, and what is not. Servers are not needed here."""

import json
import os
import shutil
from pathlib import Path

import pytest
from stacks.images import AGENT, AGENT_GPU, EXPERIMENTER, IMAGES, SERVER, Build, Image
from stacks.projects import CHECKOUT, docker

import mlops

pytestmark = [pytest.mark.requires("docker", "package-index"), pytest.mark.timeout(1800)]
SMALL = tuple(image for image in IMAGES if image.limit_bytes)
STRANGER = ("--user", "1000:1000")
# Prints where the agent finds the environment of a flow without requirements, whatever the
# volume holds, and how long that takes.
FIND_ENVIRONMENT = """
import json, sys, time
from pathlib import Path
from mlops.agent.environments import EnvironmentCache, EnvironmentSpec
from mlops.settings import AgentSettings
settings = AgentSettings(
    aws_endpoint_url_s3="http://x:1", aws_access_key_id="x", aws_secret_access_key="x",
    prefect_api_url="http://x:1/api", mlflow_tracking_uri="http://x:1",
)
root = settings.mlops_cache_dir / "environments"
cache = EnvironmentCache(root, limit_bytes=1, prebuilt=settings.mlops_prebuilt_dir)
lines, started = [], time.monotonic()
spec = EnvironmentSpec(Path("/tmp"), torch_backend=settings.torch_backend)
found = cache.ensure(spec, lines.append)
seconds = time.monotonic() - started
cache.shrink(lines.append)
print(json.dumps([str(found.python), lines, [e.key for e in cache.entries()], seconds]))
"""


@pytest.fixture(scope="module", autouse=True)
def _images(images: None, build: Build) -> None:
    _ = images
    build("flow-agent-gpu")


def find_environment(agent: Image) -> str:
    volume = ("--tmpfs", "/var/lib/mlops:mode=1777")
    text = agent.run("python", "-c", FIND_ENVIRONMENT, options=(*STRANGER, *volume))
    python, lines, entries, seconds = json.loads(text)
    assert (lines, entries) == ([], [])
    assert seconds < 2
    assert python.startswith("/opt/mlops/environments/")
    return str(python)


@pytest.mark.parametrize("image", SMALL, ids=lambda image: image.name)
def test_an_image_keeps_to_its_size(image: Image) -> None:
    """An image is smaller than its limit."""
    size_bytes = image.inspect()["Size"]
    print(f"{image.tag}: {size_bytes / 1e6:.0f} MB")
    assert size_bytes < (image.limit_bytes or 0)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_says_what_it_is(image: Image) -> None:
    """Labels name it, its version and its licence; it has an init process and no root user."""
    config = image.inspect()["Config"]
    label = "org.opencontainers.image."
    assert config["Labels"][f"{label}title"] == image.name.removesuffix("-gpu")
    assert config["Labels"][f"{label}version"] == mlops.__version__
    assert config["Labels"][f"{label}licenses"] == "MIT"
    assert config["Labels"][f"{label}description"]
    assert config["Entrypoint"] == ["tini", "-g", "--"]
    owner = f"{os.getuid()}:{os.getgid()}" if image is EXPERIMENTER else "10001:10001"
    assert config["User"] == owner


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_any_user_may_run_an_image(image: Image) -> None:
    """The command line starts on a read-only root as a user whom the image does not know."""
    home = ("--env", "HOME=/tmp")
    assert "self-hosted" in image.run("mlops", "--help", options=(*STRANGER, *home))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_nothing_is_left_in_an_image(image: Image) -> None:
    """No compilers, no caches of package managers and no packages' tests are in it."""
    search = r"""
        find / -xdev \( -path /proc -o -path /sys \) -prune -o \( \
            -path '*/site-packages/*' -type d \( -name test -o -name tests \) \
            -o -path '/opt/torch/*' -type d \( -name test -o -name tests \) \
            -o -type f -path '*/.cache/*' \
            -o -type f -path '/var/cache/apt/*' ! -name lock \
            -o -type f -path '/var/lib/apt/lists/*' ! -name lock \
            \) -print
        for tool in cc gcc g++ make; do command -v $tool || true; done
    """
    assert image.run("sh", "-c", search, options=("--user", "0")).split() == []


def test_agent_finds_its_default_environment() -> None:
    """Flows without requirements run in the image's environment, whose bytecode is there."""
    python = find_environment(AGENT)
    report = AGENT.run(
        "sh",
        "-c",
        f"env -u PYTHONDONTWRITEBYTECODE {python} -v"
        " -c 'import boto3, mlflow, prefect.engine, prefect_aws' 2>&1"
        " | grep -c -e 'matches /opt' -e \"code object from '.*[.]py'\" -e 'wrote /'"
        f"; env -u PYTHONDONTWRITEBYTECODE {python} -v"
        " -c 'import boto3, mlflow, prefect.engine, prefect_aws' 2>&1"
        " | grep -e \"code object from '.*[.]py'\" -e 'wrote /' || true",
        options=STRANGER,
    )
    matched, *compiled = report.splitlines()
    assert int(matched) > 1000
    assert compiled == []


def test_agent_for_gpus_brings_torch_along() -> None:
    """Without a GPU torch is imported from the default environment, and was built for CUDA."""
    python = find_environment(AGENT_GPU)
    code = "import torch; print(torch.version.cuda, torch.ones(2).numpy().sum())"
    cuda, total = AGENT_GPU.run(python, "-c", code, options=STRANGER).split()
    assert int(cuda.split(".")[0]) >= 12
    assert float(total) == 2
    assert "TORCH_BACKEND=auto" in AGENT_GPU.inspect()["Config"]["Env"]


def test_torch_is_on_the_disk_once() -> None:
    """The experimenter and the agent for GPUs have their largest layer in common."""

    def first_layers(image: Image) -> list[str]:
        layers: list[str] = image.inspect()["RootFS"]["Layers"]
        return layers[:2]  # the base, and torch right on it

    assert first_layers(EXPERIMENTER) == first_layers(AGENT_GPU)


def test_experimenter_has_its_tools_in_a_login_shell() -> None:
    """A terminal of JupyterLab finds what a data scientist and an attached editor need."""
    tools = "bash curl dvc git jupyter less mlflow mlops nano prefect ps python ssh tar vi"
    command = f"for tool in {tools}; do command -v $tool >/dev/null || echo $tool; done"
    assert EXPERIMENTER.run("bash", "-lc", command) == ""
    assert EXPERIMENTER.run("bash", "-lc", "dvc --version").startswith("3.")


@pytest.mark.parametrize("owner", ["12345:23456", "33:20"], ids=["new", "taken"])
def test_files_belong_to_the_user_of_the_host(build: Build, owner: str, tmp_path: Path) -> None:
    """The image's user has the host user's numbers, also where Debian has given them away."""
    uid, gid = owner.split(":")
    build("ml-experimenter", HOST_UID=uid, HOST_GID=gid)
    image = Image("mlops-ml-experimenter", variant=f"-{uid}")
    try:
        tmp_path.chmod(0o777)
        volume = ("--volume", f"{tmp_path}:/workspace/dev-projects")
        command = "touch made && touch ~/kept && id -u && id -g && getent passwd $(id -u)"
        text = image.run("bash", "-lc", command, options=(*volume, "--volume", "/home/mlops"))
        assert text.split()[:2] == [uid, gid]
        assert text.strip().endswith(":/home/mlops:/bin/bash")
        status = (tmp_path / "made").stat()
        assert (status.st_uid, status.st_gid) == (int(uid), int(gid))
    finally:
        docker("image", "rm", image.tag)


def test_jupyterlab_asks_for_the_token_and_for_nothing_else() -> None:
    """JupyterLab answers with the token, refuses without, and shows no question about news."""
    ask = (
        "jupyter lab >/tmp/log 2>&1 & "
        "curl -s -o /dev/null --retry 60 --retry-delay 1 --retry-connrefused localhost:8888/api;"
        " curl -s -o /dev/null -w '%{http_code}\\n' localhost:8888/api/contents;"
        " curl -s -o /dev/null -w '%{http_code}\\n' -H 'Authorization: token t0ken'"
        " localhost:8888/api/contents;"
        " curl -s -H 'Authorization: token t0ken' 'localhost:8888/lab/api/settings/@jupyterlab/"
        "apputils-extension:notification'"
    )
    text = EXPERIMENTER.run(
        "bash", "-c", ask, options=("--env", "JUPYTER_TOKEN=t0ken", "--volume", "/home/mlops")
    )
    refused, answered, settings = text.split("\n", 2)
    assert (refused, answered) == ("403", "200")
    defaults = json.loads(settings)["schema"]["properties"]
    assert defaults["fetchNews"]["default"] == "false"
    assert defaults["checkForUpdates"]["default"] is False


def test_server_image_starts_mlflow_without_what_was_left_out() -> None:
    """What MLflow demands and the lock leaves out is not there, and its server imports."""
    code = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    names = ("matplotlib", "pyarrow", "scipy", "sklearn", "skops")
    assert SERVER.run("python", "-c", code % (names,)).strip() == "[]"
    SERVER.run("python", "-W", "ignore", "-c", "import mlflow.server.auth")


def test_build_context_is_what_the_images_are_made_of(tmp_path: Path) -> None:
    """Sources and locks are sent to Docker; secrets, data and what a machine makes are not."""
    sent = {
        "LICENSE",
        "README.md",
        "ml_experimenter/x",
        "pyproject.toml",
        "requirements/x",
        "src/x",
    }
    kept = {".env", ".mlops/x", ".venv/x", "dev-projects/x", "flows/x", "ml_experimenter/.env"}
    kept |= {"server/.env", "src/.env.old", "src/__pycache__/x", "tests/x"}
    context, copied = tmp_path / "context", tmp_path / "copied"
    for name in sent | kept:
        file = context / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    shutil.copy(CHECKOUT / ".dockerignore", context)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    options = ("--file", tmp_path / "Dockerfile", "--output", copied)
    docker("build", *map(str, options), str(context))
    files = {str(file.relative_to(copied)) for file in copied.rglob("*") if file.is_file()}
    assert files == sent
