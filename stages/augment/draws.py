"""Random numbers for many examples at once. Those of an example depend on nothing but its own key.

So a changed copy is the same whichever examples stand beside it, and adding one example changes no other.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


class Draws:
    """One generator per key, with the methods of numpy's; the first axis of every ``size`` is that of the keys.

    ``generators`` are they, for changes that are made one example at a time.

    The generators are counter-based, so that any two keys give independent streams (Philox-4x64-10: Salmon et al. 2011,
    "Parallel Random Numbers: As Easy as 1, 2, 3").
    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        # A key of 128 bits: SHA-256 spreads whatever comes in over it.
        digests = (hashlib.sha256(key).digest() for key in keys)
        self.generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(d[:16]))) for d in digests]

    def uniform(self, low: float, high: float, size: tuple[int, ...]) -> np.ndarray:
        """Returns float64 numbers in [low, high)."""
        return np.stack([generator.uniform(low, high, size[1:]) for generator in self.generators])

    def normal(self, mean: float, deviation: float, size: tuple[int, ...]) -> np.ndarray:
        """Returns normally distributed float64 numbers."""
        return np.stack([generator.normal(mean, deviation, size[1:]) for generator in self.generators])

    def standard_normal(self, size: tuple[int, ...], dtype: type) -> np.ndarray:
        """Returns normally distributed numbers of deviation 1."""
        return np.stack([generator.standard_normal(size[1:], dtype) for generator in self.generators])

    def integers(self, low: int, high: int, size: tuple[int, ...], dtype: type) -> np.ndarray:
        """Returns whole numbers in [low, high)."""
        return np.stack([generator.integers(low, high, size[1:], dtype) for generator in self.generators])
