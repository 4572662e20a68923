"""Reads volumes and clips: .npz (MedMNIST 3D), class folders of .npy files, of folders of frames, of GIFs and TIFFs."""

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from stages.errors import InputRefusedError
from stages.ingest.formats import arrays, containers, folders, pictures
from stages.ingest.formats.folders import ClassFolder, bad_name, printable
from stages.ingest.records import Example, Item, Source

ALLOWED = (
    "Allowed: .npz with train_images (n, depth, height, width) and train_labels; <class>/<volume>.npy; "
    "<class>/<clip>/<frames>; <class>/<clip>.gif or .tif; the class folders also in train|val|test/."
)
VOXELS = 2**29  # of one volume; bounds the time and memory that a small file full of frames can take
LEAST = 2**14  # voxels that a frame counts for at least


def find(source: Source) -> Iterable[Item]:
    """Returns every example of ``source``, without decoding it.

    The layout is .npz files if there are any, else class folders. In these a file is a volume, and so is a folder:
    its pictures, in natural order (frame 2 before 10), are the frames.

    Raises:
        InputRefusedError: there are no examples, or what is there is damaged.
    """
    tree = folders.walk(source.folder)
    chosen = folders.choose(source.folder, tree, source.files)
    items = containers.npz(source, list(chosen or tree.files), chosen, axes=3)
    if items is None:
        classes = (
            folders.chosen_classes(chosen, source.files) if chosen else folders.classes(source.folder, tree, "volume")
        )
        source.notes["layout"] = folders.layout_of(classes)
        items = [item for folder in classes for item in _in_folder(folder)]
    if items == []:
        found = ", ".join(folders.top(tree)) or "nothing"
        raise InputRefusedError(f"{source.folder} has no volume in a class folder. {ALLOWED} It has: {found}.")
    return items


def decode(data: list[bytes] | np.ndarray, *, size: tuple[int, int, int], mode: str, fit: str, **_: object) -> Example:
    """Reads one volume and brings it to ``size`` (depth, height, width).

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


def _in_folder(folder: ClassFolder) -> Iterator[Item]:
    """Yields the files of a class folder as volumes, and the folders under it."""
    clips: dict[str, list[str]] = {}
    for path in folder.files:
        clips.setdefault(path.rpartition("/")[0], []).append(path)
    for path in clips.pop(folder.path, []):
        yield folders.item(path, folder.label, folder.split)
    for path, frames in clips.items():
        broken = [frame for frame in frames if printable(frame) != frame]
        problem = f"{printable(broken[0])}: {bad_name(broken[0])}" if broken else None
        files = () if problem else tuple(sorted(frames, key=_natural))
        yield Item(printable(path), printable(folder.label), folder.split, files, problem=problem)


def _natural(path: str) -> list[tuple[int, int | str]]:
    """Sort key by which frame 2 comes before frame 10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", path)]


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
        arrange, times = containers.arrangement(stored, axes=2), containers.factor([stored])
        data = containers.to_bytes(arrange(stored.whole()), times)
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
