"""Scores one model on data it has not seen: -> data/evaluate/<dataset>/<model>."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from stages import compute, tracking
from stages.evaluate import classification, pictures
from stages.shards import Shards, read_json, read_sealed


def evaluate(model: str, *, dataset: str) -> None:
    """Reads data/train/<dataset>/<model> and the val and test splits; writes data/evaluate/<dataset>/<model>.

    ``metrics.json`` (``metric`` names the main one; the test's scores, and for the choice between models the
    validation's), ``predictions.parquet`` (one row per test example), ``classes.csv`` (precision, recall, F1),
    ``confusion.csv``, ``confusion.png`` and ``curves.png``. All of it also goes to the MLflow run of the training.

    Args:
        model: an entry of train.
        dataset: its data set.
    """
    trained, source = Path("data/train", dataset, model), Path("data/ingest", dataset)
    target = Path("data/evaluate", dataset, model)
    about = read_sealed(source / "about.json")
    facts = read_json(trained / "run.json")
    compute.prepare()
    network = keras.saving.load_model(trained / "model.keras", compile=False)
    test, val = Shards(source / "test"), Shards(source / "val")
    expected, probabilities = test.column("label"), compute.predict(network, test)
    scores = classification.scores(expected, probabilities)
    val_scores = classification.scores(val.column("label"), compute.predict(network, val))
    metrics = {
        "metric": "accuracy",
        **scores,
        "val_accuracy": val_scores["accuracy"],
        "val_log_loss": val_scores["log_loss"],
        "parameters": facts["parameters"],
    }

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "metrics.json").write_text(json.dumps(metrics, indent=1))
    classes = about["classes"]
    predictions(source, classes, probabilities).to_parquet(target / "predictions.parquet", index=False)
    classification.per_class(expected, probabilities, classes).to_csv(target / "classes.csv", index=False)
    confusion = classification.confusion(expected, probabilities, classes)
    confusion.to_csv(target / "confusion.csv")
    pictures.draw_confusion(confusion, f"{model} on {dataset}").savefig(target / "confusion.png")
    pictures.draw_curves(pd.read_csv(trained / "history.csv"), f"{model} on {dataset}").savefig(target / "curves.png")
    with tracking.reopened(facts):
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        tracking.log_metrics({f"test_{key}" if key in scores else key: value for key, value in numbers.items()})
        tracking.log_files(target)
    low, high = scores["accuracy_low"], scores["accuracy_high"]
    print(f"{target}: test accuracy {scores['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})")


def predictions(source: Path, classes: list[str], probabilities: np.ndarray) -> pd.DataFrame:
    """Returns one row per test example, in the order of the shards: raw file, label, prediction, probabilities."""
    manifest = pd.read_parquet(source / "manifest.parquet", columns=["path", "sha256", "label", "split"])
    table = manifest[manifest["split"] == "test"].drop(columns="split").reset_index(drop=True)
    table["predicted"] = np.asarray(classes)[probabilities.argmax(axis=1)]
    table["correct"] = table["label"] == table["predicted"]
    table["probability"] = probabilities.max(axis=1)
    table["probabilities"] = list(probabilities)
    return table
