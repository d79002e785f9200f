"""The compose files themselves, as Docker Compose reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stacks.fixtures import OneHost, completed, wait_for
from stacks.images import Build
from stacks.projects import CHECKOUT, STACKS, Host

pytestmark = pytest.mark.requires("docker")
ONE_SHOT = {"postgres-volume", "minio-volume", "setup", "prune"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A checkout after `./mlops init`, with nothing started."""
    host = Host(tmp_path_factory.mktemp("files") / "host")
    host.init()
    return host


def config(host: Host, stack: str, *options: str, raw: bool = False) -> dict[str, Any]:
    """Return a project's configuration, with the variables filled in, or raw."""
    how = ["--no-interpolate"] if raw else []
    done = host.project(stack).compose(*options, "config", "--format", "json", *how)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("stack", ["", *STACKS])
def test_file_is_understood(host: Host, stack: str) -> None:
    """`docker compose config -q` has nothing to say about any of the files."""
    done = host.project(stack).compose("--profile", "*", "config", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("stack", ["", *STACKS])
def test_every_service_is_looked_after(host: Host, stack: str) -> None:
    """What runs for long has a health check, limits, an exact image and starts again."""
    services = config(host, stack, "--profile", "*")["services"]
    for name, service in config(host, stack, "--profile", "*", raw=True)["services"].items():
        tag = services[name]["image"].partition(":")[2]
        assert tag, name
        assert tag != "latest", name
        assert "mem_limit" in service, name
        if name in ONE_SHOT:
            assert service["restart"] == "no", name
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert service["mem_limit"].startswith("${"), name
        assert service["cpus"].startswith("${"), name
        assert service["logging"]["options"]["max-size"], name


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_our_images_are_built_and_never_pulled(host: Host, profile: str) -> None:
    """One service of a stack builds its image, and no registry is asked for what we make."""
    services = config(host, "", "--profile", profile)["services"].values()
    ours = [service for service in services if service["image"].startswith("mlops-")]
    assert {service["pull_policy"] for service in ours} == {"never"}
    built = [service["image"] for service in ours if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in ours})


def test_our_images_have_an_init_process_already(host: Host) -> None:
    """Docker puts none before the one that an image of ours starts with."""
    services = config(host, "", "--profile", "*")["services"].values()
    assert not any(s.get("init") for s in services if s["image"].startswith("mlops-"))


def test_servers_may_finish_what_they_do(host: Host) -> None:
    """Docker kills no server that is still writing or sending after the usual ten seconds."""
    for name, service in config(host, "server")["services"].items():
        assert name in ONE_SHOT or service["stop_grace_period"] in {"30s", "1m0s"}, name


def test_same_volumes_from_the_root_and_from_a_stack(host: Host) -> None:
    """Whichever file starts it, a stack has the same volumes."""
    everything = config(host, "", "--profile", "*")["volumes"]
    for stack in STACKS:
        own = config(host, stack, "--profile", "*").get("volumes", {})
        assert {v["name"] for v in own.values()} <= {v["name"] for v in everything.values()}


def test_agents_beside_each_other_have_ports_of_their_own(host: Host) -> None:
    """An agent's metrics are published on this machine only, on a port that Docker finds free."""
    (port,) = config(host, "flow_agent")["services"]["flow-agent"]["ports"]
    assert (port["host_ip"], port["target"], port.get("published")) == ("127.0.0.1", 9464, None)


def test_files_of_the_checkout_stay_outside(host: Host) -> None:
    """Whatever modes git has given them, no container reads them; folders of users are mounted."""
    mounts = {
        mount["source"]
        for service in config(host, "", "--profile", "*")["services"].values()
        for mount in service.get("volumes", [])
        if mount["type"] == "bind"
    }
    assert mounts == {f"{host.folder}/dev-projects", f"{host.folder}/flows"}


@pytest.mark.parametrize(
    ("stack", "service"),
    [
        *(("", "flow-agent"), ("flow_agent", "flow-agent")),
        *(("", "ml-experimenter"), ("ml_experimenter", "ml-experimenter")),
    ],
)
def test_gpu_takes_the_place_of_cpu(host: Host, stack: str, service: str) -> None:
    """One of the two services is started, and the other one's GPUs are all reserved."""
    usual = config(host, stack)["services"]
    assert service in usual
    assert f"{service}-gpu" not in usual
    services = config(host, stack, "--profile", "gpu")["services"]
    assert service not in services
    (device,) = services[f"{service}-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])


def test_agent_with_gpus_has_torch_for_them(host: Host) -> None:
    """Its image brings torch along, and environments that it builds get the driver's."""
    agent = config(host, "flow_agent", "--profile", "gpu")["services"]["flow-agent-gpu"]
    assert agent["environment"]["TORCH_BACKEND"] == "auto"
    assert agent["build"]["args"]["VARIANT"] == "gpu"


@pytest.mark.parametrize("stack", ["", "ml_experimenter"])
def test_experimenter_differs_in_its_gpus_only(host: Host, stack: str) -> None:
    """With GPUs or without, it has the same image, home, address, servers and conditions."""
    usual = config(host, stack)["services"]["ml-experimenter"]
    other = config(host, stack, "--profile", "gpu")["services"]["ml-experimenter-gpu"]
    assert other.pop("deploy")
    assert other["environment"].pop("NVIDIA_DRIVER_CAPABILITIES") == "compute,utility"
    assert other.pop("profiles") != usual.pop("profiles")
    assert other == usual


@pytest.mark.parametrize(("written", "read"), [('["0","1"]', '["0","1"]'), ("", "all")])
def test_gpu_ids_reach_the_agent(written: str, read: str, tmp_path: Path) -> None:
    """GPU_IDS of `.env`, a JSON list, arrives as it is; empty, all GPUs are meant."""
    host = Host(tmp_path / "host", {"GPU_IDS": written})
    host.preset()
    host.init()
    services = config(host, "", "--profile", "*")["services"]
    assert services["flow-agent-gpu"]["environment"]["GPU_IDS"] == read
    assert services["flow-agent"]["environment"]["GPU_IDS"] == ""


def test_files_are_the_checkouts(host: Host) -> None:
    """What the tests start is what is shipped, unchanged."""
    for stack in ("", *STACKS):
        shipped = (CHECKOUT / stack / "compose.yaml").read_bytes()
        assert (host.folder / stack / "compose.yaml").read_bytes() == shipped


@pytest.mark.requires("gpu")
@pytest.mark.timeout(1800)
def test_gpu_agent_trains(build: Build, one_host: OneHost) -> None:
    """`flows/digits` runs through the agent that has the GPUs."""
    build("flow-agent-gpu")
    host, project, servers = one_host
    shutil.copytree(CHECKOUT / "flows" / "digits", host.folder / "flows" / "digits")
    wait_for(lambda: servers.deployment("digits/daily"), 60)
    project.compose("stop", "flow-agent")
    try:
        project.up("flow-agent-gpu", COMPOSE_PROFILES="gpu")
        assert "NVIDIA" in project.run("flow-agent-gpu", "nvidia-smi", "--list-gpus")
        completed(servers, servers.start_run("digits/daily"), 600)
    finally:
        project.compose("--profile", "gpu", "stop", "flow-agent-gpu")
        project.up()


@pytest.mark.requires("gpu")
@pytest.mark.timeout(1800)
def test_gpu_experimenter_computes(one_host: OneHost) -> None:
    """In the experimenter that has the GPUs torch computes on the first of them."""
    project = one_host.project
    code = "import torch; print(torch.ones(2, device='cuda').sum().item())"
    project.compose("stop", "ml-experimenter")
    try:
        project.up("ml-experimenter-gpu", COMPOSE_PROFILES="gpu")
        assert "NVIDIA" in project.run("ml-experimenter-gpu", "nvidia-smi", "--list-gpus")
        assert project.run("ml-experimenter-gpu", "python", "-c", code).strip() == "2.0"
    finally:
        project.compose("--profile", "gpu", "stop", "ml-experimenter-gpu")
        project.up()
