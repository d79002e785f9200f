"""How `./mlops test` shares the tests out among its workers (pytest-xdist).

A worker takes whole modules, one after another, with a platform of its own for those that need
one. Those that start Docker projects go to two workers: the ones share a host on which everything
runs, and make images anew; the others share a server, and leave images as they are.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

DOCKER = ("stacks", "browser")
HOSTS_APART = {
    "test_bad_input.py",
    "test_four_hosts.py",
    "test_offline_images.py",
    "test_whole_day.py",
}
# What takes longest comes first, so that no worker is left alone with it in the end.
ORDER = (*DOCKER, "embedded", "unit")
SLOW_UNITS = ("test_environments.py", "test_bootstrap.py", "test_locks.py", "test_wheel.py")


class ModuleScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker the next module, or a half of the Docker folders at once."""

    def _split_scope(self, nodeid: str) -> str:
        if _folder(nodeid) not in DOCKER:
            return str(super()._split_scope(nodeid))
        module = nodeid.partition("::")[0].rpartition("/")[2]
        return "docker, hosts apart" if module in HOSTS_APART else "docker"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ModuleScheduling:
    """Share out by modules in the order of collection, whatever `--dist` says."""
    config.option.loadscopereorder = False
    return ModuleScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the folders into their order, any other one last, and slow modules to their front."""
    items.sort(key=lambda item: _place(_folder(item.nodeid), item.path.name))


def needs_docker(item: pytest.Item) -> bool:
    """Return whether a test is one of those that start Docker projects."""
    return _folder(item.nodeid) in DOCKER


def _place(folder: str, module: str) -> tuple[int, bool]:
    return (*ORDER, folder).index(folder), module not in SLOW_UNITS


def _folder(nodeid: str) -> str:
    """Return which folder of `tests/` a test is in."""
    return nodeid.split("/")[1]
