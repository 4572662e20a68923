"""A stand-in for NVIDIA's driver: the module pynvml with the GPUs that a test asks for."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

MIB = 2**20


@dataclass
class FakeGpu:
    """A GPU, or an instance of one; memory in MiB, None where the driver does not tell."""

    uuid: str
    memory: tuple[int, int] | None = (70_000, 81_559)
    instances: list["FakeGpu | None"] = field(default_factory=list)  # None: no instance in this place
    name: str = "NVIDIA H200"


def install(monkeypatch, *gpus, fails=None):
    """Puts a driver with ``gpus`` into place; ``fails`` is how it fails at its start: "mismatch" or "absent"."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    for name in ("LibraryNotFound", "NotFound", "NotSupported", "LibRmVersionMismatch"):
        setattr(nvml, f"NVMLError_{name}", type(f"NVMLError_{name}", (nvml.NVMLError,), {}))
    nvml.NVML_DEVICE_MIG_ENABLE = 1

    def start():
        if fails == "absent":
            raise nvml.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
        if fails == "mismatch":
            raise nvml.NVMLError_LibRmVersionMismatch("RM has detected an NVML/RM version mismatch.")

    def mode(gpu):
        if not gpu.instances:
            raise nvml.NVMLError_NotSupported("Not Supported")
        return [1, 1]

    def instance(gpu, place):
        if gpu.instances[place] is None:
            raise nvml.NVMLError_NotFound("Not Found")
        return gpu.instances[place]

    def memory(gpu):
        if gpu.memory is None:
            raise nvml.NVMLError_NotSupported("Not Supported")
        return SimpleNamespace(free=gpu.memory[0] * MIB, total=gpu.memory[1] * MIB)

    nvml.nvmlInit, nvml.nvmlShutdown = start, lambda: None
    nvml.nvmlDeviceGetCount, nvml.nvmlDeviceGetHandleByIndex = lambda: len(gpus), lambda number: gpus[number]
    nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName = lambda gpu: gpu.uuid, lambda gpu: gpu.name
    nvml.nvmlDeviceGetMigMode, nvml.nvmlDeviceGetMigDeviceHandleByIndex = mode, instance
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: len(gpu.instances)
    nvml.nvmlDeviceGetMemoryInfo = memory
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
