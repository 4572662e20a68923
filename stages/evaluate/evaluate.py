"""Scores one model on data it has not seen: -> data/evaluate/<dataset>/<model>."""

import json
import shutil
from pathlib import Path

import pandas as pd

from convoy.checksums import sha256
from convoy.data.shards import INDEX, Shards
from convoy.files import read_json
from convoy.model import backend, scores
from convoy.model.predictor import Predictor
from convoy.tracking import outbox
from stages.evaluate.report import pictures, report


def evaluate(model: str, *, dataset: str) -> None:
    """Reads data/train/<dataset>/<model> and the val and test splits; writes data/evaluate/<dataset>/<model>.

    ``metrics.json``, ``predictions.parquet`` (one row per test example), ``tables/`` and ``plots/`` (see the file of
    the kind), and ``report.html`` (all of it as a page). All of it also goes to the MLflow run of the training.

    ``metrics.json`` has for every kind of data: ``metric``, the name of the main one, say m; m, m_low, m_high (of the
    test, with its 95 % interval), val_m and val_loss (for the choice between models), baseline (m without a model),
    examples and parameters; and the other metrics of the kind. Of classes ece is the expected calibration error, and
    ece_scaled that at the ``temperature`` that was fitted on the validation split; shift_consistency is how often an
    answer stays when the example moves, and robust_accuracy the accuracy on corrupted examples, each on some of them.

    Args:
        model: an entry of train.
        dataset: its data set.
    """
    trained, source = Path("data/train", dataset, model), Path("data/ingest", dataset)
    target, title = Path("data/evaluate", dataset, model), f"{model} on {dataset}"
    facts = read_json(trained / "run.json")
    with outbox.reopened(facts) as run:
        backend.prepare()
        predictor = Predictor.load(trained)
        if predictor.kind == "translation":
            from stages.evaluate.evaluators.translation import assess
        else:
            from stages.evaluate.evaluators.classification import assess

        test, val = Shards(source / "test"), Shards(source / "val")
        shutil.rmtree(target, ignore_errors=True)
        for folder in ("tables", "plots"):
            (target / folder).mkdir(parents=True)
        metrics, table = assess(predictor, test, val, _manifest(source), target, title)
        metrics["parameters"] = facts["parameters"]
        (target / "metrics.json").write_text(json.dumps(metrics, indent=1))
        table.to_parquet(target / "predictions.parquet", index=False)
        pictures.draw_curves(pd.read_csv(trained / "history.csv"), title).savefig(target / "plots/curves.png")
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
