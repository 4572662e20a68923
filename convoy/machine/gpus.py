"""NVIDIA's GPUs of this machine, as their driver lists them: the only door to NVML."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any


class DriverError(Exception):
    """The driver is installed and does not work."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of one that is divided (MIG), which CUDA takes for a device of its own.

    Attributes:
        address: names it in ``CUDA_VISIBLE_DEVICES``: its number on the bus, or the UUID of an instance.
        number: on the bus, as nvidia-smi counts; instances have that of their GPU.
        uuid: ``GPU-...`` or ``MIG-...``; no other device has it.
        name: its maker's, e.g. ``NVIDIA H200``.
        memory: free and total bytes; None where the driver does not say.
    """

    address: str
    number: int
    uuid: str
    name: str
    memory: tuple[int, int] | None


def list_all() -> list[Gpu] | None:
    """Returns every GPU of the machine; None without a driver.

    Raises:
        DriverError: with the driver's own words.
    """
    with _driver() as nvml:
        if nvml is None:
            return None
        count = nvml.nvmlDeviceGetCount()
        return [gpu for number in range(count) for gpu in _devices(nvml, number)]


def has_driver() -> bool:
    """Returns whether NVIDIA's driver is installed, even if it does not work."""
    try:
        return list_all() is not None
    except DriverError:
        return True


def list_visible() -> list[Gpu]:
    """Returns the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves to this process; [] if the driver is absent or fails.

    They are in the order of that list, as CUDA numbers them: by number, or by the beginning of a UUID.
    """
    try:
        every = list_all() or []
    except DriverError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return every
    chosen: dict[str, Gpu] = {}
    for word in map(str.strip, visible.split(",")):
        found = [gpu for gpu in every if word == str(gpu.number) or (word and gpu.uuid.startswith(word))]
        if not found:  # CUDA ignores what follows
            break
        chosen |= {gpu.uuid: gpu for gpu in found}
    return list(chosen.values())


def memory() -> list[tuple[int, int]]:
    """Returns free and total bytes of each visible GPU whose driver says them; see ``list_visible``."""
    return [gpu.memory for gpu in list_visible() if gpu.memory is not None]


@contextmanager
def _driver() -> Iterator[ModuleType | None]:
    """Gives NVML, started; None without a driver.

    Raises:
        DriverError: it does not start, or a question to it fails.
    """
    try:
        import pynvml  # a sixth of a second
    except ImportError:  # doctor names it among the libraries
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        yield None
        return
    except pynvml.NVMLError as error:
        raise DriverError(str(error).rstrip(".")) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise DriverError(str(error).rstrip(".")) from error
    finally:
        pynvml.nvmlShutdown()


def _devices(nvml: ModuleType, number: int) -> Iterator[Gpu]:
    """Yields a GPU, or its instances if it is divided."""
    whole = nvml.nvmlDeviceGetHandleByIndex(number)
    instances = list(_instances(nvml, whole))
    for one in instances or [whole]:
        uuid = nvml.nvmlDeviceGetUUID(one)
        address = uuid if instances else str(number)
        yield Gpu(address, number, uuid, nvml.nvmlDeviceGetName(one), _memory(nvml, one))


def _instances(nvml: ModuleType, whole: Any) -> Iterator[Any]:
    try:
        divided = nvml.nvmlDeviceGetMigMode(whole)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # not supported: older than Ampere
        return
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole) if divided else 0):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, place)
        except nvml.NVMLError_NotFound:  # no instance in this place
            continue


def _memory(nvml: ModuleType, device: Any) -> tuple[int, int] | None:
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(device)
    except nvml.NVMLError:
        return None
    return found.free, found.total
