"""Scores of a classifier. Labels are int of shape (n,), probabilities float of shape (n, classes)."""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | int]:
    """Returns accuracy with its 95 % interval (Wilson 1927), macro F1, log loss, the majority's share, the number."""
    predicted, n = probabilities.argmax(axis=1), len(labels)
    right = int((predicted == labels).sum())
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)  # float32 sums to 1 within 1e-6, scikit-learn wants 1e-8
    low, high = proportion_confint(right, n, alpha=0.05, method="wilson")
    return {
        "accuracy": right / n,
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "log_loss": float(log_loss(labels, exact, labels=range(probabilities.shape[1]))),
        "majority": int(np.bincount(labels).max()) / n,
        "examples": n,
    }


def per_class(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Returns precision, recall, F1 and the number of test examples of each class; a class without any scores 0."""
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(len(classes)), zero_division=0
    )
    return pd.DataFrame({"class": classes, "precision": precision, "recall": recall, "f1": f1, "examples": support})


def confusion(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Returns how often each class (row) was taken for each class (column)."""
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(len(classes)))
    return pd.DataFrame(counts, pd.Index(classes, name="actual"), classes)
