"""Volumes and clips: how one is read, and what is stored of it."""

import hashlib
import io
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from convoy.errors import InputRefusedError
from convoy.kinds import arrays, pictures
from convoy.kinds.base import Example, Kind, prepare_file

VOXELS = 2**29  # of one volume; bounds the time and memory that a small file full of frames can take
LEAST = 2**14  # voxels that a frame counts for at least


def decode(data: list[bytes] | np.ndarray, *, size: tuple[int, int, int], mode: str, fit: str, **_: object) -> Example:
    """Reads one volume and resizes it to ``size`` (depth, height, width).

    Height and width as ``pictures.to_size``. Depth: ``stretch`` interpolates linearly; ``pad`` adds black frames at
    both ends, and squeezes what is too deep; ``crop`` keeps the middle frames, and stretches what is too shallow.
    Volumes have no fingerprint: only exact duplicates are found.

    Args:
        data: the frames as files; or one file that holds all; or an array (depth, height, width[, channels]).
        size: (depth, height, width).
        mode: grey or colour.
        fit: stretch, pad or crop.

    Raises:
        InputRefusedError: it cannot be read, has one frame, or its frames differ in size.
    """
    depth, height, width = size
    content, frames, facts = hashlib.sha256(), [], {}
    for number, (picture, found) in enumerate(_frames(data)):
        seen = {name: found[name] for name in ("height", "width", "mode", "format")}
        facts = facts or seen
        if (seen["height"], seen["width"]) != (facts["height"], facts["width"]):
            raise InputRefusedError(
                f"frame {number} has {seen['width']} x {seen['height']} pixels, frame 0 {facts['width']} x "
                f"{facts['height']}. All frames of a volume have one size."
            )
        if (number + 1) * max(picture.width * picture.height, height * width, LEAST) > VOXELS:
            raise InputRefusedError(f"too large: over {VOXELS:,} voxels at frame {number}")
        content.update(f"{picture.mode} {picture.size} ".encode())
        content.update(picture.tobytes())
        frames.append(pictures.to_array(pictures.to_size(picture, size=(height, width), mode=mode, fit=fit)))
    if len(frames) < 2:
        raise InputRefusedError(f"a volume of {len(frames)} frame; at least 2 are needed")
    return Example(
        content.digest(), {"volume": _to_depth(np.stack(frames), depth, fit)}, {"depth": len(frames)} | facts
    )


def _frames(data: list[bytes] | np.ndarray) -> Iterator[tuple[Image.Image, dict[str, int | str]]]:
    """Yields the frames as normalised pictures, with their facts."""
    if isinstance(data, list) and len(data) > 1:
        for number, frame in enumerate(data):
            try:
                yield pictures.read(frame)
            except InputRefusedError as refusal:
                raise InputRefusedError(f"frame {number}: {refusal}") from None
        return
    if isinstance(data, list) and not data[0].startswith(b"\x93NUMPY"):
        yield from pictures.read_frames(data[0])
        return
    if isinstance(data, list):
        stored = arrays.npy_in(data[0])
        if len(stored.shape) < 3:
            raise InputRefusedError(
                f"an array of the shape {stored.shape}. Allowed: (depth, height, width[, channels])"
            )
        arrange, times = arrays.arrangement(stored, axes=2), arrays.factor([stored])
        data = arrays.to_bytes(arrange(stored.whole()), times)
    for frame in data:
        yield pictures.from_array(frame)


def _to_depth(frames: np.ndarray, depth: int, fit: str) -> np.ndarray:
    """Returns ``frames`` (n, height, width, channels) with ``depth`` of them."""
    surplus = len(frames) - depth
    if fit == "pad" and surplus < 0:
        before = -surplus // 2
        return np.pad(frames, ((before, -surplus - before), (0, 0), (0, 0), (0, 0)))
    if fit == "crop" and surplus > 0:
        return frames[surplus // 2 : surplus // 2 + depth]
    if not surplus:
        return frames
    lines = Image.fromarray(frames.reshape(len(frames), -1))  # Pillow's rule for height, for depth
    return np.asarray(lines.resize((lines.width, depth), Image.Resampling.BILINEAR)).reshape(depth, *frames.shape[1:])


def pack(stored: np.ndarray) -> bytes:
    """Returns a stored volume, (depth, height, width, channels), as an .npy file."""
    packed = io.BytesIO()
    np.save(packed, stored[..., 0] if stored.shape[-1] == 1 else stored)
    return packed.getvalue()


KIND = Kind(
    name="volumes",
    noun="volume",
    arrays=("volume",),
    decode=decode,
    prepare=partial(prepare_file, "volumes"),
    pack=pack,
    axes=3,
    sent="binary",
    endings=(".npy", ".gif", ".tif", ".tiff"),
    reads="A volume or clip: the bytes of an .npy, GIF or TIFF file, brought to {size} voxels, {mode}.",
    per_class=7,
    errors=24,
    explained=(3, 2),
)
