"""NVIDIA's library of a machine that a JSON file describes: tests run where no GPU is.

It stands in for the binding that is installed, at the border to the driver: what our agent asks of
it and no more. Put its folder first on PYTHONPATH, and the file's path into FAKE_NVML. The file is
read at every question:

    {"devices": {"GPU-a": {"name": "NVIDIA H100", "pids": [], "used": 4000000}}}

and without "devices" there is no driver.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

nvmlMemory_v2 = 2  # noqa: N816  # the library's own names, here and below


class NVMLError(Exception):
    """Any error of the library."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    """The device cannot tell."""


class NVMLError_FunctionNotFound(NVMLError):  # noqa: N801, N818
    """The driver is older than the function."""


def _devices() -> dict[str, dict[str, Any]]:
    machine = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
    if "devices" not in machine:
        raise NVMLError("Driver Not Loaded")
    devices: dict[str, dict[str, Any]] = machine["devices"]
    return devices


def _device(uuid: str) -> dict[str, Any]:
    device = _devices()[uuid]
    if device.get("lost"):
        raise NVMLError("GPU is lost")
    return device


def nvmlInit() -> None:  # noqa: N802
    _devices()


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(_devices())


def nvmlDeviceGetHandleByIndex(index: int) -> str:  # noqa: N802
    return list(_devices())[index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
    return uuid


def nvmlDeviceGetUUID(handle: str) -> str:  # noqa: N802
    return handle


def nvmlDeviceGetName(handle: str) -> str:  # noqa: N802
    name: str = _device(handle)["name"]
    return name


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list[Any]:  # noqa: N802
    return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in _device(handle).get("pids", [])]


def nvmlDeviceGetGraphicsRunningProcesses(handle: str) -> list[Any]:  # noqa: N802
    if "drawn" not in _device(handle):
        raise NVMLError_NotSupported
    return [SimpleNamespace(pid=1, usedGpuMemory=_device(handle)["drawn"])]


def nvmlDeviceGetMemoryInfo(handle: str, version: int) -> Any:  # noqa: N802
    assert version == nvmlMemory_v2
    return SimpleNamespace(used=_device(handle).get("used", 0))
