"""Why a network answers as it does: filters, activation maps, Grad-CAM, and the n-grams that decided.

For any Functional Keras model of one input, a loaded one too: what is shown is found in its graph, not by the names of
its layers. A feature map is what a layer gives that still has places - pixels, voxels, frames or tokens - and through
which all that leads from the input to the answer goes: of parallel branches it is what they are joined to.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from convoy.data.shards import Shards, spread
from convoy.data.vocabulary import PAD, UNKNOWN, Vocabulary
from convoy.errors import ConfigurationError
from convoy.model import backend
from convoy.model.predictor import Predictor
from convoy.model.scores import SMALLEST
from stages.evaluate.evaluators.receptive import Axis, Seen, receptive_fields
from stages.evaluate.report import pictures

CONVOLUTIONS = (
    layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D,
    layers.SeparableConv1D, layers.SeparableConv2D,
)  # fmt: skip
WHOSE = "Grad-CAM for the predicted class"
EXAMPLES = {"images": (10, 5), "volumes": (3, 2), "text": (6, 4)}  # right ones, and errors, that are drawn
FEWEST = 4  # places along each axis of a map for Grad-CAM, if there is one: 2 x 2 says little about where
LEVELS = 6  # layers whose activation maps are drawn
SENTENCES = 1_000  # of the test split, whose n-grams are counted; bounds time and memory
SIGNS = 2**14  # of the texts that are looked at together, filled up to the longest, likewise
LONGEST = 10  # tokens of an n-gram; longer ones hardly come twice
NGRAMS = 20  # per class that are listed

Windows = tuple[np.ndarray, np.ndarray, np.ndarray]  # as of ``window_contributions``


def write(predictor: Predictor, test: Shards, table: pd.DataFrame, target: Path, title: str) -> None:
    """Draws what explains the answers to some test examples; what a network's structure does not allow is said.

    Of pictures ``plots/`` filters.png, activations.png and gradcam.png; of volumes gradcam.png; of texts
    ``tables/ngrams.csv`` and ``plots/ngrams.png``, or gradcam.png where the last layer does not read the largest
    answers over time.

    Args:
        predictor: the model.
        test: test examples.
        table: label, predicted, correct and probability of each.
        target: folder with the folders tables and plots.
        title: of pictures.
    """
    network, plots = predictor.network, target / "plots"
    rows = chosen(table, *EXAMPLES[predictor.kind])
    shown = table.iloc[rows]
    predicted = np.array([predictor.classes.index(name) for name in shown["predicted"]])
    captions = [
        f"{one.label}, {one.probability:.0%}" if one.correct
        else f"{one.label}\ntaken for {one.predicted}, {one.probability:.0%}"
        for one in shown.itertuples()
    ]  # fmt: skip
    if predictor.kind == "text":
        try:
            found = ngrams(_windows(predictor, test), predictor.vocabularies["text"], predictor.classes)
        except ConfigurationError as error:
            with _or_said(f"{target}: no n-grams ({error}) and no Grad-CAM"):
                [tokens] = predictor.inputs({"text": test.take("text", rows)})
                heat = grad_cam(network, tokens, predicted)
                read = [_shown(predictor.vocabularies["text"], row) for row in tokens]
                pictures.draw_gradcam_text(read, heat, captions, f"{title}: {WHOSE}").savefig(plots / "gradcam.png")
        else:
            found.to_csv(target / "tables/ngrams.csv", index=False)
            pictures.draw_ngrams(found, title).savefig(plots / "ngrams.png")
        return
    examples = test.take(predictor.takes["array"], rows)
    draw = pictures.draw_gradcam_slices
    if predictor.kind == "images":
        draw = pictures.draw_gradcam
        with _or_said(f"{target}: no filters"):
            pictures.draw_filters(filters(network), title).savefig(plots / "filters.png")
        with _or_said(f"{target}: no activation maps"):
            found = activations(network, examples[:1])
            found = {name: maps[0] for name, maps in found.items()}
            pictures.draw_activations(examples[0], captions[0], found, title).savefig(plots / "activations.png")
    with _or_said(f"{target}: no Grad-CAM"):
        heat = grad_cam(network, examples, predicted)
        draw(examples, heat, captions, f"{title}: {WHOSE}").savefig(plots / "gradcam.png")


@contextmanager
def _or_said(what: str) -> Iterator[None]:
    """Says what is not there instead of failing: a network of the user's own is no reason to go without scores."""
    try:
        yield
    except ConfigurationError as error:
        print(f"{what}: {error}")


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
    for layer in _inner(network):
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
    nodes = [node for node, _ in _feature_maps(network)]
    some = [nodes[number] for number in spread(len(nodes), LEVELS)]
    found = _values(network, [node.outputs[0] for node in some], inputs)
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
    made = [node for node, convolved in _feature_maps(network) if convolved]
    fine = [node for node in made if all(size is None or size >= FEWEST for size in node.outputs[0].shape[1:-1])]
    node = (fine or made)[-1]
    [found] = _values(network, node.outputs, inputs)
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


def window_contributions(network: keras.Model, tokens: np.ndarray) -> Windows:
    """Returns what the windows that won max-over-time add to the scores, those before the softmax.

    Where nothing but the last layer reads a map's largest answer, that answer times a class's weight is exactly what it
    adds: all contributions of a sentence and the bias sum to the scores. A window that won several maps is listed once,
    with the sum; one whose maps are all 0 is not.

    Args:
        network: a classifier of texts.
        tokens: int (sentences, time).

    Returns:
        Of each window the number of its sentence, int (windows,); its tokens, int (windows, LONGEST), without what is
        beyond the ends of the sentence and filled up with PAD; and its contributions, float (windows, classes).

    Source: Jacovi et al. 2018, "Understanding Convolutional Neural Networks for Text Classification", arXiv:1809.08037,
    section 4.

    Raises:
        ConfigurationError: the network is another one, or its windows are not known or longer than LONGEST.
    """
    pools, last = _pools(network)
    answers = _values(network, [maps for maps, _ in pools], tokens)
    kernels = np.split(ops.convert_to_numpy(last.kernel), np.cumsum([maps.shape[-1] for maps, _ in pools])[:-1])
    found = []
    for given, (_, axis), kernel in zip(answers, pools, kernels, strict=True):
        n, time, _ = given.shape  # (sentences, time, maps)
        largest = given.max(axis=1)[..., None] * kernel  # (sentences, maps, classes)
        won, which = np.unique(given.argmax(axis=1) + time * np.arange(n)[:, None], return_inverse=True)
        added = [np.bincount(which.ravel(), one.ravel(), len(won)) for one in np.moveaxis(largest, 2, 0)]
        sentences, places = np.divmod(won, time)
        at = places[:, None] * int(axis.jump) + int(axis.first) + np.arange(LONGEST)
        inside = (at >= 0) & (at < tokens.shape[1]) & (np.arange(LONGEST) < axis.field)
        windows = np.where(inside, tokens[sentences[:, None], np.where(inside, at, 0)], PAD)
        windows = np.take_along_axis(windows, np.argsort(windows == PAD, axis=1, kind="stable"), axis=1)
        found.append((sentences, windows, np.stack(added, axis=1)))
    sentences, windows, added = (np.concatenate(parts) for parts in zip(*found, strict=True))
    some = added.any(axis=1)
    return sentences[some], windows[some], added[some]


def ngrams(windows: Iterable[Windows], vocabulary: Vocabulary, classes: list[str]) -> pd.DataFrame:
    """Returns the NGRAMS n-grams of each class that did most for it, the first one the most.

    Columns: class; ngram; sentences, in which it won; contribution to the score of the class, the mean over these;
    advantage, the same less what it adds to the classes on average, because only that changes a probability; total, the
    sum of the advantages, by which they are ordered.

    Args:
        windows: of some sentences each.
        vocabulary: of their tokens.
        classes: their names.
    """
    parts, before = [], 0
    for sentences, tokens, added in windows:
        parts.append((sentences + before, tokens, added))
        before += sentences.max(initial=-1) + 1
    sentences, tokens, added = (np.concatenate(part) for part in zip(*parts, strict=True))
    columns = pd.DataFrame(tokens)
    number = columns.groupby(list(columns)).ngroup().to_numpy()  # of the n-gram
    _, first = np.unique(number, return_index=True)
    times = np.bincount(np.unique(number + sentences * len(first)) % len(first))
    total = np.stack([np.bincount(number, one) for one in added.T], axis=1)  # (n-grams, classes)
    ahead = total - total.mean(axis=1, keepdims=True)
    rows = []
    for place, name in enumerate(classes):
        for best in np.argsort(-ahead[:, place], kind="stable")[:NGRAMS]:
            if ahead[best, place] > 0:
                text = "".join(_shown(vocabulary, tokens[first[best]])).strip()
                means = (total[best, place] / times[best], ahead[best, place] / times[best])
                rows.append((name, text, times[best], *means, ahead[best, place]))
    return pd.DataFrame(rows, columns=["class", "ngram", "sentences", "contribution", "advantage", "total"])


def _windows(predictor: Predictor, test: Shards) -> Iterator[Windows]:
    """Yields what decided in up to SENTENCES test examples, spread over the split; the longest first."""
    network = predictor.network
    texts = test.take("text", spread(len(test), SENTENCES))
    lengths = np.minimum([len(text) for text in texts], predictor.takes["length"])  # signs; tokens are no more
    lengths = np.maximum(lengths, network.input_shape[1] or 1)
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        count = max(1, SIGNS // lengths[order[0]])
        [tokens] = predictor.inputs({"text": texts[order[:count]]})
        yield window_contributions(network, tokens)
        order = order[count:]


def _shown(vocabulary: Vocabulary, tokens: np.ndarray) -> list[str]:
    """Returns tokens as people read them, joined without anything between them; filling is left out."""
    tokens = tokens[tokens != PAD]
    between = " " if vocabulary.unit == "words" else ""
    unknown = "[unknown]" if vocabulary.unit == "words" else "□"  # no "?", which may be a word
    shown = vocabulary.shown(tokens)
    shown = [unknown if token == UNKNOWN else text for token, text in zip(tokens, shown, strict=True)]
    return [text.replace("▁", " ") + between for text in shown]


def _inner(network: keras.Model) -> Iterator[keras.Layer]:
    """Yields the layers from the input on, for a model in the model those of it."""
    for layer in network.layers:
        yield from _inner(layer) if isinstance(layer, keras.Model) else [layer]


def _values(network: keras.Model, tensors: list[keras.KerasTensor], inputs: np.ndarray) -> list[np.ndarray]:
    """Returns what the graph has for some of its tensors, when it is given ``inputs``."""
    found = keras.Model(network.inputs[0], tensors)(inputs, training=False)
    return [ops.convert_to_numpy(one) for one in keras.tree.flatten(found)]  # a list of one is none, in a Model


def _nodes(network: keras.Model) -> list[Any]:
    """Returns the nodes of the graph, each one use of a layer, none before those that it reads.

    Raises:
        ConfigurationError: it has no graph.
    """
    if not hasattr(network, "_nodes_by_depth"):
        raise ConfigurationError(f"the network is a {type(network).__name__}, and not a graph of layers")
    return [node for depth in sorted(network._nodes_by_depth, reverse=True) for node in network._nodes_by_depth[depth]]


def _feature_maps(network: keras.Model) -> list[tuple[Any, bool]]:
    """Returns the nodes of the feature maps on the way up, and whether a convolution made each of the one before it.

    What comes after a convolution or a pooling and has no window itself - normalisation, activation, the sum with a
    skip connection - makes no new map: the node is the last of these.

    Raises:
        ConfigurationError: there is none that a convolution made.
    """
    nodes = _nodes(network)
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
        return any(isinstance(layer, CONVOLUTIONS) for layer in _inner(operation))
    return isinstance(operation, CONVOLUTIONS)


def _score(network: keras.Model, maps: keras.KerasTensor) -> Callable[[Any], Any]:
    """Returns the function from the values of a feature map to the scores before the softmax, (n, classes).

    Not to probabilities: where one is near 1 its derivative is near 0, and it rises with whatever speaks against the
    other classes. A bias is left out, for it has no part in a derivative. Without a softmax at the end, to logarithms.
    """
    last = _nodes(network)[-1]
    layer = last.operation
    if not _softmax(layer):
        rest = keras.Model(maps, network.outputs[0])
        return lambda given: ops.log(ops.maximum(rest(given, training=False), SMALLEST))
    rest = keras.Model(maps, last.input_tensors[0])
    if isinstance(layer, layers.Dense):
        return lambda given: ops.matmul(rest(given, training=False), layer.kernel)
    return lambda given: rest(given, training=False)


def _softmax(layer: keras.Operation) -> bool:
    return type(layer).__name__ == "Softmax" or getattr(layer, "activation", None) is keras.activations.softmax


def _pools(network: keras.Model) -> tuple[list[tuple[keras.KerasTensor, Axis]], layers.Dense]:
    """Returns what max-over-time takes the largest of, in the order in which the last layer reads it, and that layer.

    With each tensor (batch, time, maps) comes what its units see of the text.

    Raises:
        ConfigurationError: as of ``window_contributions``.
    """
    nodes = _nodes(network)
    maker = {id(tensor): node for node in nodes for tensor in node.outputs}
    last = nodes[-1].operation
    if not (isinstance(last, layers.Dense) and _softmax(last)):
        raise ConfigurationError(f"the last layer, {last.name}, is no Dense with a softmax")
    fields = receptive_fields(network)
    found, waiting = [], [*nodes[-1].input_tensors]
    while waiting:
        node = maker[id(waiting.pop(0))]
        layer = node.operation
        if isinstance(layer, layers.Dropout | layers.Concatenate):
            waiting[:0] = node.input_tensors
            continue
        if not isinstance(layer, layers.GlobalMaxPooling1D):
            raise ConfigurationError(f"the last layer reads {layer.name}, which is no largest answer over time")
        [maps] = node.input_tensors
        seen = fields[maker[id(maps)].operation.name]
        if not isinstance(seen, tuple) or seen[0].field > LONGEST:
            raise ConfigurationError(f"what {layer.name} takes the largest of sees more than {LONGEST} tokens")
        found.append((maps, seen[0]))
    return found, last


def _spread(heat: np.ndarray, sizes: tuple[int, ...], seen: Seen) -> np.ndarray:
    """Brings feature maps to the size of what they are of: (n, *units) -> (n, *sizes).

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
