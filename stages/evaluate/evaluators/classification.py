"""Evaluates a classifier. Labels are int of shape (n,), probabilities float of shape (n, classes)."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support, roc_auc_score

from convoy.data.shards import Shards
from convoy.errors import ConfigurationError
from convoy.model.predictor import Predictor
from convoy.model.scores import PART, scaled
from stages.evaluate.evaluators import calibration, explain, intervals, invariance, receptive, robustness
from stages.evaluate.evaluators.changed import Sample, share
from stages.evaluate.evaluators.slices import parts, slices
from stages.evaluate.results import Results

ERRORS = 100  # of the most certain ones that are listed


def assess(predictor: Predictor, test: Shards, val: Shards, manifest: pd.DataFrame) -> Results:
    """Returns the scores of a classifier, with what it gets wrong and why.

    Tables: classes (precision, recall, F1), confusion, errors (wrong answers, the most certain first),
    receptive_fields (what a unit of each layer sees), calibration, slices (accuracy per class, size and source),
    shifts and corruptions (accuracy on changed examples). Plots: confusion, calibration, shifts, corruptions, of
    pictures receptive_fields. And those of ``explain``.

    Args:
        predictor: the model.
        test: test examples.
        val: validation examples.
        manifest: path, sha256 and label of the test examples, in their order.
    """
    classes, expected, probabilities = predictor.classes, test.column("label"), predictor.probabilities(test)
    metrics, cooled = measure(expected, probabilities, val.column("label"), predictor.probabilities(val))
    answers = manifest.assign(predicted=np.asarray(classes)[probabilities.argmax(axis=1)])
    answers["correct"] = answers["label"] == answers["predicted"]
    answers["probability"] = probabilities.max(axis=1)
    if predictor.kind.is_text:
        answers[predictor.array] = test.column(predictor.array)
    found = explain.explain(predictor, test, answers)
    wrong = answers[~answers["correct"]].sort_values("probability", ascending=False, kind="stable")
    found.tables["errors"] = wrong.drop(columns=["sha256", "correct"]).head(ERRORS)
    answers["probabilities"] = list(probabilities)
    found.tables["classes"] = per_class(expected, probabilities, classes)
    counts = found.tables["confusion"] = confusion(expected, probabilities, classes)
    found.plots["confusion"] = (counts,)
    curves = {
        name: calibration.reliability(expected, given)
        for name, given in (
            ("as it is", probabilities),
            (f"at temperature {metrics['temperature']:.2f}", cooled),
        )
    }
    found.tables["calibration"] = pd.concat(curves, names=["probabilities"]).reset_index(level=0)
    found.plots["calibration"] = (curves,)
    _add_fields(found, predictor, test)
    divided = parts(test.table())
    found.tables["slices"] = slices(divided, answers["correct"].to_numpy())
    found.predictions = answers.join(divided.add_prefix(PART))
    found.metrics = metrics | _add_changed(found, predictor, test)
    return found


def measure(
    expected: np.ndarray, probabilities: np.ndarray, val_expected: np.ndarray, val_probabilities: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the metrics of the test examples, and their probabilities at the temperature of the validation split."""
    val = scores(val_expected, val_probabilities)
    temperature = calibration.temperature(val_expected, val_probabilities)
    cooled = scaled(probabilities, temperature)
    metrics = {
        "metric": "accuracy",
        **scores(expected, probabilities),
        **limits(expected, probabilities),
        "val_accuracy": val["accuracy"],
        "val_loss": val["log_loss"],
        "ece": calibration.expected_error(expected, probabilities),
        "temperature": temperature,
        "ece_scaled": calibration.expected_error(expected, cooled),
    }
    return metrics, cooled


def _add_changed(found: Results, predictor: Predictor, test: Shards) -> dict[str, float]:
    """Adds how the answers stand changes of the examples; returns the metrics of that."""
    answers = found.predictions
    stay, shifts = invariance.shifts(Sample.of(predictor, test, answers, invariance.MOST))
    robust, corruptions = robustness.corruptions(Sample.of(predictor, test, answers, robustness.MOST))
    for name, table in (("shifts", shifts), ("corruptions", corruptions)):
        found.tables[name], found.plots[name] = table, (table,)
    return stay | robust


def _add_fields(found: Results, predictor: Predictor, test: Shards) -> None:
    """Adds what a unit of each layer sees; of a layer of the user's own a note, as scores do not need it."""
    try:
        fields = receptive.receptive_fields(predictor.network)
    except ConfigurationError as error:
        found.notes.append(f"no receptive fields: {error}")
        return
    found.tables["receptive_fields"] = receptive.table(fields)
    if predictor.kind.axes == 2:
        [picture] = test.take(predictor.array, np.array([0]))
        found.plots["receptive_fields"] = (picture, receptive.central(fields))


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | int]:
    """Returns the scores of a classifier.

    accuracy with its 95 % interval (Wilson 1927); macro_f1; auc, the area under the ROC curve - of two classes the
    second's, of more the mean of each against the rest (absent where a class has no example); log_loss; baseline, the
    largest class's share; examples, their number.
    """
    predicted = probabilities.argmax(axis=1)
    found = share(predicted == labels)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)  # float32 sums to 1 within 1e-6, scikit-learn wants 1e-8
    two = probabilities.shape[1] == 2
    complete = len(np.unique(labels)) == probabilities.shape[1]
    return {
        "accuracy": found["accuracy"],
        "accuracy_low": found["low"],
        "accuracy_high": found["high"],
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        **({"auc": float(roc_auc_score(labels, exact[:, 1] if two else exact, multi_class="ovr"))} if complete else {}),
        "log_loss": float(log_loss(labels, exact, labels=range(probabilities.shape[1]))),
        "baseline": int(np.bincount(labels).max()) / len(labels),
        "examples": len(labels),
    }


def limits(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns the 95 % intervals of ``macro_f1`` and ``auc``, as macro_f1_low and so on; see ``intervals``."""
    classes = range(probabilities.shape[1])
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes)
    found = {"macro_f1": intervals.macro_f1(counts)}
    if len(np.unique(labels)) == len(classes):
        found["auc"] = intervals.auc(labels, probabilities)
    return {f"{name}_{end}": ends[place] for name, ends in found.items() for place, end in enumerate(("low", "high"))}


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
