"""Pictures: how one is read, and what is stored of it."""

import io
from functools import partial

import numpy as np
from PIL import Image

from convoy.kinds import pictures
from convoy.kinds.base import Example, Kind, prepare_file
from convoy.kinds.fingerprints import SIDE, fingerprint


def decode(
    data: list[bytes] | bytes | np.ndarray,
    *,
    size: tuple[int, int],
    mode: str,
    fit: str,
    fingerprints: bool = False,
    **_: object,
) -> Example:
    """Reads one picture and resizes it to ``size``.

    Its content is what the normalised picture shows (``pictures.content``).

    Args:
        data: a file, alone in a list; the bytes of one; or pixels as ``pictures.from_array`` takes them.
        size: (height, width); see ``pictures.to_size``.
        mode: grey or colour.
        fit: stretch, pad or crop.
        fingerprints: whether near copies will be looked for.

    Raises:
        InputRefusedError: it cannot be read; the message says why.
    """
    if isinstance(data, list):
        [data] = data
    file = data if isinstance(data, bytes) else None
    picture, facts = pictures.read(file, max(size), mode) if file is not None else pictures.from_array(data)
    stored = pictures.to_size(picture, size=size, mode=mode, fit=fit)
    thumbnail = None
    if fingerprints:
        # What is stored shows the same and is smaller, unless a part was cut off or 16 bits became 8.
        enough = fit == "stretch" and min(size) >= 2 * SIDE and picture.mode != "I;16"
        thumbnail = fingerprint(stored if enough else picture)
    content = pictures.content(picture, file, facts)
    return Example(content, {"image": pictures.to_array(stored)}, facts, thumbnail)


def pack(stored: np.ndarray) -> bytes:
    """Returns a stored picture, (height, width, channels), as a PNG."""
    packed = io.BytesIO()
    Image.fromarray(stored[..., 0] if stored.shape[-1] == 1 else stored).save(packed, "PNG")
    return packed.getvalue()


KIND = Kind(
    name="images",
    noun="picture",
    arrays=("image",),
    decode=decode,
    prepare=partial(prepare_file, "images"),
    pack=pack,
    axes=2,
    sent="binary",
    endings=(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"),
    reads="A picture: the bytes of a PNG, JPEG, BMP, GIF, TIFF, WEBP or PPM file; read as {size} pixels, {mode}.",
    per_class=9,
    errors=48,
    explained=(10, 5),
)
