"""Whether the answer stays when what is shown stands elsewhere: the feature-location invariance of a classifier.

Pictures, and the frames or slices of volumes, move by whole pixels; what comes into view continues the edge, as in
``augment``: black would draw a new edge into photos, and wrapping around would show the other side. Texts move by
filling, words or characters that no vocabulary has, before and after them. A further change of texts is the order of
their phrases.

Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486, section 4: the share of
examples that are taken for the same at two random shifts.
"""

import re

import numpy as np
import pandas as pd

from convoy.data.vocabulary import MASK
from stages.evaluate.evaluators.changed import Sample, share

MOST = 256  # examples; bounds time
PART = 8  # of the shorter side of a picture, that a shift may be: 32 of 256 pixels in the paper
STEPS = 8  # distances on the curve, at most
TOKENS = 8  # of filling around a text, at most
SEED = 0
# A shift by s pixels is one of s rows, of s columns, or of both.
DIRECTIONS = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column])
PHRASE = re.compile(r"(?<=[,;:.!?])\s+")


def shifts(sample: Sample) -> tuple[dict[str, float], pd.DataFrame]:
    """Returns metrics, and a table of accuracy over shift.

    The metrics are ``shift_consistency``, the share of equal answers at two random shifts, and of texts
    ``phrase_consistency``, that of equal answers with and without ``exchanged`` phrases. The table has the columns
    change (shift or phrases), distance (of the shift, in pixels or tokens), examples, accuracy, low, high, and
    consistency, the share that is answered as without the change.
    """
    rng, text, n = np.random.default_rng(SEED), sample.predictor.kind.is_text, len(sample.examples)
    farthest = TOKENS if text else -(-min(_plane(sample.examples)) // PART)
    rows = [_row(sample, "shift", 0, sample.predicted)]
    for distance in np.unique(np.linspace(1, farthest, min(farthest, STEPS)).round().astype(int)).tolist():
        if text:
            changed = filled(sample.examples, np.full(n, distance), distance)
        else:
            changed = moved(sample.examples, distance * rng.choice(DIRECTIONS, n))
        rows.append(_row(sample, "shift", distance, sample.answers(changed)))
    metrics = {"shift_consistency": consistency(sample, farthest, rng)}
    if text:
        rows.append(_row(sample, "phrases", np.nan, sample.answers(exchanged(sample.examples))))
        metrics["phrase_consistency"] = rows[-1]["consistency"]
    return metrics, pd.DataFrame(rows)


def consistency(sample: Sample, farthest: int, rng: np.random.Generator) -> float:
    """Returns the share of equal answers at two shifts of each example, drawn evenly up to ``farthest``.

    In pixels, to all sides; of texts in tokens: some before the text and the rest after it.
    """
    n = len(sample.examples)
    if sample.predictor.kind.is_text:
        pair = [filled(sample.examples, rng.integers(0, farthest + 1, n), farthest) for _ in range(2)]
    else:
        pair = [moved(sample.examples, rng.integers(-farthest, farthest + 1, (n, 2))) for _ in range(2)]
    first, second = map(sample.answers, pair)
    return float(np.mean(first == second))


def moved(pictures: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Moves each picture by its ``steps``; outside, the nearest edge pixel continues.

    Args:
        pictures: shape (n, height, width, channels), or (n, depth, height, width, channels), moved along the last two
            axes of space.
        steps: int, (n, 2): down and to the right, in pixels.
    """
    height, width = _plane(pictures)
    rows = np.clip(np.arange(height) - steps[:, :1], 0, height - 1)  # (n, height), of the picture
    columns = np.clip(np.arange(width) - steps[:, 1:], 0, width - 1)
    planes = np.moveaxis(pictures, (-3, -2), (1, 2))  # (n, height, width, ...)
    found = planes[np.arange(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return np.moveaxis(found, (1, 2), (-3, -2))


def filled(texts: np.ndarray, before: np.ndarray, total: int) -> np.ndarray:
    """Puts ``total`` unknown tokens around each text, ``before`` (n,) of them before it; the rest may be cut off."""
    moves = zip(texts, before.tolist(), strict=True)
    return np.array([MASK * first + text + MASK * (total - first) for text, first in moves], object)


def exchanged(texts: np.ndarray) -> np.ndarray:
    """Puts the first phrase of each text last; a text without punctuation inside is cut between its middle words."""

    def change(text: str) -> str:
        first, *others = PHRASE.split(text)
        if not others:
            words = text.split()
            first, others = " ".join(words[: len(words) // 2]), words[len(words) // 2 :]
        return " ".join([*others, first])

    return np.array([change(text) for text in texts], object)


def _plane(pictures: np.ndarray) -> tuple[int, int]:
    height, width = pictures.shape[-3:-1]
    return height, width


def _row(sample: Sample, change: str, distance: float, answers: np.ndarray) -> dict[str, object]:
    equal = float(np.mean(answers == sample.predicted))
    return {"change": change, "distance": distance, **share(answers == sample.labels), "consistency": equal}
