"""What the parts of the page have in common: words, limits, and how values are counted and named."""

from collections.abc import Iterable, Mapping

import pandas as pd

from convoy.pages.page import shown

FEW = 20  # training examples of a class; below, it has no average either
NAMES = 5  # that stand for all of them in a sentence or a row
VALUES = 8  # different ones of a fact, up to which each has its own bar


def count_values(values: pd.Series) -> pd.Series:
    """Returns how often each value occurs, the most frequent first, equally frequent ones by value."""
    return values.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")


def name_some(names: Iterable[str]) -> str:
    """Returns the first ``NAMES`` names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - NAMES:,} more" if len(names) > NAMES else ""
    return ", ".join(shown(name, 40) for name in names[:NAMES]) + rest


def extremes(counts: Mapping[str, int], most: int) -> set[str]:
    """Returns all classes, or if there are more than ``most``, half of that of the largest and half of the smallest."""
    falling = sorted(counts, key=lambda label: -counts[label])
    return set(falling if len(falling) <= most else falling[: most // 2] + falling[-(most // 2) :])
