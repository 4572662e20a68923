"""Limits and orders the pairs that a search for near duplicates has to compare closely."""

from collections.abc import Iterable

import numpy as np

from convoy.errors import InputRefusedError

MAX_CANDIDATES = 200  # per example, ...
FEW_CANDIDATES = 5_000_000  # ... but so many always: about five minutes on 2 cores


def budget_of(count: int) -> int:
    """Returns how many candidates a search among ``count`` examples may have."""
    return max(FEW_CANDIDATES, MAX_CANDIDATES * count)


def check_budget(left: int, budget: int, count: int) -> None:
    """Refuses a search with too many candidates; how many there are depends on the set of examples alone."""
    if left < 0:
        raise InputRefusedError(
            f"more than {budget:,} pairs among {count:,} examples resemble each other, too many to compare closely: "
            "are they frames of a film, or one scene again and again? Switch the search for near duplicates off, and "
            "give the splits with the data."
        )


def mask_of(count: int, new: np.ndarray | None) -> np.ndarray:
    """Returns which of ``count`` examples are ``new``, given their indices (None: all): bool, shape (count,)."""
    mask = np.full(count, new is None)
    if new is not None:
        mask[new] = True
    return mask


def sort_pairs(found: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the pairs of some blocks, (m, 2): the first index less than the second, rows in order."""
    result = np.sort(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=1)
    return result[np.lexsort((result[:, 1], result[:, 0]))]
