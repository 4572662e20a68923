"""The CNNs of the default pipeline beside logistic regression: ``python benchmarks/bag_of_words.py``, after make repro.

For docs and reviews scikit-learn's logistic regression sees how often each word occurs (a second one: also each pair of
neighbours); for clips every voxel. It learns from the same training split, without the changed copies, and its
strength of regularisation is chosen on the same validation split. Prints a table for RESULTS.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

sys.path.insert(0, str(Path(__file__).parent.parent))

import pandas as pd

from convoy.data.shards import Shards
from convoy.data.vocabulary import split

STRENGTHS = 10.0 ** np.arange(-3, 3)  # scikit-learn's C


def main() -> None:
    """Trains and compares; two minutes on 2 cores."""
    print("| data set | model | test accuracy | 95 % interval | only the CNN right | only the other right | p |")
    print("|---|---|---|---|---|---|---|")
    for dataset in ("docs", "reviews", "clips"):
        if not Path("data/evaluate", dataset).is_dir():
            sys.exit(f"no data/evaluate/{dataset}: run make repro in this checkout first")
        labels = {part: Shards(Path("data/ingest", dataset, part)).column("label") for part in ("train", "val", "test")}
        cnns = {}
        for file in sorted(Path("data/evaluate", dataset).glob("*/metrics.json")):
            cnns[file.parent.name] = pd.read_parquet(file.with_name("predictions.parquet"))["correct"].to_numpy()
        best = max(cnns, key=lambda name: json.loads(
            Path("data/evaluate", dataset, name, "metrics.json").read_text())["val_accuracy"])  # fmt: skip
        for name, right in cnns.items():
            row(dataset, name, right, None)
        for name, inputs in features(dataset).items():
            row(dataset, f"logistic regression, {name}", fitted(inputs, labels) == labels["test"], cnns[best])


def features(dataset: str) -> dict[str, dict[str, Any]]:
    """Returns what is counted -> split -> array or sparse matrix (examples, features)."""
    splits = {part: Shards(Path("data/ingest", dataset, part)) for part in ("train", "val", "test")}
    if dataset == "clips":
        return {
            "voxels": {
                part: data.column("volume").reshape(len(data), -1) / np.float32(255) for part, data in splits.items()
            }
        }
    found = {}
    for name, longest in (("words", 1), ("words and pairs", 2)):
        counter = CountVectorizer(analyzer=lambda text, n=longest: _runs(split(text, "words"), n))
        counter.fit(splits["train"].column("text"))
        found[name] = {part: counter.transform(data.column("text")) for part, data in splits.items()}
    return found


def _runs(words: list[str], longest: int) -> list[str]:
    return [" ".join(words[at : at + n]) for n in range(1, longest + 1) for at in range(len(words) - n + 1)]


def fitted(inputs: dict[str, Any], labels: dict[str, np.ndarray]) -> np.ndarray:
    """Returns what logistic regression takes the test examples for."""
    models = [
        LogisticRegression(C=strength, max_iter=5000).fit(inputs["train"], labels["train"]) for strength in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(inputs["val"], labels["val"]))
    return best.predict(inputs["test"])


def row(dataset: str, name: str, right: np.ndarray, cnn: np.ndarray | None) -> None:
    """Prints one line; beside a CNN with the exact two-sided p of McNemar 1947."""
    low, high = proportion_confint(right.sum(), len(right), method="wilson")
    compared = " |  |  | "
    if cnn is not None:
        won, lost = int((cnn & ~right).sum()), int((right & ~cnn).sum())
        compared = f" | {won} | {lost} | {mcnemar([[0, won], [lost, 0]], exact=True).pvalue:.2g} "
    print(f"| {dataset} | {name} | {right.mean():.2%} | {low:.1%} - {high:.1%}{compared}|")


if __name__ == "__main__":
    main()
