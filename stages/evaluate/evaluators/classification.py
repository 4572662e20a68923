"""Evaluates a classifier. Labels are int of shape (n,), probabilities float of shape (n, classes)."""

from pathlib import Path
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
from stages.evaluate.report import pictures

ERRORS = 100  # of the most certain ones that are listed


def assess(
    predictor: Predictor, test: Shards, val: Shards, manifest: pd.DataFrame, target: Path, title: str
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns the metrics and one row per test example; writes tables and pictures to ``target``.

    ``tables/``: classes.csv (precision, recall, F1), confusion.csv, errors.csv (wrong answers, the most certain first),
    receptive_fields.csv (what a unit of each layer sees), calibration.csv, slices.csv (accuracy per class, size and
    source), shifts.csv and corruptions.csv (accuracy on changed examples); ``plots/`` confusion.png, calibration.png,
    shifts.png, corruptions.png, of pictures receptive_fields.png; and what
    ``explain.write`` finds.

    Args:
        predictor: the model.
        test: test examples.
        val: validation examples.
        manifest: path, sha256 and label of the test examples, in their order.
        target: folder with the folders tables and plots.
        title: of pictures.
    """
    classes = predictor.classes
    expected, probabilities = test.column("label"), predictor.probabilities(test)
    found = scores(expected, probabilities) | limits(expected, probabilities)
    val_labels, val_probabilities = val.column("label"), predictor.probabilities(val)
    val_found = scores(val_labels, val_probabilities)
    temperature = calibration.temperature(val_labels, val_probabilities)
    cooled = scaled(probabilities, temperature)
    metrics = {
        "metric": "accuracy",
        **found,
        "val_accuracy": val_found["accuracy"],
        "val_loss": val_found["log_loss"],
        "ece": calibration.expected_error(expected, probabilities),
        "temperature": temperature,
        "ece_scaled": calibration.expected_error(expected, cooled),
    }
    table = manifest.assign(predicted=np.asarray(classes)[probabilities.argmax(axis=1)])
    table["correct"] = table["label"] == table["predicted"]
    table["probability"] = probabilities.max(axis=1)
    if predictor.kind == "text":
        table["text"] = test.column("text")
    wrong = table[~table["correct"]].sort_values("probability", ascending=False, kind="stable")
    wrong.drop(columns=["sha256", "correct"]).head(ERRORS).to_csv(target / "tables/errors.csv", index=False)
    explain.write(predictor, test, table, target, title)
    table["probabilities"] = list(probabilities)
    per_class(expected, probabilities, classes).to_csv(target / "tables/classes.csv", index=False)
    counts = confusion(expected, probabilities, classes)
    counts.to_csv(target / "tables/confusion.csv")
    pictures.draw_confusion(counts, title).savefig(target / "plots/confusion.png")
    curves = {
        name: calibration.reliability(expected, given)
        for name, given in (("as it is", probabilities), (f"at temperature {temperature:.2f}", cooled))
    }
    pd.concat(curves, names=["probabilities"]).reset_index(level=0).to_csv(
        target / "tables/calibration.csv", index=False
    )
    pictures.draw_calibration(curves, title).savefig(target / "plots/calibration.png")
    _draw_fields(predictor, test, target, title)
    divided = parts(test.table())
    slices(divided, table["correct"].to_numpy()).to_csv(target / "tables/slices.csv", index=False)
    table = table.join(divided.add_prefix(PART))
    metrics |= _assess_changed(predictor, test, table, target, title)
    return metrics, table


def _assess_changed(
    predictor: Predictor, test: Shards, answers: pd.DataFrame, target: Path, title: str
) -> dict[str, float]:
    stay, shifts = invariance.shifts(Sample.of(predictor, test, answers, invariance.MOST))
    shifts.to_csv(target / "tables/shifts.csv", index=False)
    pictures.draw_shifts(shifts, title).savefig(target / "plots/shifts.png")
    robust, corruptions = robustness.corruptions(Sample.of(predictor, test, answers, robustness.MOST))
    corruptions.to_csv(target / "tables/corruptions.csv", index=False)
    pictures.draw_corruptions(corruptions, title).savefig(target / "plots/corruptions.png")
    return stay | robust


def _draw_fields(predictor: Predictor, test: Shards, target: Path, title: str) -> None:
    try:
        fields = receptive.receptive_fields(predictor.network)
    except ConfigurationError as error:  # of a layer of the user's own: no reason to go without scores
        print(f"{target}: no receptive fields: {error}")
        return
    receptive.table(fields).to_csv(target / "tables/receptive_fields.csv", index=False)
    if predictor.kind == "images":
        drawn = receptive.central(fields)
        figure = pictures.draw_receptive_fields(test.take(predictor.takes["array"], np.array([0]))[0], drawn, title)
        figure.savefig(target / "plots/receptive_fields.png")


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
