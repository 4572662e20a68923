"""What TensorFlow is fed with: examples that it holds in memory, and gathers batches of by itself, or ``Batches``.

More than MOST bytes are read from the shards as they are needed, by ``Batches``, with as little memory for any number
of examples. Both give the same batches. Nothing is left to the autotuner of ``tf.data``: its thread sleeps longer and
longer, and an epoch would wait for it to end, up to two seconds. The order of an epoch is a variable, since a dataset
that calls Python does so in a thread of its own, and glibc may then ask the system for memory in every step
(``benchmarks/RESULTS.md``).
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from convoy.data.shards import Shards
from convoy.data.vocabulary import BEGIN, END, MULTIPLE, PAD, Ragged
from stages.train.fit.batches import Batches, Labelled, Pairs

AHEAD = 4  # batches
MOST = 2**29  # bytes that are held of the training split


def held(split: Shards, array: str, devices: int) -> int:
    """Returns the bytes that a training holds of a split: of its pictures or volumes, if those are not too many."""
    size = len(split) * int(np.prod(split.shape(array)))
    return size if fits(size, devices) else 0


def fits(size: int, devices: int) -> bool:
    """Returns whether a training holds examples of so many bytes."""
    return size <= MOST and devices == 1 and keras.backend.backend() == "tensorflow"


class Held:
    """A ``tf.data.Dataset`` of the batches that ``batches`` would give.

    Attributes:
        data: the dataset.

    Args:
        batches: tells the order, and what belongs to each example.
        examples: all pictures or volumes that the rows of ``batches`` number: uint8 (examples, ..., channels); of texts
            None, as ``batches`` has their tokens.
    """

    def __init__(self, batches: Labelled | Pairs, examples: np.ndarray | None) -> None:
        import tensorflow as tf

        self._batches = batches
        order, starts = self._ordered()
        with tf.device("CPU"):  # where datasets are computed
            self._order, self._starts = (tf.Variable(part, trainable=False) for part in (order, starts))
            gather = _pairs(batches) if isinstance(batches, Pairs) else _labelled(batches, examples)

        def epoch(_: Any) -> Any:
            order, starts = self._order.read_value(), self._starts.read_value()
            numbers = tf.data.Dataset.range(len(batches))
            return numbers.map(lambda number: order[starts[number] : starts[number + 1]])

        rows = tf.data.Dataset.from_tensors(0).flat_map(epoch)
        gathered = rows.map(gather, num_parallel_calls=1, deterministic=True)
        self.data = _ready(gathered, len(batches))

    def reorder(self, epoch: int) -> None:
        """Shuffles for one epoch; before it begins."""
        self._batches.reorder(epoch)
        for variable, part in zip((self._order, self._starts), self._ordered(), strict=True):
            variable.assign(part)

    def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of all batches, and where in them each begins, and the last ends."""
        rows = self._batches.order()
        return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


def streamed(batches: Batches) -> Any:
    """Returns a ``tf.data.Dataset`` of batches that are read one after another, as Keras would make it of them."""
    import tensorflow as tf

    def spec(one: np.ndarray, other: np.ndarray) -> tf.TensorSpec:
        first = one.shape[0] if len(batches) == 1 else None
        others = (a if a == b else None for a, b in zip(one.shape[1:], other.shape[1:], strict=True))
        return tf.TensorSpec([first, *others], one.dtype)

    # Which sizes may change, the first two batches say: one of them is unlike all others.
    signature = keras.tree.map_structure(spec, batches[0], batches[min(1, len(batches) - 1)])
    read = tf.data.Dataset.from_generator(batches.stream, output_signature=signature)
    return _ready(read, len(batches))


def _ready(data: Any, batches: int) -> Any:
    """Returns a dataset of so many batches that are made ahead of time."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    known = data.apply(tf.data.experimental.assert_cardinality(batches))
    return known.prefetch(AHEAD).with_options(options)


def holds(batches: Batches, split: Shards, array: str | None, devices: int) -> bool:
    """Returns whether a training holds its examples: those of ``held``, or texts whose tokens are not too many."""
    if array is not None:
        return held(split, array, devices) > 0
    texts = (batches.source, batches.target) if isinstance(batches, Pairs) else (batches.tokens,)
    return fits(sum(text.flat.nbytes for text in texts), devices)


def _labelled(batches: Labelled, examples: np.ndarray | None) -> Callable[[Any], tuple]:
    import tensorflow as tf

    names = batches.outputs
    labels, targets, weights = map(tf.constant, (batches.labels, batches.one_hot, batches.class_weights))
    if examples is None:
        tokens = _ragged(batches.tokens)
    else:
        examples = tf.constant(examples)

    def gather(rows: Any) -> tuple:
        inputs = _filled(tf.gather(tokens, rows), batches.length) if examples is None else tf.gather(examples, rows)
        chosen = tf.gather(labels, rows)
        target, weight = tf.gather(targets, chosen), tf.gather(weights, chosen)
        if len(names) > 1:
            target, weight = dict.fromkeys(names, target), dict.fromkeys(names, weight)
        return inputs, target, weight

    return gather


def _pairs(batches: Pairs) -> Callable[[Any], tuple]:
    import tensorflow as tf

    source, target = _ragged(batches.source), _ragged(batches.target)

    def gather(rows: Any) -> tuple:
        given, wanted = tf.gather(source, rows), tf.gather(target, rows)
        begin, end = (tf.fill((tf.size(rows), 1), token) for token in (BEGIN, END))
        before, after = _filled(tf.concat([begin, wanted], 1)), _filled(tf.concat([wanted, end], 1))
        return (_filled(given), before), after, tf.cast(after != PAD, tf.float32)

    return gather


def _ragged(tokens: Ragged) -> Any:
    import tensorflow as tf

    return tf.RaggedTensor.from_row_splits(tokens.flat, np.concatenate([[0], tokens.ends]))


def _filled(rows: Any, length: int | None = None) -> Any:
    """Does what ``vocabulary.pad`` does."""
    import tensorflow as tf

    made = rows.to_tensor(PAD)
    present = tf.shape(made)[1]
    missing = -present % MULTIPLE if length is None else length - present
    made = tf.pad(made, [[0, 0], [0, tf.where(present + missing > 0, missing, MULTIPLE)]], constant_values=PAD)
    return tf.ensure_shape(made, (None, length))
