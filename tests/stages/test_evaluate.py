import json

import numpy as np
import pandas as pd
import pytest
from conftest import run_of
from PIL import Image
from scipy.special import softmax

from convoy.data.shards import Shards
from convoy.machine import room
from convoy.tracking import store
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.evaluate.entry import Evaluate
from stages.evaluate.evaluate import evaluate
from stages.evaluate.evaluators import classification, intervals
from stages.evaluate.report import pictures
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.train.entry import Train
from stages.train.train import train

LABELS = np.array([0] * 8 + [1] * 2)
PREDICTED = np.array([0] * 7 + [1] + [1, 0])
PROBABILITIES = np.where(np.eye(3)[PREDICTED] > 0, 0.8, 0.1)


def test_accuracy_has_the_wilson_interval_of_the_textbook():
    scores = classification.scores(np.zeros(10, int), np.eye(2)[[0] * 8 + [1] * 2])
    assert scores["accuracy"] == 0.8
    # Newcombe 1998, Statistics in Medicine 17:857, formula 3 with z = 1.96, by hand for 8 of 10
    assert (round(scores["accuracy_low"], 4), round(scores["accuracy_high"], 4)) == (0.4902, 0.9433)


def test_scores_are_those_by_hand():
    scores = classification.scores(LABELS, PROBABILITIES)
    assert scores["accuracy"] == 0.8
    assert scores["baseline"] == 0.8
    assert scores["macro_f1"] == pytest.approx((7 / 8 + 1 / 2) / 2)  # F1 = 2 tp / (2 tp + fp + fn)
    assert scores["log_loss"] == pytest.approx(-(8 * np.log(0.8) + 2 * np.log(0.1)) / 10)


def simulated(rng, n, classes=2):
    """Returns labels and probabilities of a binormal or similar classifier that is right more often than not."""
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    return labels, softmax(rng.normal(size=(n, classes)) + np.eye(classes)[labels], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_intervals_have_the_truth_in_95_of_100_samples(classes):
    rng = np.random.default_rng(classes)
    whole = classification.scores(*simulated(rng, 100_000, classes))
    found = [classification.limits(*simulated(rng, 150, classes)) for _ in range(500)]
    for name in ("macro_f1", "auc"):
        within = np.mean([one[f"{name}_low"] <= whole[name] <= one[f"{name}_high"] for one in found])
        assert 0.92 < within < 0.98, name  # three standard errors of 500 are 2.9 points


@pytest.mark.slow
def test_intervals_are_those_of_resampling_with_scikit_learn():
    rng = np.random.default_rng(5)
    labels, probabilities = simulated(rng, 120, 3)
    drawn = [rng.integers(120, size=120) for _ in range(1000)]
    resampled = [classification.scores(labels[rows], probabilities[rows]) for rows in drawn]
    found = classification.limits(labels, probabilities)
    for name in ("macro_f1", "auc"):
        low, high = np.quantile([one[name] for one in resampled], [0.025, 0.975])
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=0.015)


def test_of_a_thousand_classes_the_interval_of_f1_takes_little_memory():
    rng, before = np.random.default_rng(0), room.peak()
    labels = rng.integers(1000, size=3000)
    counts = np.zeros((1000, 1000), int)
    np.add.at(counts, (labels, np.where(rng.random(3000) < 0.8, labels, rng.integers(1000, size=3000))), 1)
    low, high = intervals.macro_f1(counts)
    assert 0.7 < low < high < 0.9
    assert room.peak() - before < 500 * 2**20  # a table of them for each resample has 8 GB


def test_a_class_without_examples_has_an_f1_of_its_wrong_answers_and_no_auc():
    found = classification.limits(LABELS, PROBABILITIES)
    assert found["macro_f1_low"] < (7 / 8 + 1 / 2) / 2 < found["macro_f1_high"]
    assert "auc_low" not in found


def test_per_class_counts_a_class_without_examples_as_zero():
    table = classification.per_class(LABELS, PROBABILITIES, ["a", "b", "c"]).set_index("class")
    assert table.loc["a"].tolist() == [7 / 8, 7 / 8, 7 / 8, 8]
    assert table.loc["b"].tolist() == [0.5, 0.5, 0.5, 2]
    assert table.loc["c"].tolist() == [0, 0, 0, 0]


def test_confusion_has_actual_rows_and_predicted_columns():
    table = classification.confusion(LABELS, PROBABILITIES, ["a", "b", "c"])
    assert table.loc["a", "b"] == 1
    assert table.to_numpy().tolist() == [[7, 1, 0], [1, 1, 0], [0, 0, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 40])
def test_the_confusion_picture_opens(tmp_path, classes):
    names = [f"class {number}" for number in range(classes)]
    table = pd.DataFrame(np.eye(classes, dtype=int) * 9, pd.Index(names, name="actual"), names)
    pictures.draw_confusion(table, "m on d").savefig(tmp_path / "c.png")
    assert min(Image.open(tmp_path / "c.png").size) >= 400


@pytest.fixture
def evaluated(pictures):
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    augment("bars", Augment(copies=1, seed=0))
    train("small", Train(dataset="bars", architecture="plain_cnn", sizes={"width": 0.1}, epochs=8, learning_rate=0.01))
    evaluate("small", Evaluate(dataset="bars"))
    return pictures.parents[1]


@pytest.mark.slow
def test_writes_scores_of_the_test_split_with_one_row_per_example(evaluated):
    folder = evaluated / "evaluate/bars/small"
    metrics = json.loads((folder / "metrics.json").read_text())
    table = pd.read_parquet(folder / "predictions.parquet")
    test = Shards(evaluated / "ingest/bars/test")
    manifest = pd.read_parquet(evaluated / "ingest/bars/manifest.parquet")
    assert metrics["metric"] == "accuracy"
    assert metrics["accuracy"] == table["correct"].mean()
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["examples"] == len(table) == len(test) == (manifest["split"] == "test").sum()
    assert set(table["path"]) == set(manifest.loc[manifest["split"] == "test", "path"])
    assert (table["path"].str.split("/").str[0] == table["label"]).all()
    assert (np.stack(table["probabilities"]).max(axis=1) == table["probability"]).all()
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "measured.js", "metrics.json", "plots/activations.png", "plots/calibration.png", "plots/confusion.png",
        "plots/corruptions.png", "plots/curves.png", "plots/filters.png", "plots/gradcam.png",
        "plots/receptive_fields.png", "plots/shifts.png", "predictions.parquet", "report.html",
        "tables/calibration.csv", "tables/classes.csv", "tables/confusion.csv", "tables/corruptions.csv",
        "tables/errors.csv", "tables/receptive_fields.csv", "tables/shifts.csv", "tables/slices.csv",
    ]  # fmt: skip


@pytest.mark.slow
def test_scores_and_pictures_reach_the_run_of_the_training(evaluated):
    facts = json.loads((evaluated / "train/bars/small/run.json").read_text())
    metrics = json.loads((evaluated / "evaluate/bars/small/metrics.json").read_text())
    client = store.connect()
    run = client.get_run(run_of(facts))
    assert run.data.metrics["test_accuracy"] == metrics["accuracy"]
    assert run.data.metrics["final_val_accuracy"] == metrics["val_accuracy"]
    for folder, file in (("evaluate/plots", "confusion.png"), ("evaluate", "report.html")):
        assert f"{folder}/{file}" in [one.path for one in client.list_artifacts(run_of(facts), folder)]


@pytest.mark.slow
def test_a_model_trained_elsewhere_gets_one_run_here(evaluated):
    file = evaluated / "train/bars/small/run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"record_id": "0" * 32}))
    for _ in range(2):
        evaluate("small", Evaluate(dataset="bars"))
    client = store.connect()
    runs = client.search_runs([client.get_experiment_by_name("bars").experiment_id])
    assert sorted(run.data.tags["record"] == "0" * 32 for run in runs) == [False, True]
