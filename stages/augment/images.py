"""Changes of pictures that keep their label, each for a whole batch at once.

The geometric ones compose a sampling grid - float32, shape (n, 2, height, width), the row and column of the source
picture that each pixel of the result shows - so that any number of them costs one interpolation.
"""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from stages.augment.draws import Draws

ARRAY = "image"
OPTIONS = ("shift", "rotate", "scale", "elastic", "smoothness", "flip", "erase", "noise")
SIZED = True  # ingest stores all examples in one size


def change(pictures: np.ndarray, rng: Draws, **options: Any) -> np.ndarray:
    """Returns changed copies of ``pictures``, uint8 of shape (n, height, width, channels).

    Args:
        pictures: uint8.
        rng: source of the changes.
        options: OPTIONS, see ``augment``; but flip says of each picture whether it may be mirrored, shape (n,).
    """
    grid = identity(*pictures.shape[:3])
    grid = elastic(grid, options["elastic"], options["smoothness"], rng)
    grid = scale(grid, options["scale"], rng)
    grid = rotate(grid, options["rotate"], rng)
    grid = shift(grid, options["shift"], rng)
    grid = flip(grid, options["flip"], rng)
    pictures = resample(pictures, grid)
    pictures = erase(pictures, options["erase"], rng)
    return noise(pictures, options["noise"], rng)


def identity(n: int, height: int, width: int) -> np.ndarray:
    """Returns the grid that shows ``n`` pictures as they are."""
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float32)
    return np.broadcast_to(grid, (n, 2, height, width))


def shift(grid: np.ndarray, pixels: float, rng: Draws) -> np.ndarray:
    """Moves each picture by up to ``pixels`` in both directions.

    Source: Simard et al. 2003, "Best Practices for Convolutional Neural Networks", section 2.
    """
    return grid + rng.uniform(-pixels, pixels, (len(grid), 2, 1, 1)).astype(np.float32)


def rotate(grid: np.ndarray, degrees: float, rng: Draws) -> np.ndarray:
    """Turns each picture about its centre by up to ``degrees`` either way. Source: as ``shift``."""
    angle = np.deg2rad(rng.uniform(-degrees, degrees, (len(grid), 1, 1)))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    row, column = np.moveaxis(grid - _centre(grid), 1, 0)
    # Not by einsum: a library of linear algebra may round an example differently among others.
    return np.stack([row * cosine - column * sine, row * sine + column * cosine], axis=1) + _centre(grid)


def scale(grid: np.ndarray, share: float, rng: Draws) -> np.ndarray:
    """Makes each picture larger or smaller about its centre, by a factor in [1 - share, 1 + share]."""
    factor = rng.uniform(1 - share, 1 + share, (len(grid), 1, 1, 1)).astype(np.float32)
    return (grid - _centre(grid)) / np.maximum(factor, 1e-3) + _centre(grid)


def elastic(grid: np.ndarray, pixels: float, smoothness: float, rng: Draws) -> np.ndarray:
    """Adds a smooth random displacement of root mean square length ``pixels`` per axis.

    Args:
        grid: the sampling grid.
        pixels: typical length of the displacement.
        smoothness: standard deviation of the Gaussian that smooths it, in pixels (sigma in the source).
        rng: source of the displacement.

    Source: Simard et al. 2003, "Best Practices for Convolutional Neural Networks", section 2.
    """
    if pixels == 0:
        return grid
    field = rng.standard_normal(grid.shape, np.float32)
    field = gaussian_filter(field, (0, 0, smoothness, smoothness), mode="reflect")
    return grid + field * (pixels / np.sqrt(np.mean(field**2, axis=(2, 3), keepdims=True)))


def flip(grid: np.ndarray, allowed: np.ndarray, rng: Draws) -> np.ndarray:
    """Mirrors left and right with probability 1/2 where ``allowed``, bool of shape (n,)."""
    chosen = allowed & (rng.uniform(0, 1, (len(grid),)) < 0.5)
    return np.where(chosen[:, None, None, None], grid[..., ::-1], grid)


def resample(pictures: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Reads ``pictures`` at ``grid`` by bilinear interpolation; outside, the nearest edge pixel continues.

    Args:
        pictures: uint8, shape (n, height, width, channels).
        grid: float32, shape (n, 2, height, width).

    Returns:
        An array of the shape and dtype of ``pictures``.
    """
    n, height, width, _ = pictures.shape
    rows, columns = np.clip(grid[:, 0], 0, height - 1), np.clip(grid[:, 1], 0, width - 1)
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down = (rows - top.astype(np.float32))[..., None]
    across = (columns - left.astype(np.float32))[..., None]
    number = np.arange(n)[:, None, None]
    upper = pictures[number, top, left] * (1 - across) + pictures[number, top, right] * across
    lower = pictures[number, bottom, left] * (1 - across) + pictures[number, bottom, right] * across
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)


def erase(pictures: np.ndarray, share: float, rng: Draws) -> np.ndarray:
    """Overwrites one rectangle of each picture, of up to ``share`` of its area and of sides 1:3 to 3:1, with noise.

    Source: Zhong et al. 2017, arXiv:1708.04896, algorithm 1; the rectangle may reach over the edge.
    """
    if share == 0:
        return pictures
    n, height, width, _ = pictures.shape
    area = rng.uniform(0, share, (n,)) * height * width
    aspect = np.exp(rng.uniform(-np.log(3), np.log(3), (n,)))
    half_height, half_width = np.sqrt(area * aspect) / 2, np.sqrt(area / aspect) / 2
    row, column = rng.uniform(0, height, (n,)), rng.uniform(0, width, (n,))
    rows = np.abs(np.arange(height) + 0.5 - row[:, None]) < half_height[:, None]  # (n, height)
    columns = np.abs(np.arange(width) + 0.5 - column[:, None]) < half_width[:, None]  # (n, width)
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return np.where(inside, rng.integers(0, 256, pictures.shape, np.uint8), pictures)


def noise(pictures: np.ndarray, deviation: float, rng: Draws) -> np.ndarray:
    """Adds Gaussian noise of the given standard deviation, in grey levels, and cuts to 0..255."""
    if deviation == 0:
        return pictures
    return np.rint(np.clip(pictures + rng.normal(0, deviation, pictures.shape), 0, 255)).astype(np.uint8)


def _centre(grid: np.ndarray) -> np.ndarray:
    height, width = grid.shape[2:]
    return np.array([(height - 1) / 2, (width - 1) / 2], np.float32)[None, :, None, None]
