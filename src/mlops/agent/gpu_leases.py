"""Which run has which GPU.

A lease is a file, `gpus/<uuid>` in the agent's cache, locked by the agent that gave the device to a
run. The kernel releases the lock of an agent that was killed; its run may go on all the same, and
is found by the mark that its processes carry. So agents that share a cache never give a device to
two runs, and what a dead run had is free.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.agent.nvml import Device, Nvml, NvmlError
from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.agent.status import GpuStatus
from mlops.marked_processes import find_marked

NO_GPU = "none"
GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"  # CUDA's own
# CUDA's own, too: by itself it counts the fastest device first, and the driver by their places.
ORDER_VARIABLE, DRIVERS_ORDER = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"


class Lease(BaseModel):
    """What a lease's file says.

    Attributes:
        flow_run_id: Whose the device is.
        worker: The agent's name in Prefect.
        attempt: The mark of the run's processes; None before it begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow_run_id: UUID
    worker: str
    attempt: str | None = None


@dataclass(frozen=True)
class Shortage:
    """Why a run does not get its devices now.

    Attributes:
        leased: Devices of the agent that other runs have.
        foreign: Devices that processes use to which no agent gave them.
    """

    leased: int
    foreign: int


class GpuLease:
    """The devices of one run, with their files locked.

    Args:
        by_number: Whether CUDA is told numbers; else UUIDs.

    Attributes:
        devices: None of them for a run that asks for none.
    """

    def __init__(self, *, by_number: bool = True) -> None:
        self.devices: tuple[Device, ...] = ()
        self._by_number = by_number
        self._files: list[int] = []

    @property
    def environment(self) -> dict[str, str]:
        """What CUDA must find set to see these devices and no others."""
        ids = (each.number if self._by_number else each.uuid for each in self.devices)
        return {GPUS_VARIABLE: ",".join(ids), ORDER_VARIABLE: DRIVERS_ORDER}

    def __str__(self) -> str:
        return ", ".join(map(str, self.devices)) or NO_GPU

    def add(self, device: Device, file: int) -> None:
        """Take a device.

        Args:
            device: The device.
            file: Descriptor of its lease's file, locked.
        """
        self.devices += (device,)
        self._files.append(file)

    def note(self, entry: Lease) -> None:
        """Note whose the devices are."""
        content = entry.model_dump_json().encode()
        for file in self._files:
            os.pwrite(file, content, 0)
            os.ftruncate(file, len(content))

    def close(self, *, attempt: str | None = None) -> None:
        """Give the devices back; those of a run that has left processes when these are gone.

        Args:
            attempt: The mark of the run's processes.
        """
        goes_on = bool(attempt and self._files and find_marked(ATTEMPT_VARIABLE, attempt))
        for file in self._files:
            if not goes_on:
                os.ftruncate(file, 0)
            os.close(file)
        self._files.clear()


class GpuLeases:
    """The devices that this agent may give to runs; safe to be asked by several threads.

    Args:
        root: The agent's cache, on a disk of this host.
        ids: Numbers or UUIDs, as for CUDA_VISIBLE_DEVICES; `all`: those that the driver shows.
        worker: The agent's name in Prefect.
        nvml: The driver.

    Attributes:
        devices: All of them.
        problems: Why some that were named are not among them, for people.
    """

    def __init__(
        self,
        root: Path,
        ids: Sequence[str] | Literal["all"],
        *,
        worker: str,
        nvml: Nvml | None = None,
    ) -> None:
        self._folder = root / "gpus"
        self._worker = worker
        self._nvml = nvml or Nvml()
        self._asked = threading.Lock()
        self._reserved: dict[UUID, GpuLease] = {}
        self.devices, self.problems = _find_devices(ids, self._nvml)
        self._by_number = ids == "all" or all(each.isdigit() for each in ids)

    def reserve(self, flow_run_id: UUID, count: int) -> Shortage | None:
        """Keep devices for a run that is about to be taken; None: they are kept.

        Args:
            flow_run_id: The run.
            count: How many devices it needs.

        Raises:
            OSError: The leases cannot be read or written.
        """
        with self._asked:
            if flow_run_id in self._reserved:
                return None
            with self._alone():
                return self._choose(flow_run_id, count)

    def cancel_reservation(self, flow_run_id: UUID) -> None:
        """Free what is kept for a run that was not taken, or has not begun."""
        with self._asked:
            if lease := self._reserved.pop(flow_run_id, None):
                lease.close()

    @contextlib.contextmanager
    def lease(self, flow_run_id: UUID, attempt: str) -> Iterator[GpuLease]:
        """Give a run what is kept for it, for the length of the block.

        Args:
            flow_run_id: The run.
            attempt: The mark of its processes.
        """
        with self._asked:
            lease = self._reserved.pop(flow_run_id, None) or GpuLease()
        try:
            lease.note(Lease(flow_run_id=flow_run_id, worker=self._worker, attempt=attempt))
            yield lease
        finally:
            lease.close(attempt=attempt)

    def statuses(self) -> tuple[GpuStatus, ...]:
        """Return who has each device now, whichever agent of this host gave it."""
        if not self.devices:
            return ()
        with self._asked, self._alone():
            return tuple(map(self._status, self.devices))

    def _status(self, device: Device) -> GpuStatus:
        file = self._open(device)
        try:
            if not _is_free(file):
                entry = _read(file)
                return GpuStatus(gpu=device.number, flow_run_id=entry and entry.flow_run_id)
        finally:
            os.close(file)
        problem = "processes that are no runs use it" if self._is_in_use(device) else None
        return GpuStatus(gpu=device.number, problem=problem)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Choose while no other agent does: of two that take one device each neither had two."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "lock"):
            yield

    def _open(self, device: Device) -> int:
        return os.open(self._folder / device.uuid, os.O_RDWR | os.O_CREAT, 0o600)

    def _choose(self, flow_run_id: UUID, count: int) -> Shortage | None:
        chosen = GpuLease(by_number=self._by_number)
        leased = foreign = 0
        try:
            for device in self.devices:
                if len(chosen.devices) == count:
                    break
                file = self._open(device)
                if not _is_free(file):
                    leased += 1
                elif self._is_in_use(device):
                    foreign += 1
                else:
                    chosen.add(device, file)
                    continue
                os.close(file)
            chosen.note(Lease(flow_run_id=flow_run_id, worker=self._worker))
        except BaseException:
            chosen.close()
            raise
        if len(chosen.devices) < count:
            chosen.close()
            return Shortage(leased, foreign)
        self._reserved[flow_run_id] = chosen
        return None

    def _is_in_use(self, device: Device) -> bool:
        try:
            return self._nvml.is_in_use(device.uuid)
        except NvmlError:  # nothing could compute on it
            return True


def _find_devices(
    ids: Sequence[str] | Literal["all"], nvml: Nvml
) -> tuple[tuple[Device, ...], list[str]]:
    """Return the devices that are meant, each once, and what is wrong with the others."""
    try:
        known = nvml.devices() if ids else []
    except NvmlError as error:
        # Without a word on a host without GPUs, where nobody has named any.
        return (), [] if ids == "all" else [f"GPU_IDS: {', '.join(ids)}: {error}"]
    if ids == "all":
        return tuple(known), []
    found: dict[str, Device] = {}
    problems = []
    for each in ids:
        if device := _find_device(each, known):
            found.setdefault(device.uuid, device)
        else:
            there = ", ".join(device.number for device in known) or NO_GPU
            problems.append(f"GPU_IDS: {each}: there is no such GPU; there are: {there}")
    return tuple(found.values()), problems


def _find_device(wanted: str, known: Sequence[Device]) -> Device | None:
    """Return a device by its number, its UUID or the beginning of that, as CUDA takes them."""
    if wanted.startswith("MIG-"):  # a slice, which the driver lists below its GPU
        return Device(number=wanted, uuid=wanted, name="MIG")
    matches = [
        device
        for device in known
        if wanted == device.number or (wanted.startswith("GPU-") and device.uuid.startswith(wanted))
    ]
    return matches[0] if len(matches) == 1 else None


def _is_free(file: int) -> bool:
    """Lock a lease's file, unless another agent has, or a run of a dead one goes on."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    entry = _read(file)
    if entry is None or entry.attempt is None:
        return True
    return not find_marked(ATTEMPT_VARIABLE, entry.attempt)


def _read(file: int) -> Lease | None:
    """Return what a lease's file says; None: it was given back, or cut short by a power cut."""
    with contextlib.suppress(ValidationError):
        return Lease.model_validate_json(os.pread(file, 1 << 12, 0))
    return None
