"""What depends on the backend and the device: memory, compilation, prediction in blocks."""

import keras
import numpy as np

from stages.shards import Shards

BLOCK = 512  # examples predicted at a time; bounds memory


def prepare() -> None:
    """Lets TensorFlow take GPU memory as it needs it, so that trainings can share a device."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)


def compilation() -> bool:
    """Returns Keras' ``jit_compile``.

    JAX lives by it. XLA made every one of our networks slower on TensorFlow's CPU, and torch.compile recompiles for
    every size of batch; there Keras' own graph, or eager mode, is used.
    """
    backend = keras.backend.backend()
    on_gpu = any(not device.startswith("cpu") for device in devices())
    return backend == "jax" or (backend == "tensorflow" and on_gpu)


def devices() -> list[str]:
    """Returns the devices that Keras sees, e.g. ``["cpu:0"]`` or ``["gpu:0", "gpu:1"]``."""
    if keras.backend.backend() == "torch":
        import torch

        return [f"gpu:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]
    found = [device.lower() for device in keras.distribution.list_devices()]
    return [device for device in found if not device.startswith("cpu")] or ["cpu:0"]


def predict(network: keras.Model, shards: Shards) -> np.ndarray:
    """Returns the probabilities of all examples, float32 of shape (examples, classes), in bounded memory."""
    network.jit_compile = compilation()  # a loaded model has none, which means XLA
    return np.concatenate([network.predict(block["image"], verbose=0) for block in shards.blocks(BLOCK)])
