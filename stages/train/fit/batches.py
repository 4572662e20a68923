"""Batches of every kind of data, in an order that follows from (seed, epoch) alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from convoy.data.shards import Shards
from convoy.data.vocabulary import BEGIN, END, MULTIPLE, PAD, Ragged, Vocabulary, by_length, pad
from stages.train.entry import Train

# Bytes of pictures that are read together: of many shards each costs a little, however few rows are taken from it.
TOGETHER = 2**23


class Batches(keras.utils.PyDataset, ABC):
    """Batches of examples, shuffled for each epoch, so that a training can be repeated and resumed.

    Each is (inputs, targets, weights). For several devices the number of examples is a multiple of them: a batch is
    filled up with examples of weight 0, as a device without an example fails. Each device has an equal part of a
    batch, one after another, and examples are dealt to them in turn, so that none has all the long ones.

    Args:
        examples: how many there are.
        batch: examples of one batch.
        seed: of the order; None keeps it.
        devices: that share a batch.
        lengths: of the examples, shape (examples,): those of a batch then have similar ones.
    """

    def __init__(
        self, examples: int, batch: int, *, seed: int | None, devices: int = 1, lengths: np.ndarray | None = None
    ) -> None:
        super().__init__()
        self._examples, self._batch, self._seed, self._devices, self._lengths = examples, batch, seed, devices, lengths
        self._batches = self._cut(np.arange(examples))
        self._shuffled = False

    def __len__(self) -> int:
        return math.ceil(self._examples / self._batch)

    def __getitem__(self, number: int) -> tuple:
        # Which sizes may change Keras takes, with TensorFlow, from the first two batches: so one is unlike all others.
        # A single batch has one size, and keeps it.
        longer = number == 0 and (not self._shuffled or len(self) == 1)
        return self._read(*self._dealt(number), longer)

    def _dealt(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of a batch as the devices have them, and their weights: 0 for those that fill it up."""
        chosen = self._batches[number]
        dealt = np.arange(len(chosen) + -len(chosen) % self._devices).reshape(-1, self._devices).T.ravel()
        return np.resize(chosen, len(dealt))[dealt], (dealt < len(chosen)).astype(np.float32)

    def stream(self) -> Iterator[tuple]:
        """Yields all batches of this epoch in order."""
        return (self[number] for number in range(len(self)))

    def order(self) -> list[np.ndarray]:
        """Returns the rows of each batch of this epoch."""
        return self._batches

    def reorder(self, epoch: int) -> None:
        """Shuffles for one epoch."""
        self._shuffled = True
        rng = np.random.default_rng([self._seed, epoch])
        self._batches = self._cut(rng.permutation(self._examples))
        if self._lengths is not None:
            self._batches = [self._batches[place] for place in rng.permutation(len(self._batches))]

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        if self._lengths is not None:
            return list(by_length(self._lengths, order, self._batch))
        return [order[start : start + self._batch] for start in range(0, len(order), self._batch)]

    @abstractmethod
    def _read(self, rows: np.ndarray, weights: np.ndarray, longer: bool) -> tuple:
        """Returns (inputs, targets, weights) of examples; if ``longer``, texts are filled up beyond the longest."""


class Labelled(Batches):
    """Pictures, volumes or texts with a class: inputs, one-hot labels (n, classes), weights (n,).

    Where the model has several outputs, labels and weights are given once for each.

    Attributes:
        tokens: of texts; None for others.
        length: that tokens are filled up to, or None.
        outputs: names of the model's outputs.
        labels: of the examples, shape (examples,).
        one_hot: of each class, shape (classes, classes).
        class_weights: shape (classes,).

    Args:
        shards: the examples.
        array: theirs, that the model takes: image or volume, uint8 (n, ..., channels).
        tokens: instead, of texts.
        length: that tokens are filled up to; None: a little more than the longest of a batch.
        outputs: names of the model's outputs.
        class_weights: shape (classes,).
        settings: those of ``Batches``.
    """

    def __init__(
        self,
        shards: Shards,
        array: str | None,
        *,
        tokens: Ragged | None = None,
        length: int | None = None,
        outputs: Sequence[str],
        class_weights: np.ndarray,
        **settings: Any,
    ) -> None:
        self._shards, self._array, self.tokens, self.length = shards, array, tokens, length
        self.outputs, self.class_weights = outputs, class_weights
        self.one_hot = np.eye(len(class_weights), dtype=np.float32)
        self.labels = shards.column("label")
        similar = tokens is not None and length is None
        super().__init__(len(shards), lengths=tokens.lengths if similar else None, **settings)

    def stream(self) -> Iterator[tuple]:
        if self.tokens is not None:
            yield from super().stream()
            return
        several = max(1, TOGETHER // (self._batch * math.prod(self._shards.shape(self._array))))
        for start in range(0, len(self), several):
            parts = [self._dealt(number) for number in range(start, min(start + several, len(self)))]
            inputs = self._shards.take(self._array, np.concatenate([rows for rows, _ in parts]))
            ends = np.cumsum([len(rows) for rows, _ in parts])
            for (rows, weights), own in zip(parts, np.split(inputs, ends[:-1]), strict=True):
                yield self._with_labels(own, rows, weights)

    def _read(self, rows: np.ndarray, weights: np.ndarray, longer: bool) -> tuple:
        if self.tokens is None:
            inputs = self._shards.take(self._array, rows)
        else:
            length = int(self.tokens.lengths.max()) + 2 * MULTIPLE if longer and self.length is None else self.length
            inputs = pad([self.tokens[row] for row in rows], length)
        return self._with_labels(inputs, rows, weights)

    def _with_labels(self, inputs: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> tuple:
        labels = self.labels[rows]
        target, weights = self.one_hot[labels], weights * self.class_weights[labels]
        if len(self.outputs) == 1:
            return inputs, target, weights
        return inputs, dict.fromkeys(self.outputs, target), dict.fromkeys(self.outputs, weights)


class Pairs(Batches):
    """Sentences and their translations: (source (n, time), BEGIN and target (n, steps)), target and END, weights.

    The weights (n, steps) are those of the tokens; filling has 0.

    Attributes:
        source: tokens of the sentences.
        target: tokens of their translations.
    """

    def __init__(self, source: Ragged, target: Ragged, **settings: Any) -> None:
        self.source, self.target = source, target
        super().__init__(len(source), lengths=source.lengths + target.lengths, **settings)

    def _read(self, rows: np.ndarray, weights: np.ndarray, longer: bool) -> tuple:
        sides = (self.source, self.target)
        lengths = [int(side.lengths.max()) + 2 * MULTIPLE if longer else None for side in sides]
        source = pad([self.source[row] for row in rows], lengths[0])
        before = pad([np.concatenate([[BEGIN], self.target[row]]) for row in rows], lengths[1])
        after = pad([np.concatenate([self.target[row], [END]]) for row in rows], lengths[1])
        return (source, before), after, (after != PAD) * weights[:, None]


def encoded(shards: Shards, array: str, vocabulary: Vocabulary, length: int | None) -> Ragged:
    """Returns the tokens of all texts of a split, in memory: four bytes each."""
    return vocabulary.encode(shards.texts(array), length)


def make_batches(
    split: Shards, input_spec: dict[str, Any], model: keras.Model, outputs: Sequence[str], entry: Train, training: bool
) -> Batches:
    """Returns the batches of a split: shuffled and, if the entry says so, weighted for the training.

    Args:
        split: the examples.
        input_spec: the content of the model's input.json.
        model: that takes them.
        outputs: names of its outputs.
        entry: of train.
        training: or else validation, in order and without weights.
    """
    settings: dict[str, Any] = {"batch": entry.batch, "seed": entry.seed if training else None}
    settings |= {"devices": entry.devices}
    if "target" in input_spec:
        length = input_spec["length"]
        sides = (encoded(split, side, Vocabulary.from_json(input_spec[side]), length) for side in ("source", "target"))
        return Pairs(*sides, **settings)
    classes = len(input_spec["classes"])
    weights = np.ones(classes, np.float32)
    if entry.class_weights and training:
        counts = np.bincount(split.column("label"), minlength=classes)
        weights = (len(split) / (classes * np.maximum(counts, 1))).astype(np.float32)
    if "text" in input_spec:
        tokens = encoded(split, "text", Vocabulary.from_json(input_spec["text"]), input_spec["length"])
        settings |= {"tokens": tokens, "length": model.input_shape[1]}
    return Labelled(split, input_spec.get("array"), outputs=outputs, class_weights=weights, **settings)
