"""Beam search against a decoder whose probabilities are known."""

import itertools

import numpy as np
import pytest

from convoy.data.vocabulary import BEGIN, END
from convoy.model.beam_search import search

WORDS = 7  # 4, 5 and 6 are words


class Encoder:
    def predict_on_batch(self, source):
        there = (source > 0).astype(np.float32)[..., None]
        return np.repeat(there, 2, axis=2), np.repeat(there, 2, axis=2), there


class Decoder:
    """A Markov chain: the logits of the next token follow from the last one and the step."""

    def __init__(self, seed):
        self.logits = np.random.default_rng(seed).normal(0, 2, (6, WORDS, WORDS)).astype(np.float32)
        self.inputs = [None] * 5 + [np.zeros((1, 1, 1))]
        self.calls = 0

    def predict_on_batch(self, inputs):
        tokens, place, _, _, there, past = inputs
        # The past counts the steps of each hypothesis: it has to follow where hypotheses go.
        assert (past[:, 0, 0] == place[:, 0]).all()
        self.calls += 1
        return (
            self.logits[place, tokens], np.repeat(np.asarray(there)[:, None, :, 0], 1, axis=1), past + 1,
        )  # fmt: skip

    def log_probability(self, tokens):
        chain, total = [BEGIN, *tokens, END], 0.0
        for step, (last, word) in enumerate(itertools.pairwise(chain)):
            row = self.logits[step, last].astype(float)
            total += row[word] - np.log(np.exp(row).sum())
        return total / (len(tokens) + 1)


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_beam_finds_the_best_of_all_translations(seed):
    decoder = Decoder(seed)
    [found] = search(Encoder(), decoder, [np.array([4, 5])], length=4, beam=200)
    every = [words for n in range(5) for words in itertools.product((4, 5, 6), repeat=n)]
    best = max(every, key=decoder.log_probability)
    assert tuple(found.tokens) == best
    assert found.score == pytest.approx(decoder.log_probability(best), rel=1e-5)


def test_a_beam_of_one_takes_the_likeliest_word_each_time():
    decoder = Decoder(3)
    [found] = search(Encoder(), decoder, [np.array([4])], length=5, beam=1)
    chain = [BEGIN]
    for step in range(5):
        row = decoder.logits[step, chain[-1]].copy()
        row[[0, 1, 2]] = -np.inf
        if row.argmax() == END:
            break
        chain.append(int(row.argmax()))
    assert found.tokens.tolist() == chain[1:]


def test_sentences_together_are_translated_as_alone():
    sources = [np.array([4, 5, 6]), np.array([4]), np.array([5, 5])]
    together = search(Encoder(), Decoder(1), sources, length=4, beam=3)
    for source, one in zip(sources, together, strict=True):
        [alone] = search(Encoder(), Decoder(1), [source], length=4, beam=3)
        assert one.tokens.tolist() == alone.tokens.tolist()
        assert one.attention.shape == (len(one.tokens) + 1, len(source))


def test_no_translation_is_longer_than_the_length():
    decoder = Decoder(0)
    decoder.logits[..., END] = -50  # it never wants to end
    [found] = search(Encoder(), decoder, [np.array([4])], length=5, beam=2)
    assert len(found.tokens) == 5
    assert decoder.calls == 6
