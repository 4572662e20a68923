"""Changes of texts that keep their label, each for a whole batch at once; a text is a list of its words.

Source of swapping, deleting and inserting: Wei and Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting
Performance on Text Classification Tasks", arXiv:1901.11196, section 2; without its synonyms, which would have to be
downloaded: what is inserted is any word of the training split, as often as it occurs there.
"""

from collections.abc import Sequence

import numpy as np

from convoy.data.vocabulary import MASK
from stages.augment.draws import Draws

ARRAY = "text"
OPTIONS = ("swap", "delete", "insert", "misspell", "mask", "span")
SIZED = False

Words = list[list[str]]


def change(
    texts: Sequence[str],
    rng: Draws,
    *,
    swap: float,
    delete: float,
    insert: float,
    misspell: float,
    mask: float,
    span: float,
    words: Sequence[str],
    frequency: np.ndarray,
) -> np.ndarray:
    """Returns changed copies of ``texts``, as an array of objects.

    Args:
        texts: of words between spaces.
        rng: source of the changes, one generator per text.
        swap: share of the words that change places, two by two.
        delete: share of the words that are left out; one stays.
        insert: words that are put in, as a share of those there are.
        misspell: share of the characters that are left out, doubled, exchanged with the next or replaced.
        mask: share of the words that are hidden, in spans.
        span: words of a span, on average.
        words: that may be put in.
        frequency: cumulative share of each of them, shape (words,), the last 1.
    """
    changed = np.empty(len(texts), object)
    for number, (text, generator) in enumerate(zip(texts, rng.generators, strict=True)):
        one = text.split()
        one = swapped(one, swap, generator)
        one = deleted(one, delete, generator)
        one = inserted(one, insert, words, frequency, generator)
        one = masked(one, mask, span, generator)
        one = [word if word == MASK else misspelt(word, misspell, generator) for word in one]
        changed[number] = " ".join(one)
    return changed


def swapped(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Exchanges pairs of words until about ``share`` of all have moved."""
    words = list(words)
    for _ in range(rng.binomial(len(words) // 2, share)):
        one, other = rng.integers(0, len(words), 2)
        words[one], words[other] = words[other], words[one]
    return words


def deleted(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Leaves each word out with probability ``share``; if none would stay, one does."""
    kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= share]
    return kept or [words[rng.integers(len(words))]]


def inserted(
    words: list[str], share: float, known: Sequence[str], frequency: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """Puts ``share`` as many words as there are, on average, at random places; each as likely as it is frequent."""
    words = list(words)
    for _ in range(rng.binomial(len(words), share) if len(known) else 0):
        word = known[int(np.searchsorted(frequency, rng.random(), side="right"))]
        words.insert(int(rng.integers(len(words) + 1)), word)
    return words


def masked(words: list[str], share: float, span: float, rng: np.random.Generator) -> list[str]:
    """Puts MASK in the place of spans of words, about ``share`` of all; a word of the text stays.

    Source: Joshi et al. 2020, "SpanBERT", arXiv:1907.10529, section 3.1: lengths are geometrically distributed.
    """
    words = list(words)
    hidden = rng.binomial(len(words), share)
    if hidden >= len(words):
        hidden = len(words) - 1
    while hidden > 0:
        length = min(int(rng.geometric(1 / span)), hidden)
        start = int(rng.integers(len(words) - length + 1))
        words[start : start + length] = [MASK] * length
        hidden -= length
    return words


def misspelt(word: str, share: float, rng: np.random.Generator) -> str:
    """Leaves out, doubles, exchanges with the next, or replaces by one of the word's own about ``share`` characters."""
    signs = list(word)
    for _ in range(rng.binomial(len(signs), share)):
        place = int(rng.integers(len(signs)))
        match rng.integers(4):
            case 0 if len(signs) > 1:
                del signs[place]
            case 1 if place + 1 < len(signs):
                signs[place], signs[place + 1] = signs[place + 1], signs[place]
            case 2:
                signs[place] = signs[rng.integers(len(signs))]
            case _:
                signs.insert(place, signs[place])
    return "".join(signs)
