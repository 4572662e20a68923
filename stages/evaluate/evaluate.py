"""Scores one model on data it has not seen: -> data/evaluate/<dataset>/<model>."""

import shutil
from pathlib import Path

import pandas as pd

from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards
from convoy.files import read_json
from convoy.model import backend, scores
from convoy.model.predictor import Predictor
from convoy.tracking import outbox
from stages.evaluate.entry import Evaluate
from stages.evaluate.report import files, report


def evaluate(model: str, entry: Evaluate) -> None:
    """Reads data/train/<dataset>/<model> and the val and test splits; writes data/evaluate/<dataset>/<model>.

    ``metrics.json``, ``predictions.parquet`` (one row per test example), ``tables/`` and ``plots/`` (see
    ``evaluators/classification.py`` and ``translation.py``), and ``report.html`` (all of it as a page). All of it also
    goes to the MLflow run of the training.

    ``metrics.json`` has for every kind of data: ``metric``, the name of the main one, say m; m, m_low, m_high (of the
    test, with its 95 % interval), val_m and val_loss (for the choice between models), baseline (m without a model),
    examples and parameters; and the other metrics of the kind. Of classes ece is the expected calibration error, and
    ece_scaled that at the ``temperature`` that was fitted on the validation split; shift_consistency is how often an
    answer stays when the example moves, and robust_accuracy the accuracy on corrupted examples, each on some of them.

    Args:
        model: an entry of train.
        entry: what is read of it: its data set.
    """
    dataset = entry.dataset
    trained, source = Path("data/train", dataset, model), Path("data/ingest", dataset)
    target, title = Path("data/evaluate", dataset, model), f"{model} on {dataset}"
    facts = read_json(trained / "run.json")
    with outbox.reopened(facts) as run:
        backend.prepare()
        predictor = Predictor.load(trained)
        shutil.rmtree(target, ignore_errors=True)  # after a failure nothing old passes for a result
        test, val, manifest = Shards(source / "test"), Shards(source / "val"), _manifest(source)
        if predictor.kind.has_classes:
            from stages.evaluate.evaluators import classification

            results = classification.assess(predictor, test, val, manifest)
        else:
            from stages.evaluate.evaluators import translation  # imports sacreBLEU

            results = translation.assess(predictor, test, val, manifest, title)
        for note in results.notes:
            print(f"{target}: {note}")
        metrics = results.metrics
        metrics["parameters"] = facts["parameters"]
        results.plots["curves"] = (pd.read_csv(trained / "history.csv"),)
        files.write(results, target, title)
        report.write(target, trained, test)
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        run.metrics({f"{_prefix(key)}{key}": value for key, value in numbers.items()})
        run.data("test", dataset, test.folder, sha256(test.folder / INDEX))
        run.files(target)
    value, low, high = scores.with_interval(metrics)
    print(f"{target}: test {metrics['metric']} {value} (95 % interval {low} to {high})")


def _prefix(metric: str) -> str:
    """Returns what MLflow's name of a metric has before ours; ``val_loss`` alone is the curve of the training."""
    if metric in ("parameters", "baseline"):
        return ""
    return "final_" if metric.startswith("val_") else "test_"


def _manifest(source: Path) -> pd.DataFrame:
    """Returns path, sha256 and, if there are classes, label of the test examples, in the order of the shards."""
    manifest = pd.read_parquet(source / "manifest.parquet")
    columns = [column for column in ("path", "sha256", "label") if column in manifest]
    return manifest.loc[manifest["split"] == "test", columns].reset_index(drop=True)
