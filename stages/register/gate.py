"""Decides whether a challenger takes the champion's place."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Decision:
    """``promote``, and why, in a sentence for people."""

    promote: bool
    reason: str


def decide(
    labels: np.ndarray,
    challenger: np.ndarray,
    champion: np.ndarray | None,
    *,
    majority: float,
    min_gain: float,
    alone: str = "the first champion",
) -> Decision:
    """Compares two classifiers on the same test examples.

    Args:
        labels: the true classes, shape (n,).
        challenger: its predicted classes, shape (n,).
        champion: likewise, or None where there is no champion that can read these examples.
        majority: share of the largest class; the first champion has to beat it.
        min_gain: by how much the challenger's accuracy has to exceed the champion's; it has to be higher in any case.
        alone: why there is no ``champion`` to compare with.
    """
    new = float(np.mean(challenger == labels))
    if champion is None:
        text = f"accuracy {new:.2%} against {majority:.2%} by always answering the largest class"
        return Decision(new > majority, f"{alone}: {text}" if new > majority else f"no better than chance: {text}")
    old = float(np.mean(champion == labels))
    won = int(np.sum((challenger == labels) & (champion != labels)))
    lost = int(np.sum((challenger != labels) & (champion == labels)))
    text = (
        f"accuracy {new:.2%} against the champion's {old:.2%} on the same {len(labels)} test examples (+{won} -{lost})"
    )
    better = won > lost and won - lost >= min_gain * len(labels) - 1e-9  # 57 - 55 of 100 is a gain of 0.02
    return Decision(better, f"better: {text}" if better else f"not better by min_gain = {min_gain}: {text}")
