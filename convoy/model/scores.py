"""The main metric of each kind of data, and what each example contributes to a comparison of two models."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

PART = "part."  # of predictions.parquet: begins the name of a column that says which part an example belongs to
SMALLEST = 1e-12  # a probability of float32 may be 0


def main(metric: str, expected: np.ndarray, answers: np.ndarray) -> float:
    """Returns the main metric of a kind for ``answers``: accuracy, a share; or BLEU of a whole test split, of 100.

    Source of BLEU: Papineni et al. 2002, as computed by Post 2018, arXiv:1804.08771 (sacreBLEU).
    """
    if metric == "accuracy":
        return float(np.mean(expected == answers))
    return bleu().corpus_score(answers.tolist(), [expected.tolist()]).score


def bleu() -> "BLEU":
    """Returns sacreBLEU with its defaults, except where no text has four words: the default would give 0."""
    from sacrebleu.metrics import BLEU  # only where something is translated

    return BLEU(effective_order=True)


def of_examples(metric: str, expected: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns the score of each answer: 1 for the right class and 0 for others; chrF of 100 for a translation.

    Source of chrF: Popovic 2015, with sacreBLEU's defaults; of single sentences BLEU says little.
    """
    if metric == "accuracy":
        return (expected == answers).astype(np.float64)
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    return np.array([chrf.sentence_score(one, [other]).score for one, other in zip(answers, expected, strict=True)])


def shown(metric: str, value: float, digits: int = 2) -> str:
    """Returns a value of a main metric for people: 98.76%, or 34.21."""
    return f"{value:.{digits}%}" if metric == "accuracy" else f"{value:.{digits}f}"


def with_interval(metrics: Mapping[str, Any], digits: int = 2) -> tuple[str, str, str]:
    """Returns the main metric of a metrics.json and both ends of its interval, for people."""
    name = metrics["metric"]
    value, low, high = (shown(name, metrics[key], digits) for key in (name, f"{name}_low", f"{name}_high"))
    return value, low, high


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns probabilities (n, classes) at another temperature; the most certain class stays.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2.
    """
    return softmax(np.log(np.maximum(probabilities.astype(np.float64), SMALLEST)) / temperature, axis=1)
