"""The GPUs of this host, and who uses them, from NVIDIA's management library.

The library comes with the driver; its Python binding is installed everywhere, and says so where
the driver is missing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

from mlops.errors import MlopsError

# A process that has only opened a device holds about twice as much of an H100.
IN_USE_BYTES = 256 << 20


class NvmlError(MlopsError):
    """The driver is not there, or does not answer."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        number: In the order of the PCI bus, as the library counts.
        uuid: Its own for ever.
        name: Of the model.
    """

    number: str
    uuid: str
    name: str

    def __str__(self) -> str:
        return f"{self.number}: {self.name}"


class Nvml:
    """The library, opened at the first question.

    It stays open: on a host without NVIDIA's persistence daemon a device that nobody has open is
    switched off, and takes seconds to answer again. After an error it is opened anew, for a driver
    that was replaced.
    """

    def __init__(self) -> None:
        self._is_open = False

    def devices(self) -> list[Device]:
        """Return the GPUs that the driver shows to this process; in a container those it was given.

        Raises:
            NvmlError: There is no driver, or it is broken.
        """
        with self._opened():
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return [
                Device(
                    number=str(number),
                    uuid=pynvml.nvmlDeviceGetUUID(handle),
                    name=pynvml.nvmlDeviceGetName(handle),
                )
                for number, handle in enumerate(handles)
            ]

    def is_in_use(self, uuid: str) -> bool:
        """Return whether any process computes on a device, or holds much of its memory.

        In a container the driver shows no processes of others, and yet what memory they hold. A
        screen's memory is left out where its processes are seen.

        Args:
            uuid: Of a GPU, or of a MIG slice.

        Raises:
            NvmlError: The driver does not answer, or has lost the device.
        """
        with self._opened():
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            if _processes(pynvml.nvmlDeviceGetComputeRunningProcesses, handle):
                return True
            drawing = _processes(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
            return _used_bytes(handle) - sum(p.usedGpuMemory or 0 for p in drawing) > IN_USE_BYTES

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
            yield
        except pynvml.NVMLError as error:
            if self._is_open:
                self._is_open = False
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlShutdown()
            raise NvmlError(f"NVIDIA's driver does not answer: {error}") from error


def _processes(ask: Callable[[Any], list[Any]], handle: Any) -> list[Any]:
    """Return the processes on a device; none where it cannot tell (slices, old drivers)."""
    with contextlib.suppress(pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return ask(handle)
    return []


def _used_bytes(handle: Any) -> int:
    """Return how much of a device's memory is used; 0 where it has none of its own, or is old."""
    with contextlib.suppress(pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        # Version 1 counts what the driver keeps for itself, too: half a gigabyte of an H100.
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used)
    return 0
