"""What depends on the backend and the device: memory, compilation, several devices."""

import os
import platform
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ConfigurationError
from convoy.machine.room import cores


@contextmanager
def _silence() -> Iterator[None]:
    """Shuts the process's stderr: TensorFlow's C++ start-up notes heed no log level."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Has modules seem not to be installed; those that are imported already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: importing it raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# Keras looks for both, for wrappers and pictures that are not used here: a quarter of its start.
with _silence(), _without("sklearn", "matplotlib"):
    import keras


def prepare(count: int = 1, threads: int | None = None, deterministic: bool = False) -> None:
    """Sets the backend up; before anything ran on it.

    TensorFlow takes GPU memory as it needs it, so that trainings can share a device. On a CPU equal steps give equal
    numbers: TensorFlow would else add some gradients up, those of word vectors, in the order in which its threads
    happen to end (what it costs: ``benchmarks/steps.py``).

    Args:
        count: devices that one model will be trained on. Where there is no other device the CPU is divided into so
            many, so that the same is computed.
        threads: that one operation on the CPU is divided into; None: one for each core.
        deterministic: equal steps give equal numbers on a GPU too; it is slower, and has not every operation.

    Raises:
        ConfigurationError: threads cannot be set in this backend.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for device in gpus:
            tf.config.experimental.set_memory_growth(device, True)
        if count > 1 and not gpus:
            [cpu] = tf.config.list_physical_devices("CPU")
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        if deterministic or not gpus:
            tf.config.experimental.enable_op_determinism()
    elif backend == "jax":
        import jax

        if threads:
            raise ConfigurationError(f"threads = {threads}: the backend jax takes as many as there are cores.")
        if count > 1:
            jax.config.update("jax_num_cpu_devices", count)  # of no effect on others
        flag = "--xla_gpu_deterministic_ops=true"
        if deterministic and flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    elif backend == "torch":
        import torch

        if threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def distributed(count: int) -> Iterator[None]:
    """Has a model that is built and trained in it work on several devices: each takes its share of every batch.

    The weights are equal on all (synchronous data parallelism); statistics of batch normalisation are of each share.

    Args:
        count: devices; 1 changes nothing.

    Raises:
        ConfigurationError: there are not so many; or the backend is neither TensorFlow nor JAX.
    """
    if count == 1:
        yield
        return
    backend = keras.backend.backend()
    if backend == "torch":
        raise ConfigurationError(f"devices = {count}: with the backend torch a model trains on one device.")
    chosen = devices()[:count]
    if len(chosen) < count:
        raise ConfigurationError(f"devices = {count}: there are {len(chosen)}: {', '.join(chosen)}.")
    if backend == "tensorflow":  # Keras' own distribution is not implemented for it
        import tensorflow as tf

        with tf.distribute.MirroredStrategy([device.upper() for device in chosen]).scope():
            yield
        return
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=chosen))
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def on_cpu() -> bool:
    """Returns whether there is no other device; unlike ``devices`` it leaves the backend as it is."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.config.list_physical_devices("GPU")
    return all(device.startswith("cpu") for device in devices())


def hardware() -> str:
    """Returns what computes, in the words of its maker: a GPU's name, or that of the processor and its cores."""
    backend = keras.backend.backend()
    if not on_cpu():
        if backend == "tensorflow":
            return ", ".join(details.get("device_name", "GPU") for details in _gpus())
        if backend == "torch":
            import torch

            return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        import jax

        return ", ".join(device.device_kind for device in jax.devices())
    found = re.search(r"^model name\s*: (.+)$", _processor(), re.MULTILINE)
    return f"{found[1] if found else platform.processor() or platform.machine()}, {cores()} cores"


def multiplies_bfloat16() -> bool:
    """Returns whether the device has instructions for bfloat16; else it is emulated, many times slower."""
    if on_cpu():
        return re.search("avx512_bf16|amx_bf16", _processor()) is not None
    if keras.backend.backend() == "tensorflow":
        return all(details.get("compute_capability", (0,)) >= (8,) for details in _gpus())
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_bf16_supported()
    return True  # JAX's devices beside the CPU are TPUs and newer GPUs


def multiplies_float16() -> bool:
    """Returns whether the device has instructions for float16 that are faster than those for float32."""
    if on_cpu():
        return False
    if keras.backend.backend() == "tensorflow":
        return all(details.get("compute_capability", (0,)) >= (7,) for details in _gpus())  # since Volta
    return keras.backend.backend() == "torch"


def _processor() -> str:
    """Returns what Linux says about the processor; elsewhere nothing."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _gpus() -> list[dict[str, Any]]:
    import tensorflow as tf

    return [tf.config.experimental.get_device_details(one) for one in tf.config.list_physical_devices("GPU")]


def precision(asked: str) -> str:
    """Returns ``asked``, or for ``auto`` what the device multiplies fastest by its instructions.

    Convolutions in bfloat16 made wide networks 1.2 to 2.1 times as fast on a CPU that has instructions for it.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if multiplies_bfloat16() else "float16" if multiplies_float16() else "float32"


@contextmanager
def computing_in(chosen: str) -> Iterator[None]:
    """Has layers that are built in it compute in ``chosen``; their weights are float32 all the same.

    Source: Micikevicius et al. 2017, "Mixed Precision Training", arXiv:1710.03740. For float16 the loss is scaled, by
    Keras, when the model is compiled; bfloat16 does not need it.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if chosen == "float32" else f"mixed_{chosen}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def seeds_from(seed: int) -> Iterator[None]:
    """Has the layers that are built in it draw their seeds from a generator of their own, seeded with ``seed``.

    Keras draws them from Python's ``random``, which any other thread of the process - MLflow's clients, Prefect's
    server - draws from too: now and then two equal trainings began with unequal weights. The seeds are those that
    ``keras.utils.set_random_seed(seed)`` gives where no other thread runs.
    """
    from keras.src.random import seed_generator

    stock = seed_generator.python_random
    seed_generator.python_random = random.Random(seed)
    try:
        yield
    finally:
        seed_generator.python_random = stock


@contextmanager
def fused_normalisation() -> Iterator[None]:
    """Has TensorFlow on a CPU compute batch normalisation by one operation, in models that are built and trained in it.

    Keras adds it up from a dozen operations, and each reads and writes all maps. The layer and its stored form stay
    the same, and so do the numbers but for rounding. A small ResNet learned half as fast again
    (``benchmarks/RESULTS.md``).
    """
    layer = keras.layers.BatchNormalization
    if keras.backend.backend() != "tensorflow" or not on_cpu():
        yield
        return
    import tensorflow as tf

    stock = layer.call

    def call(self: keras.layers.BatchNormalization, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        maps = len(inputs.shape) in (4, 5) and self.axis in (-1, len(inputs.shape) - 1) and all(inputs.shape[1:])
        if not (training and self.trainable and maps) or mask is not None or self.renorm or self.synchronized:
            return stock(self, inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        # In float32, as Keras has it; the operation for bfloat16 is slower than both conversions.
        x = tf.reshape(tf.cast(inputs, tf.float32), [-1, *inputs.shape[-3:-1], channels])
        normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
        )
        count = tf.cast(tf.size(x) // channels, tf.float32)
        variance *= (count - 1) / count  # of the batch itself, not the estimate that the operation returns
        for moving, found in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + found * (1 - self.momentum))
        return tf.cast(tf.reshape(normalised, tf.shape(inputs)), self.compute_dtype)

    layer.call = call
    try:
        yield
    finally:
        layer.call = stock


def compilation() -> bool:
    """Returns Keras' ``jit_compile``.

    JAX lives by it. XLA made every one of our networks slower on TensorFlow's CPU, and torch.compile recompiles for
    every size of batch; there Keras' own graph, or eager mode, is used.
    """
    backend = keras.backend.backend()
    return backend == "jax" or (backend == "tensorflow" and not on_cpu())


def devices() -> list[str]:
    """Returns the devices that Keras sees, e.g. ``["gpu:0", "gpu:1"]``; those of the CPU where there are no others."""
    if keras.backend.backend() == "torch":
        import torch

        return [f"gpu:{number}" for number in range(torch.cuda.device_count())] or ["cpu:0"]
    found = [device.lower() for device in keras.distribution.list_devices()]
    return [device for device in found if not device.startswith("cpu")] or found


def peak_memory() -> int | None:
    """Returns the most bytes of the first device that this process had in use at once; None on a CPU."""
    if on_cpu():
        return None
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    if keras.backend.backend() == "jax":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields all layers from the input on; for a model within the model, those of it."""
    for layer in model.layers:
        yield from all_layers(layer) if isinstance(layer, keras.Model) else [layer]


def gradient(function: Callable[[Any], Any], at: Any) -> np.ndarray:
    """Returns the derivative of ``function`` with respect to its argument, of the shape of ``at``.

    Args:
        function: maps a float tensor to a tensor without axes, by operations of Keras.
        at: the argument, an array or a tensor.
    """
    backend, at = keras.backend.backend(), keras.ops.convert_to_tensor(at)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = function(at)
        found = tape.gradient(value, at)
    elif backend == "jax":
        import jax

        found = jax.jit(jax.grad(function))(at)  # operation by operation it would compile for minutes
    else:
        import torch

        with torch.enable_grad():
            at = at.detach().requires_grad_()
            [found] = torch.autograd.grad(function(at), at)
    return keras.ops.convert_to_numpy(found)
