"""On which parts of the test split a classifier is good: classes, sizes and sources."""

import numpy as np
import pandas as pd

from stages.evaluate.changed import share

# Columns of the manifest whose product says how large an example was before it was brought to one size; what a kind
# has. Depth is the number of frames or slices.
SIZES = {"voxels": ["depth", "height", "width"], "pixels": ["height", "width"], "characters": ["characters"]}
THIRDS = 3
COLUMNS = ["slice", "value", "examples", "accuracy", "low", "high"]


def slices(manifest: pd.DataFrame, right: np.ndarray) -> pd.DataFrame:
    """Returns a table of the accuracy on each slice; see COLUMNS.

    Each kind of slice divides all test examples. ``class``; ``pixels``, ``voxels`` or ``characters``, in thirds;
    ``source``, the uppermost folder or the table that an example came from. What is the same for all examples is left
    out, and so is a source that says no more than the class.

    Args:
        manifest: the rows of the test examples.
        right: whether each was answered rightly, bool of shape (n,).
    """
    size, columns = next((name, columns) for name, columns in SIZES.items() if set(columns) <= set(manifest))
    parts = {"class": manifest["label"], size: thirds(manifest[columns].prod(axis=1))}
    source = manifest["path"].str.extract(r"^([^/#]+)[/#]", expand=False).fillna("")  # "" is a file beside others
    if len(pd.concat([source, manifest["label"]], axis=1).drop_duplicates()) > manifest["label"].nunique():
        parts["source"] = source
    rows = [
        {"slice": name, "value": value, **share(right[chosen])}
        for name, values in parts.items()
        if values.nunique() > 1
        for value, chosen in values.groupby(values, observed=True).indices.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def thirds(sizes: pd.Series) -> pd.Series:
    """Names the third that each size is in by its smallest and largest, as "64 to 1,024"; equal ones stay together."""
    rank = np.ceil(sizes.rank() * THIRDS / len(sizes))  # 1, 2 or 3
    edges = sizes.groupby(rank)
    low, high = edges.transform("min"), edges.transform("max")
    names = [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in zip(low, high, strict=True)]
    order = [name for _, name in sorted(set(zip(low, names, strict=True)))]
    return pd.Series(pd.Categorical(names, order), sizes.index)
