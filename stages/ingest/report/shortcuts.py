"""How much a fact alone - format, size, length - tells about the class: what a model could learn by mistake."""

import math

import numpy as np
import pandas as pd

from stages.ingest.report.values import VALUES

GAIN = 0.1  # of the accuracy, above always answering the most common class


def find_shortcuts(manifest: pd.DataFrame, facts: list[str]) -> list[dict]:
    """Returns how often a fact alone - format, size, length - tells the class of a test example, best first.

    Each value (of numbers each tenth) answers with its most common class in train. Beyond always answering the most
    common class, that is what a model can learn from how the data was made and not from what it shows.
    """
    if "label" not in manifest or not {"train", "test"} <= set(manifest["split"]):
        return []
    columns = {name: _tenths(manifest[name]) for name in facts if manifest[name].nunique() > 1}
    if {"height", "width"} <= set(columns):
        columns["size"] = manifest["width"] * 10**6 + manifest["height"]
    train, test = (manifest["split"] == split for split in ("train", "test"))
    labels = manifest["label"]
    common = labels[train].value_counts().sort_index().idxmax()
    base, count = float((labels[test] == common).mean()), int(test.sum())
    margin = max(GAIN, 4 * math.sqrt(base * (1 - base) / count))
    result = []
    for name, values in columns.items():
        votes = pd.DataFrame({"value": values[train], "label": labels[train]}).value_counts(sort=False).reset_index()
        votes = votes.sort_values("count", ascending=False, kind="stable").drop_duplicates("value")
        answers = values[test].map(votes.set_index("value")["label"]).fillna(common)
        score = float((answers == labels[test]).mean())
        result.append({"name": name, "score": score, "base": base, "common": common, "high": score > base + margin})
    return sorted(result, key=lambda hint: -hint["score"])


def _tenths(values: pd.Series) -> pd.Series:
    """Returns texts and the few values of a number as they are, of many the tenth that each is in."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= VALUES:
        return values
    edges = np.quantile(values, np.linspace(0.1, 0.9, 9))
    return pd.Series(np.searchsorted(edges, values), index=values.index)
