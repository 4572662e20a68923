"""Pictures and volumes that TensorFlow holds in memory while it trains, and gathers batches of by itself.

More than MOST bytes are read from the shards as they are needed, by ``Batches``, with as little memory for any number
of examples. Both give the same batches; without Python's part in each, LeNet-5 trains by a twentieth faster.
"""

from typing import Any

import keras
import numpy as np

from stages.shards import Shards
from stages.train.batches import Labelled

MOST = 2**29  # bytes that are held of the training split


def held(split: Shards, array: str | None, devices: int) -> int:
    """Returns the bytes that a training holds of a split: of its pictures or volumes, if those are not too many."""
    if array is None or devices > 1 or keras.backend.backend() != "tensorflow":
        return 0
    size = len(split) * int(np.prod(split.shape(array)))
    return size if size <= MOST else 0


def dataset(batches: Labelled, examples: np.ndarray) -> Any:
    """Returns a ``tf.data.Dataset`` of the same batches, in the order that each epoch has when it begins.

    Args:
        batches: tells the order, and what belongs to each example.
        examples: all that the rows of ``batches`` number: uint8 (examples, ..., channels).
    """
    import tensorflow as tf

    names, size, examples = batches.outputs, batches.size, tf.constant(examples)
    labels, targets, weights = map(tf.constant, (batches.labels, batches.one_hot, batches.class_weights))

    def order() -> Any:
        yield np.concatenate(batches.order())

    def cut(rows: Any) -> Any:
        starts = tf.data.Dataset.range(0, tf.shape(rows, tf.int64)[0], size)
        return starts.map(lambda start: rows[start : start + size])

    def gather(rows: Any) -> tuple:
        chosen = tf.gather(labels, rows)
        target, weight = tf.gather(targets, chosen), tf.gather(weights, chosen)
        if len(names) > 1:
            target, weight = dict.fromkeys(names, target), dict.fromkeys(names, weight)
        return tf.gather(examples, rows), target, weight

    rows = tf.data.Dataset.from_generator(order, output_signature=tf.TensorSpec((None,), tf.int64)).flat_map(cut)
    gathered = rows.map(gather, num_parallel_calls=1, deterministic=True)
    return gathered.apply(tf.data.experimental.assert_cardinality(len(batches))).prefetch(4)
