"""Pictures that are changed in every epoch in another way, by the device that trains.

Beside the stage ``augment``, whose copies are stored and can be looked at: none is seen twice, and none takes room. On
2 cores a batch of 128 small pictures takes 3 ms here, and 20 ms by the code of the stage (``benchmarks/input.py``).
"""

from typing import Any

import keras
import numpy as np
from keras import ops


class RandomAffine(keras.layers.Layer):
    """Moves, turns, scales and mirrors pictures (n, h, w, c) of 0..255 in training, by one interpolation.

    What lies beyond the edge is the pixel at the edge.

    Args:
        shift: pixels, up to which each is moved in both directions.
        rotate: degrees, up to which it is turned about its centre either way.
        scale: share of its size, up to which it becomes larger or smaller.
        flip: share of them that are mirrored, left to right.
        noise: standard deviation of what is added to every number.

    Source: Simard et al. 2003, "Best Practices for Convolutional Neural Networks", section 2.
    """

    def __init__(
        self, shift: float = 0.0, rotate: float = 0.0, scale: float = 0.0, flip: float = 0.0, noise: float = 0.0
    ) -> None:
        super().__init__(name="augmentation", dtype="float32")
        self._shift, self._angle, self._scale = shift, np.deg2rad(rotate), scale
        self._flip, self._noise = flip, noise
        self.seed_generator = keras.random.SeedGenerator(0)  # EpochSeeds sets it

    def call(self, pictures: Any, training: bool = False) -> Any:
        pictures = ops.cast(pictures, "float32")
        if not training:
            return pictures
        if self._shift or self._angle or self._scale or self._flip:
            pictures = ops.image.affine_transform(
                pictures, self._transforms(pictures), fill_mode="nearest", data_format="channels_last"
            )
        if self._noise:
            noise = keras.random.normal(ops.shape(pictures), stddev=self._noise, seed=self.seed_generator)
            pictures = ops.clip(pictures + noise, 0.0, 255.0)
        return pictures

    def _transforms(self, pictures: Any) -> Any:
        """Returns rows of ``affine_transform``: where each pixel of the result is from, in x and y."""
        n, height, width = ops.shape(pictures)[0], *pictures.shape[1:3]

        def drawn(most: float) -> Any:
            return keras.random.uniform((n,), -most, most, seed=self.seed_generator)

        angle, size = drawn(self._angle), 1.0 + drawn(self._scale)
        mirror = ops.where(drawn(1.0) < 2 * self._flip - 1, -1.0, 1.0)
        cosine, sine = ops.cos(angle) / size, ops.sin(angle) / size
        x, y = (width - 1) / 2, (height - 1) / 2
        rows = [
            mirror * cosine, -sine, x - mirror * cosine * x + sine * y + drawn(self._shift),
            mirror * sine, cosine, y - mirror * sine * x - cosine * y + drawn(self._shift),
            ops.zeros_like(angle), ops.zeros_like(angle),
        ]  # fmt: skip
        return ops.stack(rows, axis=1)


def before(model: keras.Model, changes: dict[str, Any]) -> keras.Model:
    """Returns ``model`` with RandomAffine in front of it; both have the same weights.

    Args:
        model: takes a batch of pictures.
        changes: arguments of RandomAffine.
    """
    image = keras.Input(model.input_shape[1:], name="image")
    return keras.Model(image, model(RandomAffine(**changes)(image)), name=model.name)
