"""Embedded samples: real data that an installed library ships, so that the pipeline runs without network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def digits(target: Path) -> None:
    """Writes 1,797 handwritten digits as grey PNG files of 8x8 pixels, one folder per class, ``7/0042.png``.

    Source: the test set of Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI), as it
    ships inside scikit-learn: 17 grey levels, here spread over 0..255.
    """
    from sklearn.datasets import load_digits  # takes seconds, which other sources need not wait

    pictures, labels = load_digits(return_X_y=True)
    pictures = np.rint(pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        folder = target / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:04d}.png")


SAMPLES: dict[str, Callable[[Path], None]] = {"digits": digits}
