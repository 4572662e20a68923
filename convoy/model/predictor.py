"""A trained network with the preparation of its inputs: the same for evaluate, register and whoever predicts."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy.special import logsumexp

from convoy import kinds
from convoy.data.shards import Arrays, Shards, objects
from convoy.data.vocabulary import BEGIN, END, PAD, Vocabulary, by_length, pad
from convoy.files import read_json
from convoy.model import backend
from convoy.model.beam_search import Translation, search
from convoy.model.scores import scaled

BLOCK = 512  # examples predicted at a time; bounds memory
SENTENCES = 64  # translated at a time
SIGNS = 2**17  # of all texts that are predicted at a time, filled up to the longest; bounds memory


class Predictor:
    """What a model answers to examples as they are stored.

    Args:
        network: a trained network.
        takes: what it takes: the content of its input.json.
    """

    def __init__(self, network: keras.Model, takes: dict[str, Any]) -> None:
        self.network, self.takes = network, takes
        network.jit_compile = backend.compilation()  # a loaded model has none, which means XLA
        self.kind, self.classes = kinds.get(takes["kind"]), takes["classes"]
        self.vocabularies = {side: Vocabulary.from_json(takes[side]) for side in self.kind.arrays if side in takes}
        if not self.kind.has_classes:
            self._encoder, self._decoder = network.get_layer("encoder"), network.get_layer("decoder")
            for part in (self._encoder, self._decoder):
                part.compile(jit_compile=backend.compilation())

    @property
    def array(self) -> str:
        """The array of stored examples that the network reads."""
        return self.takes.get("array", self.kind.column)

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Loads what train wrote to data/train/<dataset>/<model>."""
        return cls(keras.saving.load_model(folder / "model.keras", compile=False), read_json(folder / "input.json"))

    def inputs(self, block: Arrays) -> list[np.ndarray]:
        """Returns the network's inputs for a block of stored examples."""
        if not self.kind.has_classes:
            source = self.vocabularies["source"].encode(block["source"], self.takes["length"])
            target = self.vocabularies["target"].encode(block["target"], self.takes["length"])
            return [pad(list(source)), pad([np.concatenate([[BEGIN], row]) for row in target])]
        if self.kind.is_text:
            tokens = self.vocabularies[self.array].encode(block[self.array], self.takes["length"])
            return [pad(list(tokens), self.network.input_shape[1])]
        return [block[self.array]]

    def probabilities(self, examples: Shards) -> np.ndarray:
        """Returns the probabilities of all examples, float32 of shape (examples, classes), in bounded memory."""
        found = np.empty((len(examples), len(self.classes)), np.float32)
        for rows in self._blocks(examples, BLOCK, self.array):
            [inputs] = self.inputs(examples[rows])
            if self.kind.is_text:
                found[rows] = self.network.predict_on_batch(inputs)
            else:
                found[rows] = self.network.predict(inputs, verbose=0)  # few at a time: pictures take memory
        return found

    def answers(self, examples: Shards) -> np.ndarray:
        """Returns the name of the class, or the translation, of each example; objects of shape (examples,)."""
        if not self.kind.has_classes:
            found = dict(self.translations(examples))
            return self.written(found[number] for number in range(len(examples)))
        return np.array(self.classes, object)[self.probabilities(examples).argmax(axis=1)]

    def reads(self, examples: Shards) -> bool:
        """Tells whether these are examples of the kind and size that the network takes."""
        if self.kind.is_text:
            return all(array in examples.names for array in self.kind.arrays)
        return self.array in examples.names and self.network.input_shape[1:] == examples.shape(self.array)

    def classified(self, block: Arrays) -> np.ndarray:
        """Returns the probabilities of few examples, float of shape (n, classes), at the temperature of what it takes.

        Args:
            block: the array of the kind alone, prepared as ingest does: image, volume or text.
        """
        [inputs] = self.inputs(block)
        n = len(inputs)
        # Few sizes of batches: some devices compile each. Most requests have one example.
        inputs = np.concatenate([inputs, np.repeat(inputs[:1], -n % (SENTENCES if n > 1 else 1), axis=0)])
        found = np.asarray(self.network.predict_on_batch(inputs))[:n]
        return scaled(found, self.takes.get("temperature", 1.0))

    def answer(self, block: Arrays) -> list[tuple[str, float]]:
        """Returns the class and its probability, or the translation and that of each of its tokens, of few examples.

        Args:
            block: as for ``classified``, or source.
        """
        if not self.kind.has_classes:
            known = self.vocabularies["target"]
            return [(known.decode(one.tokens), math.exp(one.score)) for one in self.translate(block["source"])]
        return [(self.classes[row.argmax()], float(row.max())) for row in self.classified(block)]

    def translations(self, examples: Shards) -> Iterator[tuple[int, Translation]]:
        """Yields the number of each example and its translation, shorter ones first."""
        for rows in self._blocks(examples, SENTENCES, "source"):
            block = examples.take("source", rows)
            yield from zip(rows.tolist(), self.translate(block), strict=True)

    def translate(self, texts: Iterable[str]) -> list[Translation]:
        """Translates some texts together."""
        sources = list(self.vocabularies["source"].encode(list(texts), self.takes["length"]))
        return search(self._encoder, self._decoder, sources, length=self.takes["length"])

    def written(self, translations: Iterable[Translation]) -> np.ndarray:
        """Returns translations as texts, objects of shape (translations,)."""
        return objects(self.vocabularies["target"].decode(one.tokens) for one in translations)

    def loss(self, pairs: Shards) -> float:
        """Returns the mean cross-entropy of the tokens, END included, that the targets of ``pairs`` have."""
        total = tokens = 0.0
        for rows in self._blocks(pairs, SENTENCES, "target"):
            source, before = self.inputs(pairs[rows])
            after = np.pad(before[:, 1:], ((0, 0), (0, 1)))
            after[np.arange(len(rows)), (before != PAD).sum(axis=1) - 1] = END
            logits = np.asarray(self.network.predict_on_batch([source, before]), np.float64)
            right = np.take_along_axis(logits, after[..., None], axis=-1)[..., 0]
            total += float(((logsumexp(logits, axis=-1) - right) * (after != PAD)).sum())
            tokens += float((after != PAD).sum())
        return total / tokens

    def _blocks(self, examples: Shards, size: int, column: str) -> Iterator[np.ndarray]:
        """Yields the numbers of examples, those of texts by length, so that little padding is computed."""
        order = np.arange(len(examples))
        if not self.kind.is_text:
            yield from (order[start : start + size] for start in range(0, len(order), size))
            return
        lengths = examples.text_bytes(column)  # signs and tokens are no more
        for rows in by_length(lengths, order, size, pool=len(order)):
            fit = max(1, SIGNS // max(1, min(lengths[rows[-1]], self.takes["length"])))
            yield from (rows[start : start + fit] for start in range(0, len(rows), fit))
