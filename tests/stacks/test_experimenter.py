"""The experimenter's container: its welcome, what an attached editor needs, and what it keeps."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from stacks.fixtures import ports, wait_for
from stacks.images import EXPERIMENTER
from stacks.projects import CHECKOUT, Host, Project, docker

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(900)]
SERVICE = "ml-experimenter"
NEWER = """\
FROM {image}
USER 0
RUN echo 'PS1="newer "' >>/etc/skel/.bashrc && cp /etc/skel/.bashrc /home/mlops/.bashrc
USER {user}
"""
THEMES = "@jupyterlab/apputils-extension:themes"
DARK = "JupyterLab Dark"
EXTENSION = "/home/mlops/.vscode-server/extensions/one"
LINE = "echo a line to find again"


class Experimenter(NamedTuple):
    """A host on which the experimenter is up; its servers are nowhere."""

    host: Host
    project: Project

    @property
    def welcome(self) -> Path:
        """The welcome notebook, as the host sees it."""
        return self.host.folder / "dev-projects" / "welcome.ipynb"

    def start_again(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the start of the container once more, as far as JupyterLab.

        A stand-in for that ends at once: JupyterLab has nothing to do with what is looked at.
        """
        stand_in = self.host.folder / "jupyter"
        stand_in.write_text("#!/bin/sh\n")
        stand_in.chmod(0o755)
        volume = f"{stand_in}:/opt/mlops/code/bin/jupyter:ro"
        return self.project.compose(
            *("run", "--rm", "--no-TTY", "--volume", volume, *options, SERVICE)
        )

    def theme(self, chosen: str | None = None) -> str:
        """Return JupyterLab's theme, a setting of the user's, after choosing another one."""
        env = self.host.env("ml_experimenter")
        url = f"http://127.0.0.1:{env['JUPYTER_PORT']}/lab/api/settings/{THEMES}"
        with httpx.Client(
            headers={"Authorization": f"token {env['JUPYTER_TOKEN']}"}, trust_env=False
        ) as client:
            if chosen:
                raw = json.dumps({"theme": chosen})
                client.put(url, json={"raw": raw}).raise_for_status()
            theme: str = json.loads(client.get(url).json()["raw"])["theme"]
        return theme


@pytest.fixture(scope="module")
def experimenter(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experimenter]:
    """An experimenter on a host of its own, started for the first time."""
    _ = images
    host = Host(tmp_path_factory.mktemp("experimenter") / "host", ports())
    host.preset()
    host.init()
    project = host.project("ml_experimenter")
    try:
        project.up()
        yield Experimenter(host, project)
    finally:
        host.remove()


def test_welcome_comes_once(experimenter: Experimenter) -> None:
    """The notebook is there at the first start, is the user's, and stays away once deleted."""
    shipped = (CHECKOUT / "ml_experimenter" / "welcome.ipynb").read_bytes()
    assert experimenter.welcome.read_bytes() == shipped
    assert experimenter.welcome.stat().st_uid == os.getuid()
    experimenter.welcome.write_text("mine")
    assert experimenter.start_again().returncode == 0
    assert experimenter.welcome.read_text() == "mine"
    experimenter.welcome.unlink()
    assert experimenter.start_again().returncode == 0
    assert [path.name for path in experimenter.welcome.parent.iterdir()] == []


def test_welcome_spares_a_file_of_its_name(experimenter: Experimenter) -> None:
    """Whoever starts with a new home and an old folder of projects keeps what is in it."""
    experimenter.welcome.write_text("mine")
    new_home = ("--volume", "/home/mlops")
    assert experimenter.start_again(*new_home).returncode == 0
    assert experimenter.welcome.read_text() == "mine"
    assert [path.name for path in experimenter.welcome.parent.iterdir()] == ["welcome.ipynb"]


def test_folder_that_cannot_be_written_does_without(experimenter: Experimenter) -> None:
    """JupyterLab starts all the same, and the log says why there is no notebook."""
    read_only = ("--volume", f"{experimenter.host.folder}/flows:/workspace/dev-projects:ro")
    done = experimenter.start_again("--volume", "/home/mlops", *read_only)
    assert done.returncode == 0
    assert "welcome.ipynb: cannot be put into DEV_PROJECTS_DIR" in done.stderr + done.stdout


def test_gpus_want_a_torch_for_them(experimenter: Experimenter) -> None:
    """With the GPUs' service, a torch that was built for CPUs is told at once, with the mend."""
    version = experimenter.host.folder / "version.py"
    version.write_text("cuda: Optional[str] = None\n")
    options = ("--env", "NVIDIA_DRIVER_CAPABILITIES=compute,utility")
    assert experimenter.start_again(*options).returncode == 0
    volume = f"{version}:/opt/torch/torch/version.py:ro"
    done = experimenter.start_again(*options, "--volume", volume)
    assert done.returncode == 1
    assert "TORCH_BACKEND: this image's torch has no CUDA" in done.stderr + done.stdout


# What VS Code's documents ask of a container, as commands that end with 0. VS Code itself cannot
# be had here: its server comes from its makers' own site.
NEEDS = {
    "glibc 2.28": """python -c 'import os
assert os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".") >= ["2", "28"]'""",
    "libstdc++ of GCC 8": "grep -q GLIBCXX_3.4.25 /usr/lib/*-linux-gnu/libstdc++.so.6",
    "tools": "for tool in bash cat curl getent git grep gzip ldd ps sed ssh tar uname"
    "; do command -v $tool || exit; done",
    "authorities": "test -s /etc/ssl/certs/ca-certificates.crt",
    "shell": 'test "$(getent passwd $(id -u) | cut -d: -f6,7)" = /home/mlops:/bin/bash',
    "home on the volume": """mkdir -p ~/.vscode-server
test "$(stat --format %m ~/.vscode-server)" = /home/mlops""",
    "programs at home": """cp /bin/true ~/.local/program && ~/.local/program""",
    "python with a kernel": """test "$(command -v python)" = /opt/mlops/venv/bin/python
python -c 'import ipykernel'""",
}


@pytest.mark.parametrize("need", NEEDS)
def test_attached_editor_finds_what_it_needs(experimenter: Experimenter, need: str) -> None:
    """VS Code's server, which the editor brings, starts in the container and keeps its own."""
    experimenter.project.run(SERVICE, "bash", "-euc", NEEDS[need])


def test_home_outlives_a_newer_image(experimenter: Experimenter, tmp_path: Path) -> None:
    """Settings, history and extensions are there after a kill and with another image."""
    project = experimenter.project
    assert experimenter.theme(DARK) == DARK
    project.run(SERVICE, "mkdir", "-p", EXTENSION)
    (container,) = project.containers()
    # As in a terminal that is open when the machine goes down.
    with subprocess.Popen(
        ["docker", "exec", "--interactive", container, "bash", "-li"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as shell:
        assert shell.stdin
        shell.stdin.write(f"{LINE}\n")
        shell.stdin.flush()
        search = ("exec", container, "grep", "--fixed-strings", LINE, "/home/mlops/.bash_history")
        wait_for(lambda: LINE in docker(*search, check=False), 60)
        docker("kill", container)
    newer = EXPERIMENTER.tag.replace(EXPERIMENTER.variant, "-newer")
    text = NEWER.format(image=EXPERIMENTER.tag, user=f"{os.getuid()}:{os.getgid()}")
    (tmp_path / "Dockerfile").write_text(text)
    try:
        docker("build", "--tag", newer, str(tmp_path))
        project.up(HOST_UID="newer")
        assert project.containers() != [container]
        assert experimenter.theme() == DARK
        said = project.run(SERVICE, "bash", "-lic", "history -r; history")
        assert LINE in said
        project.run(SERVICE, "test", "-d", EXTENSION)
    finally:
        project.down()
        docker("image", "rm", newer, check=False)
