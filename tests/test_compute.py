import keras
import pytest

from stages import compute


@pytest.mark.parametrize(
    ("backend", "device", "compiled"),
    [
        ("tensorflow", "cpu:0", False),
        ("tensorflow", "gpu:0", True),
        ("jax", "cpu:0", True),
        ("jax", "gpu:0", True),
        ("torch", "cpu:0", False),
        ("torch", "gpu:0", False),
    ],
)
def test_only_jax_and_tensorflow_on_a_gpu_compile(monkeypatch, backend, device, compiled):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(compute, "devices", lambda: [device])
    assert compute.compilation() is compiled


def test_this_machine_has_a_device():
    assert compute.devices()
    assert all(":" in device for device in compute.devices())


def test_a_gpu_of_tensorflow_is_not_taken_whole(monkeypatch):
    import tensorflow as tf

    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda device, on: grown.append((device, on)))
    compute.prepare()
    assert grown == [("GPU:0", True), ("GPU:1", True)]
