"""Changes of volumes and clips that keep their label, each for a whole batch at once.

Source: Yang et al. 2023, "MedMNIST v2", arXiv:2110.14795, for the shapes that they are for; mirroring and turning by
right angles invents no voxel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from convoy.errors import ConfigurationError
from stages.augment.draws import Draws
from stages.augment.entry import Augment

ARRAY = "volume"
OPTIONS = ("shift", "mirror", "turn", "noise")
SIZED = True  # ingest stores all examples in one size
AXES = {"depth": 0, "height": 1, "width": 2}  # of one volume


def check(where: str, about: dict[str, Any], entry: Augment) -> None:
    """Checks that volumes move by whole voxels, and that a turned volume keeps its size.

    Args:
        where: begins the message of an error.
        about: about.json of ingest.
        entry: of params.yaml.

    Raises:
        ConfigurationError: they do not.
    """
    if entry.shift % 1:
        raise ConfigurationError(f"{where}: shift = {entry.shift}: volumes move by whole voxels.")
    if entry.turn:
        size = dict(zip(AXES, about["options"]["size"], strict=True))
        for axis in entry.turn:
            if len({length for name, length in size.items() if name != axis}) > 1:
                raise ConfigurationError(
                    f"{where}: turn about {axis} needs the two other sides to be equal; got {size}."
                )


def change(
    volumes: np.ndarray, rng: Draws, *, shift: float, mirror: Sequence[str], turn: Sequence[str], noise: float
) -> np.ndarray:
    """Returns changed copies of ``volumes``, uint8 of shape (n, depth, height, width, channels).

    Args:
        volumes: any size.
        rng: source of the changes.
        shift: largest move along each axis, in whole voxels; the edge goes on in the gap.
        mirror: axes along which a copy is mirrored with probability 1/2.
        turn: axes about which a copy is turned by 0, 90, 180 or 270 degrees; the two others are of one length.
        noise: standard deviation of the noise, in grey levels of 255.
    """
    changed = np.empty_like(volumes)
    for number, (volume, generator) in enumerate(zip(volumes, rng.generators, strict=True)):
        for axis in mirror:
            if generator.random() < 0.5:
                volume = np.flip(volume, AXES[axis])
        for axis in turn:
            plane = tuple({0, 1, 2} - {AXES[axis]})
            volume = np.rot90(volume, int(generator.integers(4)), plane)
        if shift:
            volume = shifted(volume, generator.integers(-int(shift), int(shift) + 1, 3))
        if noise:
            grey = volume + generator.normal(0, noise, volume.shape)
            volume = np.clip(np.rint(grey), 0, 255)
        changed[number] = volume
    return changed


def shifted(volume: np.ndarray, moves: Sequence[int]) -> np.ndarray:
    """Moves a volume by whole voxels along its first three axes; the edge goes on in the gap."""
    for axis, move in enumerate(moves):
        places = np.clip(np.arange(volume.shape[axis]) - move, 0, volume.shape[axis] - 1)
        volume = np.take(volume, places, axis)
    return volume
