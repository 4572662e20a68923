"""Decides whether a challenger takes the champion's place."""

from dataclasses import dataclass

import numpy as np

from stages.scores import shown


@dataclass(frozen=True)
class Decision:
    """``promote``, and why, in a sentence for people."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Answers:
    """How one model did on the test split.

    Attributes:
        value: of the main metric.
        scores: of each example, shape (n,); see ``scores.of_examples``.
    """

    value: float
    scores: np.ndarray


def decide(
    challenger: Answers,
    champion: Answers | None,
    *,
    metric: str,
    baseline: float,
    min_gain: float,
    alone: str = "the first champion",
) -> Decision:
    """Compares two models on the same test examples.

    Args:
        challenger: the new one.
        champion: the present one, or None where there is none that can read these examples.
        metric: name of the main metric.
        baseline: its value without a model, e.g. the share of the largest class; the first champion has to beat it.
        min_gain: by how much the challenger has to exceed the champion; it has to be better in any case.
        alone: why there is no ``champion`` to compare with.
    """
    new = shown(metric, challenger.value)
    if champion is None:
        text = f"{metric} {new} against {shown(metric, baseline)} without a model"
        beats = challenger.value > baseline
        return Decision(beats, f"{alone}: {text}" if beats else f"no better than chance: {text}")
    won, lost = (int(np.sum(sign * (challenger.scores - champion.scores) > 0)) for sign in (1, -1))
    text = (
        f"{metric} {new} against the champion's {shown(metric, champion.value)} on the same "
        f"{len(challenger.scores)} test examples (+{won} -{lost})"
    )
    gain = challenger.value - champion.value
    better = gain > 1e-9 and gain >= min_gain - 1e-9  # 0.57 - 0.55 is a gain of 0.02
    return Decision(better, f"better: {text}" if better else f"not better by min_gain = {min_gain}: {text}")
