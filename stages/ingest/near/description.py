"""Describes pictures for the search for near duplicates: low frequencies, their changes by shifts and scales, detail.

The plane of what small shifts and crops make of a picture is that of the tangent distance (Simard, LeCun, Denker 1993,
"Efficient Pattern Recognition Using a New Transformation Distance"). Detail counts by the smaller eigenvalue of the
structure tensor (Shi and Tomasi 1994, "Good Features to Track"), since a straight edge fits any other.
"""

import math

import numpy as np
from threadpoolctl import threadpool_limits

from convoy.kinds.fingerprints import SIDE
from convoy.machine.workers import map_ahead, threads

MIN_CONTRAST = 2.0  # standard deviation of a thumbnail, in grey levels; below it the rounding to 8 bits shows
# Detail that does not count. Photos have 0.5 in the median and all have more than this; digits and clothes at 28x28
# have 0.31, those that are but a bar have less than this: 0.3 % of MNIST, 2.6 % of Fashion-MNIST.
MIN_DETAIL = 0.15
KEEP = 8  # frequencies per axis that a description keeps; more of them told no more pairs apart
UNIT = 4000  # length of its integer vectors: sums of their products stay below 2**24, so float32 adds them exactly
BLOCK = 512  # pictures described at a time


def describe(fingerprints: np.ndarray) -> np.ndarray:
    """Returns fingerprints, uint8 (n, 1024), and what ``pictures.find_pairs`` computes of each: uint8 (n, DESCRIBED).

    Stored in this form they are compared with new ones without computing it again.
    """
    thumbs = fingerprints.reshape(-1, SIDE, SIDE)
    with threadpool_limits(1), threads() as pool:
        blocks = (thumbs[start : start + BLOCK] for start in range(0, len(thumbs), BLOCK))
        parts = list(map_ahead(pool, _describe_block, blocks)) or [_describe_block(thumbs)]
    rows = [fingerprints]
    for part in zip(*parts, strict=True):
        column = np.ascontiguousarray(np.concatenate(part))
        rows.append(column.reshape(len(thumbs), math.prod(column.shape[1:])).view(np.uint8))
    return np.concatenate(rows, axis=1)


def _describe_block(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Describes pictures (n, SIDE, SIDE) for the search.

    Returns:
        basis: int16, shape (n, 5, 63), orthogonal vectors of length UNIT: the picture, and with it the plane of its
            small shifts and scales.
        curvature: float32, shape (n,), how far the largest shifts and scales lie outside that plane, as the sine.
        detail: float32, shape (n,), see ``measure_detail``.
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
    return np.rint(np.stack(basis, 1) * UNIT).astype(np.int16), curvature, measure_detail(thumbs)


def measure_detail(thumbs: np.ndarray) -> np.ndarray:
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


def blur_matrix(side: int, sigma: float) -> np.ndarray:
    """Gaussian blur of ``side`` values as a matrix; the outermost value goes on beyond the border."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((side, side))
    for row in range(side):
        np.add.at(matrix[row], np.clip(row + offsets, 0, side - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def pixel_offsets(side: int) -> np.ndarray:
    """Returns the places of ``side`` pixels, from their middle."""
    return np.arange(side, dtype=np.float32) - (side - 1) / 2


def interpolation_matrices(places: np.ndarray, side: int) -> np.ndarray:
    """Linear interpolation of ``side`` values at places (..., k) as matrices (..., k, side)."""
    places = np.clip(places, 0, side - 1)
    return np.maximum(0, 1 - np.abs(places[..., None] - np.arange(side, dtype=np.float32)))


def _description_bank() -> np.ndarray:
    """Returns the one-dimensional filters of a description, seven of ``KEEP`` rows: float32, shape (56, SIDE).

    Each is: blur, a change, a window that makes the border count less, the lowest frequencies of the cosine transform.
    The changes: none; its derivatives by shift and by scale; two scales and two shifts at the end of what is looked
    for.
    """
    offset = pixel_offsets(SIDE)
    cosines = np.cos(np.pi * np.outer(np.arange(KEEP), np.arange(SIDE) + 0.5) / SIDE) * (2 / SIDE) ** 0.5
    cosines[0] *= 0.5**0.5
    windowed = cosines * np.cos(np.pi * offset / SIDE)
    blur = blur_matrix(SIDE, 2.0)
    slope = np.gradient(np.eye(SIDE), axis=0)
    changes = [np.eye(SIDE), slope, offset[:, None] / (SIDE / 2) * slope]
    for scale, shift in ((0.8, 0), (1.25, 0), (1, 0.05 * SIDE), (1, -0.05 * SIDE)):
        changes.append(interpolation_matrices((SIDE - 1) / 2 + shift + scale * offset, SIDE))
    return np.concatenate([windowed @ change @ blur for change in changes]).astype(np.float32)


BANK = _description_bank()
# Filters by (row, column): the picture, and its derivatives by horizontal and vertical shift and scale ...
PLANE = ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0))
# ... and the changes at the end of the range: scale in one direction, shift in one, both in both.
RANGE = ((0, 3), (0, 4), (3, 0), (4, 0), (0, 5), (0, 6), (5, 0), (6, 0), (3, 3), (4, 4), (5, 5), (6, 5))
DESCRIBED = SIDE**2 + 2 * len(PLANE) * (KEEP**2 - 1) + 8  # bytes of a fingerprint as ``describe`` returns it
# Weight of the frequencies: the square root of the frequency, since low ones are strong in every picture.
WEIGHT = (np.add.outer(np.arange(KEEP) ** 2, np.arange(KEEP) ** 2) ** 0.25).ravel()[1:].astype(np.float32)
FLAT = np.outer(BANK[:KEEP].sum(1), BANK[:KEEP].sum(1)).ravel()[1:] * WEIGHT  # what a change of brightness adds
FLAT /= np.linalg.norm(FLAT)
DETAIL_BLUR, TENSOR_BLUR = blur_matrix(SIDE, 0.5), blur_matrix(SIDE - 1, 1.5)
