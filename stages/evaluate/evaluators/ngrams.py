"""Which n-grams decided what a network says to texts."""

from collections.abc import Iterable, Iterator

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from convoy.data.shards import Shards, spread
from convoy.data.vocabulary import PAD, UNKNOWN, Vocabulary
from convoy.errors import ConfigurationError
from convoy.model.predictor import Predictor
from stages.evaluate.evaluators.graph import is_softmax, nodes_of, values
from stages.evaluate.evaluators.receptive import Axis, receptive_fields

SENTENCES = 1_000  # of the test split, whose n-grams are counted; bounds time and memory
SIGNS = 2**14  # of the texts that are looked at together, filled up to the longest, likewise
LONGEST = 10  # tokens of an n-gram; longer ones hardly come twice
NGRAMS = 20  # per class that are listed
Windows = tuple[np.ndarray, np.ndarray, np.ndarray]  # what ``window_contributions`` returns


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
    answers = values(network, [maps for maps, _ in pools], tokens)
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
                text = "".join(readable(vocabulary, tokens[first[best]])).strip()
                means = (total[best, place] / times[best], ahead[best, place] / times[best])
                rows.append((name, text, times[best], *means, ahead[best, place]))
    return pd.DataFrame(rows, columns=["class", "ngram", "sentences", "contribution", "advantage", "total"])


def deciding_windows(predictor: Predictor, test: Shards) -> Iterator[Windows]:
    """Yields what decided in up to SENTENCES test examples, spread over the split; the longest first."""
    network = predictor.network
    texts = test.take(predictor.array, spread(len(test), SENTENCES))
    lengths = np.minimum([len(text) for text in texts], predictor.takes["length"])  # signs; tokens are no more
    lengths = np.maximum(lengths, network.input_shape[1] or 1)
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        count = max(1, SIGNS // lengths[order[0]])
        [tokens] = predictor.inputs({predictor.array: texts[order[:count]]})
        yield window_contributions(network, tokens)
        order = order[count:]


def readable(vocabulary: Vocabulary, tokens: np.ndarray) -> list[str]:
    """Returns tokens as people read them, joined without anything between them; filling is left out."""
    tokens = tokens[tokens != PAD]
    between = " " if vocabulary.unit == "words" else ""
    unknown = "[unknown]" if vocabulary.unit == "words" else "□"  # no "?", which may be a word
    shown = vocabulary.shown(tokens)
    shown = [unknown if token == UNKNOWN else text for token, text in zip(tokens, shown, strict=True)]
    return [text.replace("▁", " ") + between for text in shown]


def _pools(network: keras.Model) -> tuple[list[tuple[keras.KerasTensor, Axis]], layers.Dense]:
    """Returns what max-over-time takes the largest of, in the order in which the last layer reads it, and that layer.

    With each tensor (batch, time, maps) comes what its units see of the text.

    Raises:
        ConfigurationError: see ``window_contributions``.
    """
    nodes = nodes_of(network)
    maker = {id(tensor): node for node in nodes for tensor in node.outputs}
    last = nodes[-1].operation
    if not (isinstance(last, layers.Dense) and is_softmax(last)):
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
