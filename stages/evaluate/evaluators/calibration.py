"""Whether 80 % certain is right in 80 of 100 cases. Labels are int (n,), probabilities float (n, classes).

Source: Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from convoy.model.scores import SMALLEST

BINS = 15  # of the paper
RANGE = (0.05, 20.0)  # of temperatures


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Returns one row per bin of equal width that has examples: confidence and accuracy (means), and examples."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": right, "examples": 1})
    return table.groupby("bin").agg({"confidence": "mean", "accuracy": "mean", "examples": "sum"}).reset_index()


def expected_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the expected calibration error (equation 3): 0 to 1, how far accuracy and confidence are apart."""
    table = reliability(labels, probabilities)
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["examples"]))


def temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the temperature at which ``labels`` are likeliest (section 4.2); above 1 the model was too certain.

    As if one more example had been taken for another class, its second likeliest: where all are right, the likeliest
    would be certainty itself. Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2,
    with a target of (n + 1) / (n + 2) instead of 1.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))  # up to a constant per example
    n, rows = len(labels), np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    second, rest = others.argmax(axis=1), 1 / (n + 2)

    def loss(logarithm: float) -> float:
        found = log_softmax(logits / np.exp(logarithm), axis=1)
        return -float(((1 - rest) * found[rows, labels] + rest * found[rows, second]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))
