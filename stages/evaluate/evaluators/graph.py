"""The graph of layers of a network: its nodes, its feature maps and their values."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from convoy.errors import ConfigurationError
from convoy.model.backend import all_layers

CONVOLUTIONS = (
    layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D,
    layers.SeparableConv1D, layers.SeparableConv2D,
)  # fmt: skip


def values(network: keras.Model, tensors: list[keras.KerasTensor], inputs: np.ndarray) -> list[np.ndarray]:
    """Returns what the graph has for some of its tensors, when it is given ``inputs``."""
    found = keras.Model(network.inputs[0], tensors)(inputs, training=False)
    return [ops.convert_to_numpy(one) for one in keras.tree.flatten(found)]  # a list of one is none, in a Model


def nodes_of(network: keras.Model) -> list[Any]:
    """Returns the nodes of the graph, each one use of a layer, none before those that it reads.

    Raises:
        ConfigurationError: it has no graph.
    """
    if not hasattr(network, "_nodes_by_depth"):
        raise ConfigurationError(f"the network is a {type(network).__name__}, and not a graph of layers")
    return [node for depth in sorted(network._nodes_by_depth, reverse=True) for node in network._nodes_by_depth[depth]]


def feature_maps(network: keras.Model) -> list[tuple[Any, bool]]:
    """Returns the nodes of the feature maps on the way up, and whether a convolution made each of the one before it.

    What comes after a convolution or a pooling and has no window itself - normalisation, activation, the sum with a
    skip connection - makes no new map: the node is the last of these.

    Raises:
        ConfigurationError: there is none that a convolution made.
    """
    nodes = nodes_of(network)
    place = {id(node): number for number, node in enumerate(nodes)}
    reader = [0] * len(nodes)  # the last of each
    for number, node in enumerate(nodes):
        for parent in node.parent_nodes:
            reader[place[id(parent)]] = number
    found: list[tuple[Any, bool]] = []
    begin, furthest, rank = 0, 0, 0
    for number, node in enumerate(nodes):
        past = furthest > number  # something goes past this one
        furthest = max(furthest, reader[number])
        if past or len(node.outputs) > 1:
            continue
        between, begin = [one.operation for one in nodes[begin : number + 1]], number + 1
        convolved, shape = any(map(_convolves, between)), node.outputs[0].shape
        rank = rank or (len(shape) if convolved else 0)
        if len(shape) != rank or all(size == 1 for size in shape[1:-1]):
            continue
        if convolved or any(type(one).__name__.startswith(("MaxPool", "AveragePool")) for one in between):
            found.append((node, convolved))
        elif found and "Dropout" not in type(node.operation).__name__:  # which has no effect by now
            found[-1] = (node, found[-1][1])
    places = max(1, len(network.inputs[0].shape) - 2)  # tokens have no channels
    if rank and rank - 2 != places:
        raise ConfigurationError(f"its convolutions see {rank - 2} axes of places, and its input has {places}")
    if not any(convolved for _, convolved in found):
        raise ConfigurationError("no convolution makes a feature map through which all goes to the answer")
    return found


def _convolves(operation: keras.Operation) -> bool:
    if isinstance(operation, keras.Model):
        return any(isinstance(layer, CONVOLUTIONS) for layer in all_layers(operation))
    return isinstance(operation, CONVOLUTIONS)


def is_softmax(layer: keras.Operation) -> bool:
    """Tells whether a layer ends in a softmax."""
    return type(layer).__name__ == "Softmax" or getattr(layer, "activation", None) is keras.activations.softmax
