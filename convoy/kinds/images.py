"""Pictures: how one is read, and what is stored of it."""

import numpy as np

from convoy.kinds import pictures
from convoy.kinds.base import Example
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
    """Reads one picture and brings it to ``size``.

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
