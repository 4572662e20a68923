"""Local receptive fields: which part of an example a unit of each layer sees, for any Functional Keras model.

Exact, from the graph alone: along each axis of space or time the unit number i of a layer sees the input from
``i * jump + first`` to ``i * jump + last``. A layer maps these numbers to those of its output; where branches meet, the
unit sees what any of them sees.

Source: Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", Distill, equations 2
to 5, and their appendix for graphs with several paths.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import keras
import pandas as pd
from keras import layers, tree

from convoy.errors import ConfigurationError

# Of these each output unit depends on the input unit at the same place alone, or on that of each input.
SAME_PLACE = {
    "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Dropout", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "ActivityRegularization", "Rescaling",
    "Identity", "Embedding", "Dense", "Normalization", "BatchNormalization", "LayerNormalization", "UnitNormalization",
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Average", "Maximum", "Minimum", "Power", "Square", "Sqrt",
    "Exp", "Log", "Absolute", "Negative", "Sigmoid", "Relu", "Relu6", "Silu", "HardSigmoid", "HardSilu", "Gelu", "Tanh",
    "Cast", "Clip", "NotEqual", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "OneHot", "StopGradient",
}  # fmt: skip
EVERYTHING = ("Flatten", "GlobalAveragePooling", "GlobalMaxPooling", "GroupNormalization")
ALONG_MAPS = ("Softmax", "LayerNormalization", "UnitNormalization", "Concatenate")  # of the last axis, as by default
NOTHING = ("OnesLike", "ZerosLike")  # do not depend on what they are given


@dataclass(frozen=True)
class Axis:
    """What the units of a layer see of the input along one axis, in its units: pixels, voxels, frames or tokens.

    Attributes:
        size: units of the layer; None: as many as there come.
        jump: how far two neighbouring units are apart.
        first: the first that unit 0 sees; below 0 is padding.
        last: the last that it sees.
    """

    size: int | None
    jump: Fraction = Fraction(1)
    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)

    @property
    def field(self) -> int:
        """How many units of the input one unit sees, those of padding included."""
        return int(self.last - self.first) + 1

    def window(self, size: int | None, kernel: int, stride: int, before: int) -> "Axis":
        """Returns the axis after a window of ``kernel`` units that moves by ``stride``, ``before`` units of padding."""
        first = self.first - before * self.jump
        return Axis(size, self.jump * stride, first, self.last + (kernel - 1 - before) * self.jump)

    def __or__(self, other: "Axis") -> "Axis":
        if self.jump != other.jump:
            raise ConfigurationError(f"branches of jumps {self.jump} and {other.jump} meet: no single receptive field")
        return Axis(self.size, self.jump, min(self.first, other.first), max(self.last, other.last))


class Everything:
    """What a unit sees whose layer has no axis of space: the whole example."""


Seen = tuple[Axis, ...] | Everything | None  # None: nothing of the example


def receptive_fields(model: keras.Model) -> dict[str, Seen]:
    """Returns what the units of each layer of ``model`` see of its first input, in the order of the graph.

    A layer that is used several times is listed once, at its last use. Models within the model are entered.

    Raises:
        ConfigurationError: a layer of a kind whose windows are not known; the message names it.
    """
    found: dict[str, Seen] = {}
    shapes = [x.shape for x in model.inputs]
    inputs: list[Seen] = [tuple(Axis(size) for size in (shapes[0][1:-1] if len(shapes[0]) > 2 else shapes[0][1:]))]
    inputs += [None] * (len(shapes) - 1)
    _follow(model, inputs, found, "")
    return found


def central(fields: dict[str, Seen]) -> dict[str, list[tuple[int, int]]]:
    """Returns what the middle unit of each layer sees along each axis, from the first to the last unit of the input."""
    found = {}
    for name, seen in fields.items():
        if isinstance(seen, tuple) and all(axis.size for axis in seen):
            starts = [axis.size // 2 * axis.jump for axis in seen]
            found[name] = [(int(at + axis.first), int(at + axis.last)) for at, axis in zip(starts, seen, strict=True)]
    return found


def table(fields: dict[str, Seen]) -> pd.DataFrame:
    """Returns receptive fields as a table: layer, units, field and jump, along each axis ("28 x 28"), or "all"."""
    rows = []
    for name, seen in fields.items():
        if isinstance(seen, tuple):
            rows.append((name, *(_by_axis(getattr(axis, key) for axis in seen) for key in ("size", "field", "jump"))))
        else:
            rows.append((name, "", "all" if seen else "none", ""))
    return pd.DataFrame(rows, columns=["layer", "units", "field", "jump"])


def _by_axis(values: Iterable[Any]) -> str:
    return " x ".join("any" if value is None else str(value) for value in values)


def _follow(model: keras.Model, inputs: list[Seen], found: dict[str, Seen], prefix: str) -> list[Seen]:
    def step(operation: keras.Operation) -> Callable[..., Any]:
        def apply(*args: Any, **kwargs: Any) -> Any:
            given = [one for one in tree.flatten((args, kwargs)) if isinstance(one, Everything | _Box)]
            inner = [one.seen if isinstance(one, _Box) else one for one in given]
            if isinstance(operation, keras.Model):
                boxes = [_Box(seen) for seen in _follow(operation, inner, found, f"{prefix}{operation.name}/")]
                return boxes if len(boxes) > 1 else boxes[0]
            found[prefix + operation.name] = seen = _after(operation, inner)
            return tree.map_structure(lambda _: _Box(seen), operation.output)

        return apply

    boxes = model._run_through_graph([_Box(seen) for seen in inputs], operation_fn=step)
    return [box.seen for box in tree.flatten(boxes)]


class _Box:
    """Keeps Keras from taking what a unit sees apart, as it does with tuples."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen


def _after(operation: keras.Operation, inputs: list[Seen]) -> Seen:
    kind = type(operation).__name__
    known = [seen for seen in inputs if seen is not None]
    if not known or kind in NOTHING:
        return None
    if any(isinstance(seen, Everything) for seen in known) or kind.startswith(EVERYTHING):
        return Everything()
    [first, *others] = known
    sizes = operation.output.shape[1 : 1 + len(first)]
    if kind in ALONG_MAPS and not _last(operation):
        raise ConfigurationError(f"the layer {operation.name} is a {kind} along another axis than that of the maps")
    if kind == "Matmul" and not others:  # of each unit's maps with something that does not depend on the example
        return first
    if kind in SAME_PLACE or kind == "Concatenate":
        if kind == "Dense" and len(operation.output.shape) == 2:
            return Everything()
        for other in others:
            first = tuple(one | two for one, two in zip(first, other, strict=True))
        return first
    if kind == "GetItem":
        return _taken(operation, first, sizes)
    convolves = isinstance(operation, layers.Conv1D.__base__ | layers.DepthwiseConv2D.__base__)
    separable = isinstance(operation, layers.SeparableConv2D.__base__)
    if convolves or separable or kind.startswith(("MaxPooling", "AveragePooling")):
        spread = operation.dilation_rate if convolves or separable else (1,) * len(first)
        kernels = operation.kernel_size if convolves or separable else operation.pool_size
        windows = [(size - 1) * by + 1 for size, by in zip(kernels, spread, strict=True)]
        return tuple(
            axis.window(size, window, stride, _before(operation.padding, axis.size, window, stride))
            for axis, size, window, stride in zip(first, sizes, windows, operation.strides, strict=True)
        )
    if kind == "Pad":
        before = [pair[0] for pair in operation.pad_width][1 : 1 + len(first)]
        return tuple(axis.window(size, 1, 1, one) for axis, size, one in zip(first, sizes, before, strict=True))
    if kind.startswith("ZeroPadding"):
        return tuple(axis.window(size, 1, 1, before) for axis, size, before in _edges(first, sizes, operation.padding))
    if kind.startswith("Cropping"):
        return tuple(
            axis.window(size, 1, 1, -before) for axis, size, before in _edges(first, sizes, operation.cropping)
        )
    raise ConfigurationError(f"the layer {operation.name} is a {kind}, whose receptive field is not known")


def _taken(operation: keras.Operation, axes: tuple[Axis, ...], sizes: tuple[int | None, ...]) -> Seen:
    """Returns what the units see that were taken out: a part of the maps, or every so many from some unit on."""
    key = operation._inbound_nodes[-1].arguments.args[1]
    key = list(key) if isinstance(key, tuple | list) else [key]  # in a loaded model a tuple is a list
    if Ellipsis in key:
        place = key.index(Ellipsis)
        key[place : place + 1] = [slice(None)] * (len(axes) + 2 - sum(one is not None for one in key) + 1)
    key = [one for one in key if one is not None][1 : 1 + len(axes)]
    if not all(isinstance(one, slice) and (one.start or 0) >= 0 and (one.step or 1) > 0 for one in key):
        return Everything()
    cut = [(one.start or 0, one.step or 1) for one in key] + [(0, 1)] * (len(axes) - len(key))
    return tuple(axis.window(size, 1, step, -start) for axis, size, (start, step) in zip(axes, sizes, cut, strict=True))


def _last(operation: keras.Operation) -> bool:
    """Tells whether a layer works along the last axis alone: that of maps."""
    axes = tree.flatten(operation.axis)
    return len(axes) == 1 and axes[0] in (-1, len(operation.output.shape) - 1)


def _edges(axes: tuple[Axis, ...], sizes: tuple[int | None, ...], edges: Any) -> Iterable[tuple[Axis, int | None, int]]:
    pairs = edges if isinstance(edges[0], tuple | list) else (edges,)  # Keras has (left, right) for one axis
    return zip(axes, sizes, (pair[0] for pair in pairs), strict=True)


def _before(padding: str, size: int | None, window: int, stride: int) -> int:
    """Returns the units of padding before the first: with ``same`` half of what is missing, rounded down."""
    if padding == "causal":
        return window - 1
    if padding == "valid":
        return 0
    missing = window - (stride if size is None or size % stride == 0 else size % stride)
    return max(0, missing) // 2
