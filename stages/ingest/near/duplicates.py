"""Finds near duplicates: one photo cropped, shifted, re-compressed or brightened; one sentence but for a word.

Whether two examples are near depends on these two alone. So new examples are compared with all, pairs of old ones stay
as they are, and the result is that of comparing everything again. No library does that: they compare hashes of whole
pictures, which a crop changes. ``pictures.py`` and ``texts.py`` search, here is what follows from the pairs.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from stages.ingest.near.description import DESCRIBED


def take_part(fingerprints: np.ndarray) -> np.ndarray:
    """Returns which examples take part in the search: bool, shape (n,).

    Args:
        fingerprints: uint8, of pictures as ``describe`` returns them, (n, DESCRIBED), or of texts, (n, 512).
    """
    if fingerprints.shape[1] == DESCRIBED:
        return np.ascontiguousarray(fingerprints[:, -4:]).view(np.float32)[:, 0] > 0  # their detail
    return fingerprints.any(axis=1)


def group(count: int, near: np.ndarray) -> np.ndarray:
    """Returns for each of ``count`` examples the smallest index that near pairs, (m, 2), lead to: int64, (count,)."""
    graph = sparse.coo_array((np.ones(len(near), np.int8), (near[:, 0], near[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    _, smallest, member = np.unique(component, return_index=True, return_inverse=True)
    return smallest[member].astype(np.int64)
