"""A Keras network as a PyTorch module of the same layers, weights and answers; for ``steps.py``.

The graph of the functional model is walked once and written down by ``torch.fx``, so that what trains is straight
PyTorch (``print(net.code)`` shows it) that needs no Keras and may be pickled. Pictures and volumes have their channels
last, as in Keras; convolutions and pooling see them through a permuted view, so that the memory layout is what the
caller's arrays and weights have. Where Keras' padding "same" adds more on one side than on the other, which PyTorch's
layers cannot, a padding of its own comes before.

Translates what the networks of params.yaml have, and says so of anything else. A softmax at the end of a ``Dense`` is
left out: PyTorch's cross-entropy is of logits.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import keras
import torch
from keras import tree
from torch import fx, nn
from torch.nn import functional

ACTIVATIONS = {"relu": functional.relu, "tanh": torch.tanh, "linear": lambda x: x, "softmax": lambda x: x}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMALISATIONS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGES = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}

# Operation of keras.ops: the same of its arguments.
PLAIN: dict[str, Callable[..., Any]] = {
    "Absolute": torch.abs,
    "Add": operator.add,
    "Exp": torch.exp,
    "GetItem": operator.getitem,
    "Greater": operator.gt,
    "Identity": lambda x: x,
    "LessEqual": operator.le,
    "Log": torch.log,
    "Matmul": operator.matmul,
    "Minimum": lambda x, most: x.clamp(max=most),
    "Multiply": operator.mul,
    "NotEqual": operator.ne,
    "OnesLike": torch.ones_like,
    "ReLU": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "StopGradient": torch.detach,
    "Subtract": operator.sub,
    "ZerosLike": torch.zeros_like,
}
# Operation or layer without weights that has attributes: the same of them and its arguments.
SET: dict[str, Callable[..., Any]] = {
    "Average": lambda o, x: sum(x[1:], start=x[0]) / len(x),
    "Cast": lambda o, x: x.to(getattr(torch, o.dtype)),
    "Cumsum": lambda o, x: x.cumsum(o.axis or 0),
    "Flatten": lambda o, x: x.flatten(1),
    "GlobalAveragePooling2D": lambda o, x: x.mean((1, 2)),
    "GlobalAveragePooling3D": lambda o, x: x.mean((1, 2, 3)),
    "GlobalMaxPooling1D": lambda o, x: x.max(1)[0],
    "Pad": lambda o, x: functional.pad(x, [number for pair in reversed(o.pad_width) for number in pair]),
    "Repeat": lambda o, x: x.repeat_interleave(o.repeats, o.axis),
    "Rescaling": lambda o, x: x * o.scale + o.offset,
    "Softmax": lambda o, x: x.softmax(o.axis),
    "Split": lambda o, x: x.chunk(o.indices_or_sections, o.axis),
    "Sum": lambda o, x: x.sum(tuple(o.axis), keepdim=o.keepdims),
    "Transpose": lambda o, x: x.permute(o.axes),
    "ZeroPadding1D": lambda o, x: functional.pad(x, (0, 0, *o.padding)),
}


def translate(model: keras.Model) -> tuple[fx.GraphModule, dict[str, float]]:
    """Returns a module, and of weights whose rows have a largest l2 norm (Keras: ``MaxNorm``) name and norm.

    Raises:
        NotImplementedError: a layer or operation is none of those above.
    """
    writer = Writer()
    inputs = [fx.Proxy(writer.graph.placeholder(one.name), writer.tracer) for one in model.inputs]
    outputs = writer.network(model, inputs, "")
    places = {id(one): found.node for one, found in zip(model.outputs, outputs, strict=True)}
    writer.graph.output(tree.map_structure(lambda one: places[id(one)], model.output))
    for node in writer.graph.nodes:  # there and back
        before = node.args[0] if node.target == "permute" else None
        if isinstance(before, fx.Node) and before.target == "permute":
            there, back = before.args[1], node.args[1]
            if [there[axis] for axis in back] == sorted(there):
                node.replace_all_uses_with(before.args[0])
    net = fx.GraphModule(writer.root, writer.graph)
    net.graph.eliminate_dead_code()
    net.recompile()
    return net, writer.bounded


class Writer:
    """Writes a network down as a graph of PyTorch's."""

    def __init__(self) -> None:
        self.root, self.graph, self.bounded = nn.Module(), fx.Graph(), {}
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)

    def network(self, model: keras.Model, inputs: list[fx.Proxy], prefix: str) -> list[fx.Proxy]:
        """Returns the outputs of a network, or of one within it, whose layers' names then begin with ``prefix``."""
        found = {id(one): value for one, value in zip(model.inputs, inputs, strict=True)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input:
                    arguments, _ = node.arguments.fill_in(found)
                    outputs = self.operation(node.operation, arguments, node.input_tensors[0].shape, prefix)
                    found |= {id(one): value for one, value in zip(node.outputs, outputs, strict=False)}
        return [found[id(one)] for one in model.outputs]

    def operation(self, operation: Any, arguments: tuple, shape: tuple, prefix: str) -> Any:
        """Returns the outputs of one operation; ``shape`` is that of its first input."""
        kind = type(operation).__name__
        if isinstance(operation, keras.Model):
            return self.network(operation, tree.flatten(arguments), f"{prefix}{operation.name}_")
        if kind in PLAIN:
            return [PLAIN[kind](*arguments)]
        if kind in SET:
            found = SET[kind](operation, *arguments)
            return [found[number] for number in range(operation.indices_or_sections)] if kind == "Split" else [found]
        [x], name = arguments, prefix + operation.name
        if kind == "Concatenate":
            if len(shape) > 2 and operation.axis == -1:  # in the layout that the maps have
                return [last(torch.cat([first(one, len(shape)) for one in x], 1), len(shape))]
            return [torch.cat(x, operation.axis)]
        if kind == "OneHot":  # all zero for other numbers, which torch's own refuses
            self.root.register_buffer(name, torch.arange(operation.num_classes))
            numbers = fx.Proxy(self.graph.get_attr(name), self.tracer)
            return [(x[..., None] == numbers).float()]
        if kind == "Dropout":
            return [self.module(name, nn.Dropout(operation.rate), x)]
        if kind == "Embedding":
            layer = nn.Embedding(operation.input_dim, operation.output_dim)
            set_weights(layer, weight=operation.embeddings)
            return [self.module(name, layer, x)]
        if kind == "Dense":
            return [self.dense(operation, name, x)]
        if kind in ("Conv1D", "Conv2D", "Conv3D", "BatchNormalization") or "Pooling" in kind:
            rank = len(shape) - 2
            x = first(x, rank + 2)
            if kind == "BatchNormalization":
                x = self.normalisation(operation, name, x, rank)
            elif kind.startswith("Conv"):
                x = self.convolution(operation, name, x, shape)
            else:
                x = pooling(operation, x, shape)
            return [last(x, rank + 2)]
        raise NotImplementedError(f"{kind} ({name}) is not translated")

    def dense(self, layer: keras.layers.Dense, name: str, x: fx.Proxy) -> fx.Proxy:
        """Returns a linear map and its activation."""
        linear = nn.Linear(*layer.kernel.shape)
        set_weights(linear, weight=layer.kernel.value.T, bias=layer.bias)
        if layer.kernel_constraint is not None:
            self.bounded[f"layer_{name}.weight"] = layer.kernel_constraint.max_value
        return ACTIVATIONS[layer.activation.__name__](self.module(name, linear, x))

    def convolution(self, layer: Any, name: str, x: fx.Proxy, shape: tuple) -> fx.Proxy:
        """Returns a convolution and its activation, channels first."""
        before, after = padding(layer.padding, shape, layer.kernel_size, layer.strides)
        if before != after:
            x, before = functional.pad(x, sides(before, after)), [0] * len(before)
        rank, (*_, inputs, maps) = len(layer.kernel_size), layer.kernel.shape
        made = CONVOLUTIONS[rank](inputs, maps, layer.kernel_size, layer.strides, before, bias=layer.use_bias)
        weight = layer.kernel.value.permute(rank + 1, rank, *range(rank))
        set_weights(made, weight=weight, **({"bias": layer.bias} if layer.use_bias else {}))
        return ACTIVATIONS[layer.activation.__name__](self.module(name, made, x))

    def normalisation(self, layer: keras.layers.BatchNormalization, name: str, x: fx.Proxy, rank: int) -> fx.Proxy:
        """Returns batch normalisation, channels first."""
        made = NORMALISATIONS[rank](layer.gamma.shape[0], layer.epsilon, 1 - layer.momentum)
        set_weights(made, weight=layer.gamma, bias=layer.beta)
        set_weights(made, running_mean=layer.moving_mean, running_var=layer.moving_variance)
        return self.module(name, made, x)

    def module(self, name: str, layer: nn.Module, x: fx.Proxy) -> fx.Proxy:
        """Returns what a module makes of ``x``."""
        name = f"layer_{name}"
        self.root.add_module(name, layer)
        return fx.Proxy(self.graph.call_module(name, (x.node,)), self.tracer)


def pooling(layer: Any, x: fx.Proxy, shape: tuple) -> fx.Proxy:
    """Returns the largest or the mean value of each window, channels first."""
    rank, size, strides = len(layer.pool_size), layer.pool_size, layer.strides
    before, after = padding(layer.padding, shape, size, strides)
    if type(layer).__name__.startswith("Average"):
        if any(after):
            raise NotImplementedError(f"{layer.name}: an average with padding")
        return AVERAGES[rank](x, size, strides)
    if before == after:
        return MAXIMA[rank](x, size, strides, before)
    if not any(before):  # windows may reach over the end, which is the same
        return MAXIMA[rank](x, size, strides, ceil_mode=True)
    return MAXIMA[rank](functional.pad(x, sides(before, after), value=-math.inf), size, strides)


def padding(kind: str, shape: tuple, kernel: tuple, strides: tuple) -> tuple[list[int], list[int]]:
    """Returns what Keras adds before and after each axis of places; of an unknown size only with stride 1."""
    if kind == "valid":
        return [0] * len(kernel), [0] * len(kernel)
    totals = []
    for size, width, stride in zip(shape[1:-1], kernel, strides, strict=True):
        over = width if stride == 1 else width + (math.ceil(size / stride) - 1) * stride - size + 1
        totals.append(max(0, over - 1))
    return [total // 2 for total in totals], [total - total // 2 for total in totals]


def sides(before: list[int], after: list[int]) -> list[int]:
    """Returns paddings in the order of ``torch.nn.functional.pad``: the last axis first."""
    return [number for pair in reversed(list(zip(before, after, strict=True))) for number in pair]


def first(x: fx.Proxy, rank: int) -> fx.Proxy:
    """Returns a view with the channels, which are last, behind the batch."""
    return x.permute((0, rank - 1, *range(1, rank - 1)))


def last(x: fx.Proxy, rank: int) -> fx.Proxy:
    """Returns a view with the channels, which are behind the batch, last."""
    return x.permute((0, *range(2, rank), 1))


def set_weights(layer: nn.Module, **values: Any) -> None:
    """Copies Keras' variables or torch's tensors into parameters and buffers of a layer."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(getattr(value, "value", value))
