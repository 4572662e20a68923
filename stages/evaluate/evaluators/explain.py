"""Why a network answers as it does: filters, activation maps, Grad-CAM and, of texts, n-grams.

For any Functional Keras model of one input, a loaded one too: what is shown is found in its graph, not by the names of
its layers. A feature map is what a layer gives that still has places - pixels, voxels, frames or tokens - and through
which all that leads from the input to the answer goes: of parallel branches it is what they are joined to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from convoy.data.shards import Shards, spread
from convoy.errors import ConfigurationError
from convoy.model import backend
from convoy.model.backend import all_layers
from convoy.model.predictor import Predictor
from convoy.model.scores import SMALLEST
from stages.evaluate.evaluators import ngrams
from stages.evaluate.evaluators.graph import feature_maps, is_softmax, nodes_of, values
from stages.evaluate.evaluators.receptive import Seen, receptive_fields
from stages.evaluate.results import Results

FEWEST = 4  # places along each axis of a map for Grad-CAM, if there is one: 2 x 2 says little about where
LEVELS = 6  # layers whose activation maps are drawn


def explain(predictor: Predictor, test: Shards, answers: pd.DataFrame) -> Results:
    """Returns what explains the answers to some test examples; what a network's structure does not allow is a note.

    Of pictures the plots filters, activations and gradcam; of volumes gradcam; of texts the table and the plot ngrams,
    or gradcam where the last layer does not read the largest answers over time.

    Args:
        predictor: the model.
        test: test examples.
        answers: label, predicted, correct and probability of each.
    """
    rows = chosen(answers, *predictor.kind.explained)
    shown = answers.iloc[rows]
    predicted = np.array([predictor.classes.index(name) for name in shown["predicted"]])
    captions = [
        f"{one.label}, {one.probability:.0%}" if one.correct
        else f"{one.label}\ntaken for {one.predicted}, {one.probability:.0%}"
        for one in shown.itertuples()
    ]  # fmt: skip
    if predictor.kind.is_text:
        return _explain_texts(predictor, test, rows, predicted, captions)
    network, found = predictor.network, Results()
    examples = test.take(predictor.array, rows)
    if predictor.kind.axes == 2:
        with _noted(found, "no filters"):
            found.plots["filters"] = (filters(network),)
        with _noted(found, "no activation maps"):
            maps = {name: maps[0] for name, maps in activations(network, examples[:1]).items()}
            found.plots["activations"] = (examples[0], captions[0], maps)
    with _noted(found, "no Grad-CAM"):
        found.plots["gradcam"] = (examples, grad_cam(network, examples, predicted), captions)
    return found


def _explain_texts(
    predictor: Predictor, test: Shards, rows: np.ndarray, predicted: np.ndarray, captions: list[str]
) -> Results:
    vocabulary, found = predictor.vocabularies[predictor.array], Results()
    try:
        table = ngrams.ngrams(ngrams.deciding_windows(predictor, test), vocabulary, predictor.classes)
    except ConfigurationError as error:
        with _noted(found, f"no n-grams ({error}) and no Grad-CAM"):
            [tokens] = predictor.inputs({predictor.array: test.take(predictor.array, rows)})
            heat = grad_cam(predictor.network, tokens, predicted)
            found.plots["gradcam"] = ([ngrams.readable(vocabulary, row) for row in tokens], heat, captions)
    else:
        found.tables["ngrams"], found.plots["ngrams"] = table, (table,)
    return found


@contextmanager
def _noted(found: Results, what: str) -> Iterator[None]:
    """Notes what is not there instead of failing: a network of the user's own is no reason to go without scores."""
    try:
        yield
    except ConfigurationError as error:
        found.notes.append(f"{what}: {error}")


def chosen(table: pd.DataFrame, right: int, wrong: int) -> np.ndarray:
    """Returns the numbers of the examples to look at: typical right ones, then the most certain errors.

    Args:
        table: label, predicted, correct and probability of each.
        right: of so many classes, the right one whose probability is the median.
        wrong: so many errors.
    """
    ordered = table.sort_values("probability", kind="stable")
    classes = ordered[ordered["correct"]].groupby("label").groups.values()
    typical = [rows[len(rows) // 2] for rows in classes]
    some = spread(len(typical), right)
    errors = ordered[~ordered["correct"]].index[::-1][:wrong]
    return np.array([*(typical[number] for number in some), *errors], int)


def filters(network: keras.Model) -> np.ndarray:
    """Returns the filters of the first convolution over pictures, float32 (maps, height, width, channels).

    Source: Krizhevsky et al. 2012, figure 3; Zeiler and Fergus 2013, arXiv:1311.2901, figure 6.

    Raises:
        ConfigurationError: it has none, or the first reads something else than the colours of a picture.
    """
    for layer in all_layers(network):
        if isinstance(layer, layers.Conv2D):
            if layer.kernel.shape[2] not in (1, 3):
                raise ConfigurationError(f"the first convolution, {layer.name}, reads {layer.kernel.shape[2]} channels")
            return np.moveaxis(ops.convert_to_numpy(layer.kernel), 3, 0)
    raise ConfigurationError("no layer is a convolution over pictures")


def activations(network: keras.Model, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the activation maps of up to LEVELS layers on the way up: layer -> float32 (n, *places, maps).

    Source: Zeiler and Fergus 2013, arXiv:1311.2901, section 4.1.

    Raises:
        ConfigurationError: it has no feature map.
    """
    nodes = [node for node, _ in feature_maps(network)]
    some = [nodes[number] for number in spread(len(nodes), LEVELS)]
    found = values(network, [node.outputs[0] for node in some], inputs)
    return {node.operation.name: maps for node, maps in zip(some, found, strict=True)}


def grad_cam(network: keras.Model, inputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns where in each example the evidence for a class lies: float32 (n, *places of the input), 0 or more.

    Of the last layer that a convolution made (with its normalisation and activation, before pooling) and that has
    FEWEST places or more along each axis, each map weighs the mean over its places of the derivative of the class's
    score (equation 1); their sum, where it is above 0, is the answer (equation 2). A unit's value stands where it
    looks, in the middle of its receptive field, and between units it is interpolated; where receptive fields are not
    known the map is stretched over the example.

    Args:
        network: a classifier.
        inputs: pictures (n, height, width, channels), volumes (n, depth, height, width, channels) or tokens (n, time).
        classes: int (n,), the class that is asked for.

    Source: Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391, section 3.

    Raises:
        ConfigurationError: it has no such feature map.
    """
    made = [node for node, convolved in feature_maps(network) if convolved]
    fine = [node for node in made if all(size is None or size >= FEWEST for size in node.outputs[0].shape[1:-1])]
    node = (fine or made)[-1]
    [found] = values(network, node.outputs, inputs)
    score = _score(network, node.outputs[0])
    asked = ops.one_hot(classes, network.output_shape[-1])
    slopes = backend.gradient(lambda maps: ops.sum(score(maps) * asked), found)
    weights = slopes.mean(axis=tuple(range(1, slopes.ndim - 1)), keepdims=True)
    heat = np.maximum((weights * found).sum(axis=-1), 0)
    try:
        seen = receptive_fields(network).get(node.operation.name)
    except ConfigurationError:
        seen = None
    return _spread(heat, inputs.shape[1 : heat.ndim], seen)


def _score(network: keras.Model, maps: keras.KerasTensor) -> Callable[[Any], Any]:
    """Returns the function from the values of a feature map to the scores before the softmax, (n, classes).

    Not to probabilities: where one is near 1 its derivative is near 0, and it rises with whatever speaks against the
    other classes. A bias is left out, for it has no part in a derivative. Without a softmax at the end, to logarithms.
    """
    last = nodes_of(network)[-1]
    layer = last.operation
    if not is_softmax(layer):
        rest = keras.Model(maps, network.outputs[0])
        return lambda given: ops.log(ops.maximum(rest(given, training=False), SMALLEST))
    rest = keras.Model(maps, last.input_tensors[0])
    if isinstance(layer, layers.Dense):
        return lambda given: ops.matmul(rest(given, training=False), layer.kernel)
    return lambda given: rest(given, training=False)


def _spread(heat: np.ndarray, sizes: tuple[int, ...], seen: Seen) -> np.ndarray:
    """Resizes feature maps to what they are computed from: (n, *units) -> (n, *sizes).

    Args:
        heat: the maps.
        sizes: places of the example.
        seen: what their units see, if that is known.
    """
    for number, size in enumerate(sizes):
        units = np.arange(heat.shape[number + 1])
        middles = (units + 0.5) * size / len(units) - 0.5
        if isinstance(seen, tuple):
            axis = seen[number]
            middles = units * float(axis.jump) + float(axis.first + axis.last) / 2
        weights = [np.interp(np.arange(size), middles, unit) for unit in np.eye(len(units))]
        heat = np.moveaxis(np.moveaxis(heat, number + 1, -1) @ np.array(weights), -1, number + 1)
    return heat.astype(np.float32)
