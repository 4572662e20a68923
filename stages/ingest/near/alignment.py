"""Aligns pairs of pictures - shift and scale per axis, gain and offset - and decides whether the rest is small.

It takes Gauss-Newton steps (Lucas and Kanade 1981). Two pictures are near if the difference that is left is no larger
than a shift by a fraction of a pixel would make.
"""

import numpy as np

from convoy.kinds.fingerprints import SIDE
from stages.ingest.near.description import blur_matrix, interpolation_matrices, pixel_offsets

# Largest misfit at half size, as a multiple of ``pictures.MISFIT``: 99 % of the copies pass, and of the candidates 6 %
# of the digits and 38 % of the clothes.
COARSE = 2.5
LEAST, MOST = (-0.25, -0.25, -0.35, -0.35), (0.25, 0.25, 0.5, 0.5)  # shift and growth per axis, in half sides
MAX_GAIN = 3.0  # of contrast
HALF, FULL = SIDE // 2, SIDE
BLUR = {
    HALF: blur_matrix(HALF, 0.7),
    FULL: blur_matrix(FULL, 1.0),
}  # hides what compression and resampling do to single pixels


def are_near(first: np.ndarray, second: np.ndarray, limit: np.ndarray) -> np.ndarray:
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
    x = pixel_offsets(side)[1:-1] / (side / 2)
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
    """Returns ``moving`` warped, blurred and with the gain and bias that fit ``fixed`` best, and where it shows any.

    The former is not limited to 0..255; the latter is float32 (m, side - 2, side - 2), 1 or 0, without the border.
    """
    side = fixed.shape[1]
    places = (
        (side - 1) / 2 + side / 2 * warp[:, :2, None] + pixel_offsets(side) * (1 + warp[:, 2:, None])
    )  # (m, 2, side)
    across, down = (BLUR[side] @ interpolation_matrices(places[:, axis], side) for axis in (0, 1))
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
