"""Searches near duplicates among pictures.

A fingerprint is a grey thumbnail. A pair is a candidate if the low frequencies of one are close to the plane of what
small shifts and crops make of the other (``description.py``). Candidates are aligned and held against a limit
(``alignment.py``). The limit grows with the detail in both: a straight edge fits any other.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from convoy.kinds.fingerprints import SIDE
from convoy.machine.progress import track
from convoy.machine.room import cores
from convoy.machine.workers import map_ahead, threads
from stages.ingest.near.alignment import are_near
from stages.ingest.near.candidates import budget_of, check_budget, mask_of, sort_pairs
from stages.ingest.near.description import KEEP, PLANE, UNIT, describe

# "Copies" are those that benchmarks/duplicates.py plants among 1,069 photos and the same at 32x32.
# Largest misfit in pixels of a thumbnail, per unit of detail above MIN_DETAIL. From 1.01 to 1.12 the same 29 pairs are
# found among the photos as they are, 28 of them real copies; at 1.13 come two signs in different lettering. Of the
# planted copies 96 % have less.
MISFIT = 1.05
# A pair is a candidate if the squared sine between picture and plane is less than the product of both pictures'
# SLACK * curvature * detail ** 0.75: 97 % of the copies, 1 in 4,000 pairs of photos (10 classes), 1 in 400,000 pairs of
# pieces of photos, 1 in 3,600 of clothes, 1 in 25,000 of digits. The exponent is the one with the fewest for all.
SLACK = 4.6
MAX_SLACK = 0.6  # photos stay below it but for 1 %; without a limit all pictures of noise would be candidates
BLOCK = 512  # pictures compared with as many others at a time: 1 MiB, which stays in the cache
STRIP = 8 * BLOCK  # pictures compared with BLOCK others in one task
BATCH = 256  # candidates aligned at a time; as many as stay in the cache
PAIR = 8e-9  # seconds of a core for a pair
LONG = 60.0  # expected seconds from which they are announced


def find_pairs(fingerprints: np.ndarray, new: np.ndarray | None = None, title: str = "search") -> np.ndarray:
    """Returns the near pairs among pictures.

    Takes 2.3 KB of memory per picture, and 8 s of one core per 10**9 pairs - a minute for 120,000 pictures, or for
    8,000 new ones against 1,000,000 - and a second for every 10,000 candidates. A search that will take
    more than a minute says so beforehand.

    Args:
        fingerprints: uint8, shape (n, 1024), or as ``describe`` returns them; a memory map will do. Rows of zeros take
            no part.
        new: indices; only pairs with one of these are looked for. None: all pairs.
        title: of the progress display.

    Returns:
        int64, shape (m, 2): the first index less than the second, rows in order.

    Raises:
        InputRefusedError: so many pictures resemble each other that comparing them would take hours.
    """
    if fingerprints.shape[1] == SIDE**2:
        fingerprints = describe(fingerprints)
    # A memory map stays one: only the thumbnails of candidates are read.
    thumbs, axes, last = np.split(fingerprints, [SIDE**2, -8], axis=1)
    curvature, detail = np.ascontiguousarray(last).view(np.float32).T
    order = np.flatnonzero(detail)
    order = order[np.argsort(curvature[order], kind="stable")]
    basis = axes[order].view(np.int16).reshape(len(order), len(PLANE), KEEP**2 - 1)
    detail = detail[order]
    slack = np.minimum(SLACK * curvature[order] * detail**0.75, MAX_SLACK)
    fresh = mask_of(len(thumbs), new)[order]
    sizes = [(len(points), len(planes)) for points, planes in _compared(fresh)]
    strips, count = sum(math.ceil(a / STRIP) for a, _ in sizes), sum(a * b for a, b in sizes)
    if (expected := count * PAIR / cores()) > LONG:
        print(
            f"{title}: compares pictures with each other, {count:,} pairs: {math.ceil(expected / 60):,} min, and more "
            "if many resemble each other. near_duplicates: false leaves it out",
            flush=True,
        )
    with threadpool_limits(1), threads() as pool:  # numpy computes without the interpreter's lock
        found = map_ahead(pool, _candidates, _strips(basis, fresh), basis, slack)
        batches = _batches(track(found, f"{title}: near duplicates", "blocks of pairs", strips), len(thumbs))
        near = list(map_ahead(pool, _near_of, batches, thumbs, order, detail))
    return sort_pairs(near)


def _compared(new: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields which pictures are to be compared with which: numbers (a,) and (b,), b no more than BLOCK.

    The pictures are numbered by curvature, and of two the plane of the second counts, whichever is ``new``.
    """
    fresh, old = np.flatnonzero(new), np.flatnonzero(~new)
    for points, planes in ((fresh, np.arange(len(new))), (old, fresh)):
        for start in range(0, len(planes), BLOCK):
            columns = planes[start : start + BLOCK]
            yield points[: np.searchsorted(points, columns[-1])], columns


def _strips(basis: np.ndarray, new: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the same, STRIP of the first at a time, and the planes (5, 63, b) of the second."""
    for points, columns in _compared(new):
        axes = basis[columns].transpose(1, 2, 0).astype(np.float32)
        for row in range(0, len(points), STRIP):
            yield points[row : row + STRIP], columns, axes


def _candidates(strip: tuple[np.ndarray, np.ndarray, np.ndarray], basis: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """Returns the candidates of a strip, int64 (m, 2), numbers as in ``_strips``."""
    points, planes, axes = strip
    reached = np.empty((min(BLOCK, len(points)), len(planes)), np.float32)
    product, found = np.empty_like(reached), []
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        reached, product = reached[: len(block)], product[: len(block)]
        np.multiply.outer(slack[block], slack[planes] * np.float32(UNIT**4), out=reached)
        point = basis[block, 0].astype(np.float32)
        for axis in axes:
            np.matmul(point, axis, out=product)
            reached += np.square(product, out=product)
        # Squared cosine + slack > 1. Flat, as numpy finds places in two dimensions 17 times slower.
        row, column = np.divmod(np.flatnonzero(reached > UNIT**4), len(planes))
        pair = np.stack([block[row], planes[column]], 1)
        found.append(pair[pair[:, 0] < pair[:, 1]])
    return np.concatenate(found)


def _batches(candidates: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yields the candidates, (m, 2), ``BATCH`` at a time, unless they are too many for ``count`` pictures."""
    left = budget = budget_of(count)
    waiting = np.empty((0, 2), np.int64)
    for more in candidates:
        left -= len(more)
        check_budget(left, budget, count)
        waiting = np.concatenate([waiting, more])
        whole = len(waiting) - len(waiting) % BATCH
        yield from (waiting[start : start + BATCH] for start in range(0, whole, BATCH))
        waiting = waiting[whole:]
    if len(waiting):
        yield waiting


def _near_of(candidates: np.ndarray, thumbs: np.ndarray, order: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """Returns those of the candidates, (m, 2), that are near, as rows of ``thumbs``; ``order`` leads there."""
    limit = MISFIT * detail[candidates].min(1)
    first, second = order[candidates].T
    near = are_near(_pictures(thumbs, first), _pictures(thumbs, second), limit)
    return order[candidates[near]]


def _pictures(thumbs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return thumbs[rows].reshape(-1, SIDE, SIDE)
