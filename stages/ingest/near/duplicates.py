"""Finds near duplicates: one photo cropped, shifted, re-compressed or brightened; one sentence but for a word.

Whether two examples are near depends on these two alone. So new examples are compared with all, pairs of old ones stay
as they are, and the result is that of comparing everything anew.

Pictures. A fingerprint is a grey thumbnail. A pair is a candidate if the low frequencies of one are close to the plane
of what small shifts and crops make of the other (tangent distance; Simard, LeCun, Denker 1993, "Efficient Pattern
Recognition Using a New Transformation Distance"). Candidates are aligned - shift and scale per axis, gain and offset -
by Gauss-Newton steps (Lucas and Kanade 1981). They are near if the difference that is left is no larger than a shift by
a fraction of a pixel would make. How large a fraction depends on the detail in both: a straight edge fits any other, so
what counts is the smaller eigenvalue of the structure tensor (Shi and Tomasi 1994, "Good Features to Track").

Text. A fingerprint holds the words and the pairs of neighbours; two are near if their Jaccard similarity is high. The
search is exact (prefix filter; Chaudhuri, Ganti, Kaushik 2006, "A Primitive Operator for Similarity Joins").
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from convoy.errors import InputRefusedError
from convoy.kinds.fingerprints import SIDE
from convoy.machine.progress import track
from convoy.machine.room import cores
from convoy.machine.workers import map_ahead, threads

# Pictures. "Copies" are those that benchmarks/duplicates.py plants among 1,069 photos and the same at 32x32.
MIN_CONTRAST = 2.0  # standard deviation of a thumbnail, in grey levels; below it the rounding to 8 bits shows
# Detail that does not count. Photos have 0.5 in the median and all have more than this; digits and clothes at 28x28
# have 0.31, those that are but a bar have less than this: 0.3 % of MNIST, 2.6 % of Fashion-MNIST.
MIN_DETAIL = 0.15
# Largest misfit in pixels of a thumbnail, per unit of detail above MIN_DETAIL. From 1.01 to 1.12 the same 29 pairs are
# found among the photos as they are, 28 of them real copies; at 1.13 come two signs in different lettering. Of the
# planted copies 96 % have less.
MISFIT = 1.05
# The same at half size, as a multiple of MISFIT: 99 % of the copies pass, and of the candidates 6 % of the digits and
# 38 % of the clothes.
COARSE = 2.5
# A pair is a candidate if the squared sine between picture and plane is less than the product of both pictures'
# SLACK * curvature * detail ** 0.75: 97 % of the copies, 1 in 4,000 pairs of photos (10 classes), 1 in 400,000 pairs of
# pieces of photos, 1 in 3,600 of clothes, 1 in 25,000 of digits. The exponent is the one with the fewest for all.
SLACK = 4.6
MAX_SLACK = 0.6  # photos stay below it but for 1 %; without a limit all pictures of noise would be candidates
LEAST, MOST = (-0.25, -0.25, -0.35, -0.35), (0.25, 0.25, 0.5, 0.5)  # shift and growth per axis, in half sides
MAX_GAIN = 3.0  # of contrast
KEEP = 8  # frequencies per axis that a description keeps; more of them told no more pairs apart
UNIT = 4000  # length of its integer vectors: sums of their products stay below 2**24, so float32 adds them exactly
BLOCK = 512  # pictures compared with as many others at a time: 1 MiB, which stays in the cache
STRIP = 8 * BLOCK  # pictures compared with BLOCK others in one task
BATCH = 256  # candidates aligned at a time; as many as stay in the cache
PAIR = 8e-9  # seconds of a core for a pair
LONG = 60.0  # expected seconds from which they are announced

# Text. A sentence of ten different words and one with another word in it share 18 of 24 words and neighbours; one of
# nine words 16 of 22, which is too few: "what is the capital of x" asks something else for each x.
JACCARD = 0.74

# Both.
MAX_CANDIDATES = 200  # per example, ...
FEW_CANDIDATES = 5_000_000  # ... but so many always: about five minutes on 2 cores


def pairs(fingerprints: np.ndarray, new: np.ndarray | None = None, title: str = "search") -> np.ndarray:
    """Returns the near pairs among pictures.

    Takes 2.3 KB of memory per picture, and 8 s of one core per 10**9 pairs - a minute for 120,000 pictures, or for
    8,000 new ones against 1,000,000 - and a second for every 10,000 candidates. How long the pairs will take is said
    beforehand where that is more than a minute.

    Args:
        fingerprints: uint8, shape (n, 1024), or as ``described`` returns them; a memory map will do. Rows of zeros take
            no part.
        new: indices; only pairs with one of these are looked for. None: all pairs.
        title: of the progress display.

    Returns:
        int64, shape (m, 2): the first index less than the second, rows in order.

    Raises:
        InputRefusedError: so many pictures resemble each other that comparing them would take hours.
    """
    if fingerprints.shape[1] == SIDE**2:
        fingerprints = described(fingerprints)
    # A memory map stays one: only the thumbnails of candidates are read.
    thumbs, axes, last = np.split(fingerprints, [SIDE**2, -8], axis=1)
    curvature, detail = np.ascontiguousarray(last).view(np.float32).T
    order = np.flatnonzero(detail)
    order = order[np.argsort(curvature[order], kind="stable")]
    basis = axes[order].view(np.int16).reshape(len(order), len(PLANE), KEEP**2 - 1)
    detail = detail[order]
    slack = np.minimum(SLACK * curvature[order] * detail**0.75, MAX_SLACK)
    fresh = _mask(len(thumbs), new)[order]
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
    return _in_order(near)


def described(fingerprints: np.ndarray) -> np.ndarray:
    """Returns fingerprints, uint8 (n, 1024), and what ``pairs`` computes of each: uint8 (n, DESCRIBED).

    Stored in this form they are compared with new ones without computing it again.
    """
    thumbs = fingerprints.reshape(-1, SIDE, SIDE)
    with threadpool_limits(1), threads() as pool:
        blocks = (thumbs[start : start + BLOCK] for start in range(0, len(thumbs), BLOCK))
        parts = list(map_ahead(pool, _describe, blocks)) or [_describe(thumbs)]
    rows = [fingerprints]
    for part in zip(*parts, strict=True):
        column = np.ascontiguousarray(np.concatenate(part))
        rows.append(column.reshape(len(thumbs), math.prod(column.shape[1:])).view(np.uint8))
    return np.concatenate(rows, axis=1)


def text_pairs(fingerprints: np.ndarray, new: np.ndarray | None = None, title: str = "search") -> np.ndarray:
    """Returns the near pairs among texts; see ``pairs``, which does it for pictures.

    Args:
        fingerprints: uint8, shape (n, 512). Rows of zeros take no part.
        new: indices; only pairs with one of these are looked for. None: all pairs.
        title: of the progress display.
    """
    hashes = np.ascontiguousarray(fingerprints).view("<u4")
    found = []
    left = budget = max(FEW_CANDIDATES, MAX_CANDIDATES * len(hashes))
    fresh = _mask(len(hashes), new)
    shared = track(_sharing(hashes, fresh), f"{title}: near duplicates", "texts", int(fresh.sum()), BLOCK)
    for candidates in shared:
        left -= len(candidates)
        _check_budget(left, budget, len(hashes))
        for start in range(0, len(candidates), BLOCK):
            part = candidates[start : start + BLOCK]
            found.append(part[_jaccard(hashes[part[:, 0]], hashes[part[:, 1]]) >= JACCARD])
    return _in_order(found)


def comparable(fingerprints: np.ndarray) -> np.ndarray:
    """Returns which examples take part in the search: bool, shape (n,).

    Args:
        fingerprints: uint8, of pictures as ``described`` returns them, (n, DESCRIBED), or of texts, (n, 512).
    """
    if fingerprints.shape[1] == DESCRIBED:
        return np.ascontiguousarray(fingerprints[:, -4:]).view(np.float32)[:, 0] > 0  # their detail
    return fingerprints.any(axis=1)


def groups(count: int, near: np.ndarray) -> np.ndarray:
    """Returns for each of ``count`` examples the smallest index that near pairs, (m, 2), lead to: int64, (count,)."""
    graph = sparse.coo_array((np.ones(len(near), np.int8), (near[:, 0], near[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1]
    _, smallest, member = np.unique(component, return_index=True, return_inverse=True)
    return smallest[member].astype(np.int64)


def _check_budget(left: int, budget: int, count: int) -> None:
    """Refuses a search with too many candidates; how many there are depends on the set of examples alone."""
    if left < 0:
        raise InputRefusedError(
            f"more than {budget:,} pairs among {count:,} examples resemble each other, too many to compare closely: "
            "are they frames of a film, or one scene again and again? Switch the search for near duplicates off, and "
            "give the splits with the data."
        )


def _mask(count: int, new: np.ndarray | None) -> np.ndarray:
    mask = np.full(count, new is None)
    if new is not None:
        mask[new] = True
    return mask


def _in_order(found: Iterable[np.ndarray]) -> np.ndarray:
    result = np.sort(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=1)
    return result[np.lexsort((result[:, 1], result[:, 0]))]


# Pictures: constants of one axis ------------------------------------------------------------------------------------


def _blur(side: int, sigma: float) -> np.ndarray:
    """Gaussian blur of ``side`` values as a matrix; the outermost value goes on beyond the border."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((side, side))
    for row in range(side):
        np.add.at(matrix[row], np.clip(row + offsets, 0, side - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def _offsets(side: int) -> np.ndarray:
    """Returns the places of ``side`` pixels, from their middle."""
    return np.arange(side, dtype=np.float32) - (side - 1) / 2


def _interpolation(places: np.ndarray, side: int) -> np.ndarray:
    """Linear interpolation of ``side`` values at places (..., k) as matrices (..., k, side)."""
    places = np.clip(places, 0, side - 1)
    return np.maximum(0, 1 - np.abs(places[..., None] - np.arange(side, dtype=np.float32)))


def _description_bank() -> np.ndarray:
    """Returns the one-dimensional filters of a description, seven of ``KEEP`` rows: float32, shape (56, SIDE).

    Each is: blur, a change, a window that makes the border count less, the lowest frequencies of the cosine transform.
    The changes: none; its derivatives by shift and by scale; two scales and two shifts at the end of what is looked
    for.
    """
    offset = _offsets(SIDE)
    cosines = np.cos(np.pi * np.outer(np.arange(KEEP), np.arange(SIDE) + 0.5) / SIDE) * (2 / SIDE) ** 0.5
    cosines[0] *= 0.5**0.5
    windowed = cosines * np.cos(np.pi * offset / SIDE)
    blur = _blur(SIDE, 2.0)
    slope = np.gradient(np.eye(SIDE), axis=0)
    changes = [np.eye(SIDE), slope, offset[:, None] / (SIDE / 2) * slope]
    for scale, shift in ((0.8, 0), (1.25, 0), (1, 0.05 * SIDE), (1, -0.05 * SIDE)):
        changes.append(_interpolation((SIDE - 1) / 2 + shift + scale * offset, SIDE))
    return np.concatenate([windowed @ change @ blur for change in changes]).astype(np.float32)


BANK = _description_bank()
# Filters by (row, column): the picture, and its derivatives by horizontal and vertical shift and scale ...
PLANE = ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0))
# ... and the changes at the end of the range: scale in one direction, shift in one, both in both.
RANGE = ((0, 3), (0, 4), (3, 0), (4, 0), (0, 5), (0, 6), (5, 0), (6, 0), (3, 3), (4, 4), (5, 5), (6, 5))
DESCRIBED = SIDE**2 + 2 * len(PLANE) * (KEEP**2 - 1) + 8  # bytes of a fingerprint as ``described`` returns it
# Weight of the frequencies: the square root of the frequency, since low ones are strong in every picture.
WEIGHT = (np.add.outer(np.arange(KEEP) ** 2, np.arange(KEEP) ** 2) ** 0.25).ravel()[1:].astype(np.float32)
FLAT = np.outer(BANK[:KEEP].sum(1), BANK[:KEEP].sum(1)).ravel()[1:] * WEIGHT  # what a change of brightness adds
FLAT /= np.linalg.norm(FLAT)
HALF, FULL = SIDE // 2, SIDE
BLUR = {HALF: _blur(HALF, 0.7), FULL: _blur(FULL, 1.0)}  # hides what compression and resampling do to single pixels
DETAIL_BLUR, TENSOR_BLUR = _blur(SIDE, 0.5), _blur(SIDE - 1, 1.5)


# Pictures: search -----------------------------------------------------------------------------------------------------


def _detail(thumbs: np.ndarray) -> np.ndarray:
    """Returns how much of the gradient of pictures (n, SIDE, SIDE) is corners and texture, up to 0.8; 0 at the least.

    The mean square root of the smaller eigenvalue of the structure tensor, relative to that of half its trace. Straight
    edges have none of it, at whatever contrast.
    """
    values = DETAIL_BLUR @ thumbs.astype(np.float32) @ DETAIL_BLUR.T
    across, down = np.diff(values, axis=2)[:, :-1], np.diff(values, axis=1)[:, :, :-1]
    xx, yy, xy = (TENSOR_BLUR @ product @ TENSOR_BLUR.T for product in (across * across, down * down, across * down))
    mean = (xx + yy) / 2
    smaller = np.maximum(mean - np.sqrt(((xx - yy) / 2) ** 2 + xy**2), 0)
    detail = np.sqrt(smaller).mean((1, 2)) / np.sqrt(np.maximum(mean.mean((1, 2)), 1e-6))
    return np.where(values.std((1, 2)) < MIN_CONTRAST, 0, np.maximum(detail - MIN_DETAIL, 0))


def _describe(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Describes pictures (n, SIDE, SIDE) for the search.

    Returns:
        basis: int16, shape (n, 5, 63), orthogonal vectors of length UNIT: the picture, and with it the plane of its
            small shifts and scales.
        curvature: float32, shape (n,), how far the largest shifts and scales lie outside that plane, as the sine.
        detail: float32, shape (n,), see ``_detail``.
    """
    values = thumbs.astype(np.float32)
    values -= values.mean((1, 2), keepdims=True)
    filtered = BANK @ values @ BANK.T  # (n, 56, 56)

    def coefficients(row: int, column: int) -> np.ndarray:
        block = filtered[:, row * KEEP : (row + 1) * KEEP, column * KEEP : (column + 1) * KEEP]
        vector = block.reshape(len(block), KEEP**2)[:, 1:] * WEIGHT
        return vector - FLAT * (vector * FLAT).sum(1, keepdims=True)

    basis: list[np.ndarray] = []
    for place in PLANE:
        vector = coefficients(*place)
        for other in basis * 2:  # Gram-Schmidt, twice: once is not orthogonal enough in float32
            vector = vector - other * (other * vector).sum(1, keepdims=True)
        basis.append(vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-6))
    outside = np.zeros(len(values), np.float32)
    for place in RANGE:
        vector = coefficients(*place)
        inside = sum((other * vector).sum(1) ** 2 for other in basis)
        outside += 1 - inside / np.maximum((vector * vector).sum(1), 1e-6)
    curvature = np.sqrt(np.maximum(outside / len(RANGE), 1e-5))
    return np.rint(np.stack(basis, 1) * UNIT).astype(np.int16), curvature, _detail(thumbs)


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
    left = budget = max(FEW_CANDIDATES, MAX_CANDIDATES * count)
    waiting = np.empty((0, 2), np.int64)
    for more in candidates:
        left -= len(more)
        _check_budget(left, budget, count)
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
    near = _near(_pictures(thumbs, first), _pictures(thumbs, second), limit)
    return order[candidates[near]]


def _pictures(thumbs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return thumbs[rows].reshape(-1, SIDE, SIDE)


# Pictures: comparison -------------------------------------------------------------------------------------------------


def _near(first: np.ndarray, second: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Returns, bool (m,), which of m pairs of pictures, uint8 (m, SIDE, SIDE), fit with a misfit below (m,) limits."""
    # In the order of their bytes: the same numbers whichever of the two is called the first.
    swap = np.array([a.tobytes() > b.tobytes() for a, b in zip(first, second, strict=True)], bool)[:, None, None]
    both = np.stack([np.where(swap, second, first), np.where(swap, first, second)]).astype(np.float32)
    small = (both[..., ::2, ::2] + both[..., 1::2, ::2] + both[..., ::2, 1::2] + both[..., 1::2, 1::2]) / 4
    # The picture that shows more of the scene can be cut to fit the other, not the other way; so try both ways.
    start = np.zeros((2 * len(first), 4), np.float32)
    warp, misfit = _align(np.concatenate(small), np.concatenate(small[::-1]), start)
    way, pair = misfit.reshape(2, -1).argmin(0), np.arange(len(first))
    warp, misfit = _align(small[way, pair], small[1 - way, pair], warp.reshape(2, -1, 4)[way, pair])
    keep = misfit < COARSE * limit
    way, pair = way[keep], pair[keep]
    _, misfit = _align(both[way, pair], both[1 - way, pair], warp[keep])
    result = np.zeros(len(first), bool)
    result[pair] = misfit < limit[pair]
    return result


def _align(moving: np.ndarray, fixed: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves and scales pictures to fit others better, by one Gauss-Newton step.

    Args:
        moving: float32, shape (m, side, side), grey levels.
        fixed: likewise.
        warp: float32, shape (m, 4), where to start: shift right and down, growth across and down, in half sides.

    Returns:
        The new warp, and the misfit, shape (m,): the square root of (squared difference / squared gradient), in pixels
        of a thumbnail of SIDE, over what both show.
    """
    side = fixed.shape[1]
    fixed = BLUR[side] @ fixed @ BLUR[side].T
    guess, shown = _guess(moving, fixed, warp)
    level = guess[:, 1:-1, 1:-1]
    free = shown * _free(level)
    right, below = (slope * free * (side / 2) for slope in _slopes(guess))
    x = _offsets(side)[1:-1] / (side / 2)
    columns = [right, below, right * x, below * x[:, None], level / 64 * free, free]
    jacobian = np.stack(columns, 1).reshape(len(fixed), 6, (side - 2) ** 2)
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    normal[:, range(6), range(6)] += 1e-3 + 1e-4 * np.trace(normal, axis1=1, axis2=2)[:, None] / 6
    error = _difference(guess, fixed, shown).reshape(len(fixed), (side - 2) ** 2, 1)
    change = np.linalg.solve(normal, jacobian @ error)[:, :4, 0]
    change = np.clip(change, -0.1, 0.1) * (1 + warp[:, [2, 3, 2, 3]])  # not farther than the slopes tell
    warp = np.clip(warp + change, np.float32(LEAST), np.float32(MOST))

    guess, shown = _guess(moving, fixed, warp)
    slopes = [sum(slope**2 for slope in _slopes(picture)) * shown for picture in (fixed, np.clip(guess, 0, 255))]
    gradient = np.minimum(*(slope.sum((1, 2)) for slope in slopes))  # the less, so that none fits by becoming flat
    error = (_difference(guess, fixed, shown) ** 2).sum((1, 2))
    return warp, np.sqrt(error / np.maximum(gradient, 1e-3)) * (SIDE / side)


def _guess(moving: np.ndarray, fixed: np.ndarray, warp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``moving`` warped, blurred and with the gain and bias that fit ``fixed`` best, and what of it is shown.

    The former is not limited to 0..255; the latter is float32 (m, side - 2, side - 2), 1 or 0, without the border.
    """
    side = fixed.shape[1]
    places = (side - 1) / 2 + side / 2 * warp[:, :2, None] + _offsets(side) * (1 + warp[:, 2:, None])  # (m, 2, side)
    across, down = (BLUR[side] @ _interpolation(places[:, axis], side) for axis in (0, 1))
    moved = down @ moving @ across.transpose(0, 2, 1)
    inside = ((places > -0.5) & (places < side - 0.5))[:, :, 1:-1]
    shown = (inside[:, 1, :, None] & inside[:, 0, None]).astype(np.float32)
    level, target = moved[:, 1:-1, 1:-1], fixed[:, 1:-1, 1:-1]
    gain, bias = _tone(level, target, shown)
    gain, bias = _tone(level, target, shown * _free(level * gain + bias))
    return moved * gain + bias, shown


def _difference(guess: np.ndarray, fixed: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Returns, (m, side - 2, side - 2), what is left where both pictures show something."""
    return (fixed - np.clip(guess, 0, 255))[:, 1:-1, 1:-1] * shown


def _tone(values: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns gain and bias, (m, 1, 1), with which values (m, k, k) fit the target best in the mean square."""
    total = np.maximum(weight.sum((1, 2), keepdims=True), 1)
    mean, goal = ((array * weight).sum((1, 2), keepdims=True) / total for array in (values, target))
    centred = (values - mean) * weight
    gain = (centred * (target - goal)).sum((1, 2), keepdims=True)
    gain = np.clip(gain / np.maximum((centred**2).sum((1, 2), keepdims=True), 1e-3), 1 / MAX_GAIN, MAX_GAIN)
    return gain, goal - gain * mean


def _free(guess: np.ndarray) -> np.ndarray:
    """Returns, bool, which grey levels are not cut off at black or white."""
    return (guess > 0) & (guess < 255)


def _slopes(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the slopes to the right and down, (m, k - 2, k - 2), of pictures (m, k, k) without their border."""
    right = (pictures[:, 1:-1, 2:] - pictures[:, 1:-1, :-2]) / 2
    return right, (pictures[:, 2:, 1:-1] - pictures[:, :-2, 1:-1]) / 2


# Text -----------------------------------------------------------------------------------------------------------------


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
