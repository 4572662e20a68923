"""What is left of the accuracy when test examples are noisy, blurred, pale, coarse or misspelt, at five levels.

Source: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261, section 3, with the constants of its CIFAR-10-C, made for 32x32 pixels; what they say in pixels
grows with the picture. Of volumes each frame or slice is a picture. Texts have letters in the wrong order instead: the
typing error that leaves length and letters as they are.
"""

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from stages.evaluate.evaluators.changed import Sample, share

MOST = 128  # examples; bounds time: there are 20 changes of each picture
LEVELS = (1, 2, 3, 4, 5)
SIDE = 32  # pixels, of the pictures that the constants were made for
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, of the range of pixels
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation, in pixels of SIDE
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # that is left
COARSE = (0.95, 0.9, 0.85, 0.75, 0.65)  # pixels along a side that are left
TYPING = (0.02, 0.04, 0.06, 0.08, 0.10)  # characters that change places with the next; of our own choice
SEED = 0


def corruptions(sample: Sample) -> tuple[dict[str, float], pd.DataFrame]:
    """Returns ``robust_accuracy``, the mean over all changes and levels, and a table of each.

    Its columns are corruption, level (0: none), examples, accuracy, low, high.
    """
    rows = [{"corruption": "none", "level": 0, **share(sample.predicted == sample.labels)}]
    for name, corrupt in (TEXTS if sample.predictor.kind.is_text else PICTURES).items():
        for level in LEVELS:
            answers = sample.answers(corrupt(sample.examples, level))
            rows.append({"corruption": name, "level": level, **share(answers == sample.labels)})
    table = pd.DataFrame(rows)
    return {"robust_accuracy": float(table.loc[table["level"] > 0, "accuracy"].mean())}, table


def noise(pictures: np.ndarray, level: int) -> np.ndarray:
    """Adds Gaussian noise, at each level the same but for its strength; to pictures as uint8 (..., h, w, channels)."""
    drawn = np.random.default_rng(SEED).standard_normal(pictures.shape, np.float32)
    return _pixels(pictures + 255 * NOISE[level - 1] * drawn)


def blur(pictures: np.ndarray, level: int) -> np.ndarray:
    """Smoothes with a Gaussian; the edge continues outside."""
    height, width = pictures.shape[-3:-1]
    deviation = BLUR[level - 1] * min(height, width) / SIDE
    axes = (pictures.ndim - 3, pictures.ndim - 2)
    return _pixels(gaussian_filter(pictures.astype(np.float32), deviation, mode="nearest", axes=axes))


def contrast(pictures: np.ndarray, level: int) -> np.ndarray:
    """Moves all pixels nearer to the mean of their channel."""
    mean = pictures.mean(axis=(-3, -2), keepdims=True, dtype=np.float32)
    return _pixels((pictures - mean) * CONTRAST[level - 1] + mean)


def pixelation(pictures: np.ndarray, level: int) -> np.ndarray:
    """Makes each picture smaller, and large again without smoothing."""
    height, width, channels = pictures.shape[-3:]
    small = [max(1, int(side * COARSE[level - 1])) for side in (width, height)]
    flat, changed = pictures.reshape(-1, height, width, channels), []
    for picture in flat:
        image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
        changed.append(np.asarray(image).reshape(height, width, channels))
    return np.stack(changed).reshape(pictures.shape)


def typing(texts: np.ndarray, level: int) -> np.ndarray:
    """Exchanges neighbouring characters of each text; each level's exchanges are among the next one's."""
    rng, changed = np.random.default_rng(SEED), []
    for text in texts:
        signs = list(text)
        places = rng.permutation(max(0, len(signs) - 1))[: round(TYPING[level - 1] * len(signs))]
        for place in places.tolist():
            signs[place], signs[place + 1] = signs[place + 1], signs[place]
        changed.append("".join(signs))
    return np.array(changed, object)


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


PICTURES = {"noise": noise, "blur": blur, "contrast": contrast, "pixelation": pixelation}
TEXTS = {"typing": typing}
