"""Whether 80 % certain is right in 80 of 100 cases. Labels are int (n,), probabilities float (n, classes).

Source: Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from stages.scores import SMALLEST

BINS = 15  # of the paper
RANGE = (0.05, 20.0)  # of temperatures
FEW = 5  # errors; with fewer nothing says that a model may be more certain: without any the best would be 0


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

    With fewer than FEW errors it is 1 or more.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))  # up to a constant per example
    rows = np.arange(len(labels))

    def loss(logarithm: float) -> float:
        return -float(log_softmax(logits / np.exp(logarithm), axis=1)[rows, labels].mean())

    found = float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))
    return found if (probabilities.argmax(axis=1) != labels).sum() >= FEW else max(1.0, found)
