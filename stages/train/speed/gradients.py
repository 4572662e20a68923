"""Whether this machine computes the gradients of a network's layers rightly in a reduced precision.

Not all do. With TensorFlow 2.21 on a processor that multiplies bfloat16, the gradient of some kernels holds what
happened to be in memory: of Conv3D where it sees two planes, of Conv2D at stride 2 where maps are one wide. Nothing
says so: in one training the loss is NaN after some steps, in the next the model is only worse.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from convoy.data.shards import Shards
from convoy.model import backend
from stages.train.entry import Train
from stages.train.speed.count import kernel_layers

TOLERANCE = 0.05  # of the length of a gradient; rounding of bfloat16 makes 0.005


def wrong(data: Shards, input_spec: dict[str, Any], entry: Train, precision: str) -> list[str]:
    """Returns the layers whose gradients, at the sizes of this training, are not those that float32 has.

    Each layer with a kernel is looked at alone, with random inputs; of equal ones the first.

    Args:
        data: training examples.
        input_spec: the content of the model's input.json.
        entry: of train.
        precision: of the layers.

    Raises:
        ConfigurationError: the architecture refuses the data or its sizes.
    """
    found, seen = [], set()
    for layer, shape in kernel_layers(data, input_spec, entry, precision):
        # Initial values are drawn again, and activations left out: where rounding turns a sign their gradients jump.
        config = {key: value for key, value in layer.get_config().items() if not key.endswith("initializer")}
        config |= {"activation": "linear"} if "activation" in config else {}
        kind = json.dumps([type(layer).__name__, shape, config | {"name": ""}], default=str)
        if kind not in seen and not _right(type(layer), config, layer.dtype_policy.name, shape):
            found.append(layer.name)
        seen.add(kind)
    return found


def _right(kind: type[keras.layers.Layer], config: dict[str, Any], policy: str, shape: Sequence[int]) -> bool:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    both = []
    for dtype in ("float32", policy):
        layer = kind.from_config(config | {"dtype": dtype})
        layer.build(shape)
        if not both:
            weights = [
                rng.normal(0, 1 / math.sqrt(max(1, math.prod(one.shape[:-1]))), one.shape).astype(np.float32)
                for one in layer.weights
            ]
            after = rng.standard_normal(layer.compute_output_shape(shape), np.float32)
        layer.set_weights(weights)
        both.append(_gradients(layer, x, after))
    with np.errstate(all="ignore"):  # wrong ones may be infinite
        return all(
            np.linalg.norm(reduced - plain) <= TOLERANCE * np.linalg.norm(plain)  # not for NaN
            for plain, reduced in zip(*both, strict=True)
        )


def _gradients(layer: keras.layers.Layer, x: np.ndarray, after: np.ndarray) -> list[np.ndarray]:
    """Returns what the layer makes of the gradient ``after`` it: those of its input and of its kernel."""
    kernel = next(one for one in layer.weights if "kernel" in one.name)

    def summed(x: Any, value: Any) -> Any:
        with keras.StatelessScope([(kernel, value)]):
            return keras.ops.sum(keras.ops.cast(layer(x), "float32") * after)

    return [
        backend.gradient(lambda one: summed(one, kernel.value), x),
        backend.gradient(lambda one: summed(x, one), kernel.value),
    ]
