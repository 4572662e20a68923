"""On which parts of the test split a model is good: classes, sizes and sources."""

import numpy as np
import pandas as pd

from stages.evaluate.evaluators.changed import share

# Columns of the manifest whose product says how large an example was before it was resized; what a kind
# has. Depth is the number of frames or slices.
SIZES = {"voxels": ["depth", "height", "width"], "pixels": ["height", "width"], "characters": ["characters"]}
THIRDS = 3
COLUMNS = ["slice", "value", "examples", "accuracy", "low", "high"]


def parts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns which parts of the test split each example belongs to: one column for each way to divide it.

    ``class``, if there are any; ``pixels``, ``voxels`` or ``characters``, in thirds; ``source``, the uppermost folder
    or the table that an example came from. What is the same for all examples is left out, and so is a source that says
    no more than the class.

    Args:
        manifest: the rows of the test examples: path, what SIZES names of a kind and, if there are classes, label.
    """
    size, columns = next((name, columns) for name, columns in SIZES.items() if set(columns) <= set(manifest))
    found = {"class": manifest["label"]} if "label" in manifest else {}
    found[size] = thirds(manifest[columns].prod(axis=1))
    source = manifest["path"].str.extract(r"^([^/#]+)[/#]", expand=False).fillna("")  # "" is a file beside others
    known = found.get("class", pd.Series("", manifest.index))
    if len(pd.concat([source, known], axis=1).drop_duplicates()) > known.nunique():
        found["source"] = source
    return pd.DataFrame({name: values for name, values in found.items() if values.nunique() > 1}, manifest.index)


def slices(divided: pd.DataFrame, right: np.ndarray) -> pd.DataFrame:
    """Returns a table of the accuracy on each part; see COLUMNS.

    Args:
        divided: of ``parts``.
        right: whether each example was answered rightly, bool of shape (n,).
    """
    rows = [
        {"slice": name, "value": value, **share(right[chosen])}
        for name, values in divided.items()
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
