"""Searches near duplicates among texts.

A fingerprint holds the words and the pairs of neighbours; two are near if their Jaccard similarity is high. The search
is exact (prefix filter; Chaudhuri, Ganti, Kaushik 2006, "A Primitive Operator for Similarity Joins").
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from convoy.machine.progress import track
from stages.ingest.near.candidates import budget_of, check_budget, mask_of, sort_pairs

# A sentence of ten different words and one with another word in it share 18 of 24 words and neighbours; one of
# nine words 16 of 22, which is too few: "what is the capital of x" asks something else for each x.
JACCARD = 0.74
BLOCK = 512  # texts, or candidates, at a time


def find_pairs(fingerprints: np.ndarray, new: np.ndarray | None = None, title: str = "search") -> np.ndarray:
    """Returns the near pairs among texts; see ``pictures.find_pairs``, which does it for pictures.

    Args:
        fingerprints: uint8, shape (n, 512). Rows of zeros take no part.
        new: indices; only pairs with one of these are looked for. None: all pairs.
        title: of the progress display.
    """
    hashes = np.ascontiguousarray(fingerprints).view("<u4")
    found = []
    left = budget = budget_of(len(hashes))
    fresh = mask_of(len(hashes), new)
    shared = track(_sharing(hashes, fresh), f"{title}: near duplicates", "texts", int(fresh.sum()), BLOCK)
    for candidates in shared:
        left -= len(candidates)
        check_budget(left, budget, len(hashes))
        for start in range(0, len(candidates), BLOCK):
            part = candidates[start : start + BLOCK]
            found.append(part[_jaccard(hashes[part[:, 0]], hashes[part[:, 1]]) >= JACCARD])
    return sort_pairs(found)


def _sharing(hashes: np.ndarray, new: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the pairs (m, 2) with at least one ``new`` text that share a hash among the rarest of both.

    Of two sets with Jaccard similarity J, the common part is at least J times either. So they share one of the
    ``size - ceil(J size) + 1`` first of each, in any order of all hashes; with the rarest first, few others do.
    """
    row, column = np.nonzero(hashes)
    values, token, frequency = np.unique(hashes[row, column], return_inverse=True, return_counts=True)
    order = np.lexsort((token, frequency[token], row))
    row, token = row[order], token[order]
    size = np.bincount(row, minlength=len(hashes))
    place = np.arange(len(row)) - (np.cumsum(size) - size)[row]
    first = place < size[row] - np.ceil(JACCARD * size[row] - 1e-9) + 1
    first &= frequency[token] > 1
    row, token = row[first], token[first]
    holds = sparse.csr_array((np.ones(len(row), np.int32), (row, token)), shape=(len(hashes), len(values)))
    columns = holds.T.tocsr()
    fresh = np.flatnonzero(new)
    for start in range(0, len(fresh), BLOCK):
        rows = fresh[start : start + BLOCK]
        shared = (holds[rows] @ columns).tocoo()
        a, b = rows[shared.row], shared.col.astype(np.int64)
        once = (a < b) | (~new[b] & (a != b))
        yield np.stack([a[once], b[once]], 1)


def _jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the Jaccard similarity, (m,), of m pairs of sets of hashes, uint32 (m, HASHES), filled up with zeros.

    A full row is the smallest hashes of a larger set; hashes above its largest are then not compared.
    """
    full = [np.where((side > 0).all(1), side.max(1), 2**32 - 1) for side in (first, second)]
    horizon = np.minimum(*full)[:, None]
    both = np.sort(np.concatenate([np.where(side <= horizon, side, 0) for side in (first, second)], 1), axis=1)
    twice = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] > 0)).sum(1)
    return twice / np.maximum((both > 0).sum(1) - twice, 1)
