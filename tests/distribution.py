"""How `./mlops test` shares the tests out among its workers (pytest-xdist).

A worker takes whole modules, one after another, with a platform of its own for those that need
one. Some go to one worker together, for what they share takes long to make: those that start
Docker projects in two groups, of which one shares a host on which everything runs, and the other a
server for hosts apart; and those about experiment projects, which share the projects' packages.
"""

import os
from contextlib import suppress

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

DOCKER = ("stacks", "browser")
DOCKER_GROUPS = ("docker", "docker, hosts apart")
TOGETHER = {
    "test_bad_input.py": DOCKER_GROUPS[1],
    "test_documents.py": DOCKER_GROUPS[1],
    "test_four_hosts.py": DOCKER_GROUPS[1],
    "test_offline_images.py": DOCKER_GROUPS[1],
    "test_whole_day.py": DOCKER_GROUPS[1],
    "test_green_taxi_project.py": "projects",
    "test_projects.py": "projects",
    "test_to_flow.py": "projects",
}
# What takes longest comes first, so that no worker is left alone with it in the end.
ORDER = (*DOCKER, "embedded", "unit")
# Docker's two groups take longest from their first test to their last, though they mostly wait for
# stacks: what they ask for is done first.
NICENESS_OF_OTHERS = 5
LAST_ON_ONE_HOST = "test_nothing_lost.py"  # leaves nothing as it was
SLOW_UNITS = ("test_environments.py", "test_bootstrap.py", "test_locks.py", "test_wheel.py")


class ModuleScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker the next module, or the next group of them at once."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0].rpartition("/")[2]
        alone = DOCKER_GROUPS[0] if _folder(nodeid) in DOCKER else str(super()._split_scope(nodeid))
        return TOGETHER.get(module, alone)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Give a worker that has had Docker's tests the unit tests next.

        To start a platform for the last few of the others would take it longer than they take.
        """
        unit = next((scope for scope in self.workqueue if scope.startswith("tests/unit/")), None)
        if unit and any(scope in DOCKER_GROUPS for scope in self.assigned_work[node]):
            self.workqueue.move_to_end(unit, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ModuleScheduling:
    """Share out by modules in the order of collection, whatever `--dist` says."""
    config.option.loadscopereorder = False
    return ModuleScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the folders into their order, any other one last, and slow modules to their front."""
    items.sort(key=lambda item: _place(_folder(item.nodeid), item.path.name))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let other tests, and all that they start, stand back behind those with Docker."""
    with suppress(PermissionError):  # only root may go back
        niceness = 0 if needs_docker(item) else NICENESS_OF_OTHERS
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def needs_docker(item: pytest.Item) -> bool:
    """Return whether a test is one of those that start Docker projects."""
    return _folder(item.nodeid) in DOCKER


def _place(folder: str, module: str) -> tuple[int, bool]:
    if module == LAST_ON_ONE_HOST:
        folder = DOCKER[-1]
    return (*ORDER, folder).index(folder), module not in {*TOGETHER, *SLOW_UNITS}


def _folder(nodeid: str) -> str:
    """Return which folder of `tests/` a test is in."""
    return nodeid.split("/")[1]
