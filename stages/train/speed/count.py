"""What one pass through a network takes, counted from its layers: multiply-adds, and bytes.

The network is built without its weights and followed with the sizes of a batch, so that one of a terabyte is counted in
a tenth of a second.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from convoy.data.shards import Shards, spread
from convoy.data.vocabulary import MULTIPLE, Vocabulary
from convoy.model import backend
from stages.train.entry import Train
from stages.train.fit import network

SAMPLE = 1000  # texts whose lengths are looked at

Lengths = dict[str, tuple[np.ndarray, np.ndarray]]  # see ``_lengths``

# Operations whose inputs, or outputs, a gradient is computed from; of others the gradient needs neither.
FROM_INPUTS = (
    "Conv", "DepthwiseConv", "SeparableConv", "Dense", "EinsumDense", "Matmul", "Einsum", "Multiply", "Divide",
    "TrueDivide", "Square", "Power", "Log", "Absolute", "BatchNormalization", "LayerNormalization",
    "GroupNormalization", "MaxPooling", "GlobalMaxPooling", "Maximum", "Minimum",
)  # fmt: skip
FROM_OUTPUTS = ("Exp", "Sqrt", "Softmax", "Sigmoid", "Tanh", "Relu", "ReLU", "MaxPooling", "GlobalMaxPooling")


@dataclass(frozen=True)
class Count:
    """What was counted in a network, for one batch.

    Attributes:
        products: multiply-adds of each layer.
        kept: bytes of what the forward pass keeps for the backward pass.
        largest: bytes of the largest tensor.
        layers: how many have kernels.
    """

    products: dict[str, int]
    kept: int
    largest: int
    layers: int


@dataclass(frozen=True)
class Sketch:
    """An untrained network whose weights have no values, and the inputs of the part of a batch that a device has.

    Attributes:
        model: the network.
        usual: shapes of its inputs, with texts of average length.
        largest: likewise, with the longest texts.
        texts: column -> how many tokens some texts have, and the longest; empty for other examples.
    """

    model: keras.Model
    usual: list[tuple[int, ...]]
    largest: list[tuple[int, ...]]
    texts: Lengths


def count(model: keras.Model, shapes: list[tuple[int, ...]]) -> Count:
    """Counts in any Functional model, for inputs of ``shapes``, the axis of the batch included.

    Multiply-adds are those of convolutions, dense layers and matrix products, as published tables count; what is done
    number by number - activations, normalisation, pooling - is left out. A layer of another kind with kernels (a
    recurrent one) counts them once for each place. Models within the model are entered.
    """
    products: dict[str, int] = {}
    kept: dict[Any, int] = {}
    largest = layers = 0
    alive = []  # so that no two tensors have one id

    def visit(operation: keras.Operation, given: list[keras.KerasTensor], made: list[keras.KerasTensor]) -> None:
        nonlocal largest, layers
        kind = type(operation).__name__
        alive.extend([*given, *made])
        largest = max([largest, *map(_bytes, made)])
        layers += bool(_kernels(operation))
        products[operation.name] = products.get(operation.name, 0) + _products(operation, given, made[0])
        activation = getattr(getattr(operation, "activation", None), "__name__", None)
        if kind.startswith(FROM_INPUTS):
            kept.update({id(one): _bytes(one) for one in given})
        if kind.startswith(FROM_OUTPUTS) or activation not in (None, "linear"):
            kept.update({id(one): _bytes(one) for one in made})
        if "Dropout" in kind:
            kept[id(made[0]), kind] = math.prod(made[0].shape)  # which were dropped, a byte each
        if "Normalization" in kind and _bytes(given[0]) < 4 * math.prod(given[0].shape):
            kept[id(given[0]), kind] = 4 * math.prod(given[0].shape)  # normalisation computes in float32

    _follow(model, _symbols(model, shapes), visit)
    return Count(products, sum(kept.values()), largest, layers)


@contextmanager
def sketched(data: Shards, input_spec: dict[str, Any], entry: Train, precision: str) -> Iterator[Sketch]:
    """Gives the network of an entry without weights.

    Args:
        data: training examples.
        input_spec: the content of the model's input.json.
        entry: of train.
        precision: of its layers.

    Raises:
        ConfigurationError: the architecture refuses the data or its sizes.
    """
    texts = _lengths(data, input_spec)
    keras.utils.clear_session(free_memory=False)
    with backend.computing_in(backend.precision(precision)), keras.StatelessScope(initialize_variables=False):
        model = network.build(entry.architecture, data, input_spec, entry.sizes)
        share = max(1, -(-min(entry.batch, len(data)) // entry.devices))
        usual, longest = ([(share, *shape) for shape in shapes] for shapes in _shapes(data, input_spec, model, texts))
        yield Sketch(model, usual, longest, texts)
    keras.utils.clear_session(free_memory=False)  # which would else give the weights values, at its next chance


def kernel_layers(
    data: Shards, input_spec: dict[str, Any], entry: Train, precision: str
) -> list[tuple[keras.layers.Layer, tuple[int, ...]]]:
    """Returns the layers with kernels, without values, and the shapes of their inputs, the axis of the batch included.

    Texts are of average length, and of the longest. The arguments are those of ``sketched``.
    """
    found = []

    def visit(operation: keras.Operation, given: list[keras.KerasTensor], _made: list[keras.KerasTensor]) -> None:
        if _kernels(operation):
            found.append((operation, given[0].shape))

    with sketched(data, input_spec, entry, precision) as sketch:
        for shapes in (sketch.usual, sketch.largest):
            _follow(sketch.model, _symbols(sketch.model, shapes), visit)
    return found


def _shapes(
    data: Shards, input_spec: dict[str, Any], model: keras.Model, texts: Lengths
) -> tuple[list[tuple], list[tuple]]:
    """Returns the shapes of the inputs of one example: of average length, and of the longest."""
    if not texts:
        return [data.shape(input_spec["array"])], [data.shape(input_spec["array"])]
    usual, longest = [], []
    for (column, both), one in zip(texts.items(), model.inputs, strict=True):
        # BEGIN is before a target.
        some, longer = (-(-(lengths + (column == "target")) // MULTIPLE) * MULTIPLE for lengths in both)
        fixed = one.shape[1]
        usual.append((fixed or round(some.mean()),))
        longest.append((fixed or int(max(some.max(), longer.max())),))
    return usual, longest


def _lengths(data: Shards, input_spec: dict[str, Any]) -> Lengths:
    """Returns of each column of texts how many tokens some have, and the longest; nothing for other examples."""
    found = {}
    for column in (side for side in ("text", "source", "target") if side in input_spec):
        known = Vocabulary.from_json(input_spec[column])
        chosen = spread(len(data), SAMPLE), np.argsort(data.text_bytes(column))[-SAMPLE // 10 :]
        some, longer = (known.encode(data.take(column, rows), input_spec["length"]).lengths for rows in chosen)
        found[column] = some, longer
    return found


def _symbols(model: keras.Model, shapes: list[tuple[int, ...]]) -> list[keras.KerasTensor]:
    return [keras.KerasTensor(shape, one.dtype) for shape, one in zip(shapes, model.inputs, strict=True)]


def _follow(model: keras.Model, inputs: list, visit: Callable[[keras.Operation, list, list], None]) -> list:
    """Sends the shapes of ``inputs`` through a model, and calls ``visit(operation, given, made)`` at each operation."""

    def step(operation: keras.Operation) -> Callable[..., Any]:
        def apply(*args: Any, **kwargs: Any) -> Any:
            given = [one for one in tree.flatten((args, kwargs)) if isinstance(one, keras.KerasTensor)]
            if isinstance(operation, keras.Model):
                made = _follow(operation, given, visit)
                return made if len(made) > 1 else made[0]
            with keras.StatelessScope(initialize_variables=False):
                made = operation.compute_output_spec(*args, **kwargs)
            visit(operation, given, tree.flatten(made))
            return made

        return apply

    return tree.flatten(model._run_through_graph(inputs, operation_fn=step))


def _products(operation: keras.Operation, given: list[keras.KerasTensor], made: keras.KerasTensor) -> int:
    """Returns the multiply-adds of one operation."""
    if type(operation).__name__ == "Matmul":
        return math.prod(made.shape) * given[0].shape[-1]
    # Each weight of a kernel is used once at each place: of the output, or of the input that a transposed one spreads.
    places = given[0] if "Transpose" in type(operation).__name__ and given else made
    return math.prod(places.shape[:-1]) * sum(math.prod(one.shape) for one in _kernels(operation))


def _kernels(operation: keras.Operation) -> list[keras.Variable]:
    return [one for one in getattr(operation, "weights", ()) if "kernel" in one.name]


def _bytes(one: keras.KerasTensor) -> int:
    return math.prod(one.shape) * {"bool": 1, "bfloat16": 2, "float16": 2, "int64": 8, "float64": 8}.get(one.dtype, 4)
