"""Fingerprints of examples, by which near duplicates are found (``stages/ingest/near``).

They are apart from the search because they are computed in the workers, which start faster without SciPy.
"""

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
from PIL import Image

SIDE = 32  # of a thumbnail, in pixels
HASHES = 128  # of a text: all of those with 63 words; of longer ones a sample, standard error 0.04
# Words are letters and digits; in scripts without spaces each sign is one.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def fingerprint(picture: Image.Image) -> np.ndarray:
    """Returns the grey thumbnail of a normalised picture (mode L, I;16, RGB or RGBA): uint8, shape (1024,)."""
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    deep = picture.mode.startswith("I")
    grey = Image.fromarray(np.asarray(picture).astype(np.float32)) if deep else picture.convert("L")
    values = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
    if deep:  # often a small part of the range of 16 bits is in use; gain and offset do not matter to the comparison
        values = np.rint((values - values.min()) * (255 / max(np.ptp(values), 1))).astype(np.uint8)
    return values.ravel()


def text_fingerprint(text: str) -> np.ndarray:
    """Returns hashes of the words and of the pairs of neighbours, without case and punctuation: uint8, shape (512,).

    Text without a letter or digit gives zeros.
    """
    words = np.array([_hash(word) for word in WORD.findall(unicodedata.normalize("NFKC", text).casefold())], np.uint64)
    result = np.zeros(HASHES, "<u4")
    if len(words):
        ends = np.array([_hash("")], np.uint64)
        before, after = np.concatenate([ends, words]), np.concatenate([words, ends])
        both = (before * np.uint64(0x9E3779B97F4A7C15) + after) * np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64
        hashes = np.unique(np.maximum(np.concatenate([words, both]) >> np.uint64(32), 1))[:HASHES]
        result[: len(hashes)] = hashes
    return result.view(np.uint8)


@lru_cache(1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
