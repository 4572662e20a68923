"""GPUs as their driver lists them; a machine without one is the usual case and no error."""

import sys

import pytest
from nvml import MIB, FakeGpu, install

from convoy.machine import gpus


def test_gpus_have_an_address_for_cuda_and_their_memory(monkeypatch):
    install(monkeypatch, FakeGpu("GPU-aaa", (1000, 81_559)), FakeGpu("GPU-bbb", None))
    first, second = gpus.list_visible()
    assert (first.address, first.uuid, first.name) == ("0", "GPU-aaa", "NVIDIA H200")
    assert second.address == "1"
    assert gpus.memory() == [(1000 * MIB, 81_559 * MIB)]  # of the second the driver says nothing


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["0", "MIG-x", "MIG-y", "2"]),
        ("2,0", ["2", "0"]),
        ("GPU-c", ["2"]),  # CUDA takes the beginning of a UUID
        ("MIG-y", ["MIG-y"]),
        ("1", ["MIG-x", "MIG-y"]),
        ("2, -1, 0", ["2"]),  # CUDA ignores what follows an unknown one
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_chooses_and_orders_them(monkeypatch, visible, found):
    divided = FakeGpu("GPU-bbb", instances=[FakeGpu("MIG-x"), None, FakeGpu("MIG-y")])
    install(monkeypatch, FakeGpu("GPU-aaa"), divided, FakeGpu("GPU-ccc"))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.address for gpu in gpus.list_visible()] == found


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    install(monkeypatch, fails="absent")
    assert (gpus.list_all(), gpus.list_visible(), gpus.memory()) == (None, [], [])
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert gpus.list_all() is None


def test_a_driver_that_fails_is_an_error_for_doctor_and_for_nobody_else(monkeypatch):
    install(monkeypatch, fails="mismatch")
    with pytest.raises(gpus.DriverError, match="version mismatch"):
        gpus.list_all()
    assert gpus.list_visible() == []
