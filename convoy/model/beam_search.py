"""Beam search: the likeliest translations, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from convoy.data.vocabulary import BEGIN, END, PAD, UNKNOWN, pad

BEAM = 5  # hypotheses kept per sentence (Gehring et al. 2017, section 4.2)
NEVER = (PAD, UNKNOWN, BEGIN)  # are no words of a translation


@dataclass(frozen=True)
class Translation:
    """One translation.

    Attributes:
        tokens: int32, without BEGIN and END.
        score: log probability per token, END included.
        attention: float32, (tokens + 1, source tokens): where each, and END, looked; each row sums to 1.
    """

    tokens: np.ndarray
    score: float
    attention: np.ndarray


def search(
    encoder: keras.Model, decoder: keras.Model, sources: Sequence[np.ndarray], *, length: int, beam: int = BEAM
) -> list[Translation]:
    """Translates sentences together; those of similar length cost least.

    A hypothesis ends where END is among the ``beam`` likeliest continuations of its sentence; when as many have ended,
    the one with the highest log probability per token is chosen: the sum alone would prefer short ones (length
    normalisation; Gehring et al. 2017, section 4.2).

    Args:
        encoder: source (batch, time) -> keys, values, which tokens are there.
        decoder: one token (batch, 1), its place (batch, 1), what the encoder gave and the past of each layer -> logits
            (batch, 1, words), attention (batch, 1, time), the new past of each layer.
        sources: tokens of each sentence.
        length: longest translation, in tokens.
        beam: hypotheses kept per sentence.
    """
    n, source = len(sources), pad(sources)
    seen = [ops.repeat(ops.convert_to_tensor(part), beam, axis=0) for part in encoder.predict_on_batch(source)]
    rows = n * beam
    past = [np.zeros((rows, *layer.shape[1:]), np.float32) for layer in decoder.inputs[5:]]
    tokens = np.full((rows, 1), BEGIN, np.int32)
    scores = np.full((n, beam), -np.inf)
    scores[:, 0] = 0  # all hypotheses begin alike
    looked = np.zeros((rows, 0, source.shape[1]), np.float32)
    best: list[Translation | None] = [None] * n
    ended = np.zeros(n, int)
    for step in range(length + 1):
        place = np.full((rows, 1), step, np.int32)
        logits, weights, *past = decoder.predict_on_batch([tokens[:, -1:], place, *seen, *past])
        looked = np.concatenate([looked, weights], axis=1)
        values, words = _likeliest(logits[:, 0], beam, end_only=step == length)
        total = (scores.reshape(-1, 1) + values).reshape(n, -1)
        order = np.argsort(-total, axis=1, kind="stable")
        word = np.take_along_axis(words.reshape(n, -1), order, axis=1)
        total = np.take_along_axis(total, order, axis=1)
        parent = np.arange(n)[:, None] * beam + order // words.shape[1]
        for sentence, rank in np.argwhere((word[:, :beam] == END) & np.isfinite(total[:, :beam])):
            if ended[sentence] < beam:
                ended[sentence] += 1
                score, row = float(total[sentence, rank]) / (step + 1), parent[sentence, rank]
                if best[sentence] is None or score > best[sentence].score:
                    attention = looked[row, :, : len(sources[sentence])]
                    best[sentence] = Translation(tokens[row, 1:], score, attention)
        if (ended >= beam).all() or step == length:
            return best
        going = np.argsort(word == END, axis=1, kind="stable")[:, :beam]  # the likeliest that do not end
        scores = np.take_along_axis(total, going, axis=1)
        parent = np.take_along_axis(parent, going, axis=1).reshape(-1)
        tokens = np.concatenate([tokens[parent], np.take_along_axis(word, going, axis=1).reshape(-1, 1)], axis=1)
        looked, past = looked[parent], [layer[parent] for layer in past]
    return best


def _likeliest(logits: np.ndarray, beam: int, *, end_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns log probabilities (float64) and numbers (int32) of the likeliest next tokens, shape (rows, n) each."""
    likely = ops.log_softmax(ops.convert_to_tensor(logits), axis=-1)
    if end_only:
        values = ops.convert_to_numpy(likely[:, END : END + 1]).astype(np.float64)
        return values, np.full(values.shape, END, np.int32)
    # Enough for ``beam`` that go on beside END and those that never are a word.
    count = min(beam + 1 + len(NEVER), likely.shape[-1])
    values, words = (ops.convert_to_numpy(part) for part in ops.top_k(likely, count))
    return np.where(np.isin(words, NEVER), -np.inf, values.astype(np.float64)), words.astype(np.int32)
