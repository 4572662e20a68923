"""Reads pictures: a folder per class, split folders of these, or the IDX files of MNIST and its kin."""

import gzip
import hashlib
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.errors import InputRefusedError
from stages.ingest.records import Example, Item, natural

# Pillow only warns between its limit and twice its limit; _open refuses there, in every thread alike.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no format that runs an outside program (EPS)
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IDX_SPLITS = {"train": "train", "t10k": "test"}  # prefix of the file name -> split


def find(source: Path) -> list[Item]:
    """Returns every example under ``source``, sorted by path, without reading pixels.

    One of these layouts: ``<class>/**/<picture>``; ``train|val|test/<class>/**/<picture>``; the four files
    ``train-images-idx3-ubyte[.gz]``, ``train-labels-idx1-ubyte[.gz]``, ``t10k-...``.

    Raises:
        InputRefusedError: ``source`` is none of them, or an IDX file is damaged.
    """
    if not source.is_dir():
        raise InputRefusedError(f"{source} is missing: fetch it, or put it there with dvc add or dvc import-url.")
    if any(source.glob("*-images-idx3-ubyte*")):
        return _idx_items(source)
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    splits = {folder: SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders}
    if len({split for split in splits.values() if split}) >= 2:  # one alone may be a class: a train is a vehicle
        if None in splits.values():
            others = [folder.name for folder, split in splits.items() if split is None]
            raise InputRefusedError(
                f"{source} has split folders (train, val, test) and beside them {others}. Put class folders into the "
                "split folders, or give the split folders other names."
            )
        items = [item for folder, split in splits.items() for item in _folder_items(source, folder, split)]
    else:
        items = _folder_items(source, source, None)
    if not items:
        raise InputRefusedError(
            f"{source} has no picture in a class folder. Allowed: <class>/<picture>, train|val|test/<class>/<picture>, "
            f"or IDX files. Found at its top: {sorted(path.name for path in source.iterdir())[:10]}"
        )
    return items


def decode(item: Item, *, size: tuple[int, int], mode: str, fit: str) -> Example:
    """Reads one picture and brings it to ``size`` (height, width) and ``mode``; see ``ingest`` for their values.

    Raises:
        InputRefusedError: it cannot be read; the message says why.
    """
    picture = item.open()
    content = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
    facts = {"height": picture.height, "width": picture.width}
    return Example(content, {"image": to_array(picture, size=size, mode=mode, fit=fit)}, facts)


def to_array(picture: Image.Image, *, size: tuple[int, int], mode: str, fit: str) -> np.ndarray:
    """Returns a normalised picture (see ``normalise``) as uint8, shape (height, width, 1 or 3)."""
    if picture.mode == "I;16":
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))  # 65535 / 255 = 257
    if picture.mode == "RGBA":
        background = Image.new("RGBA", picture.size, "white")  # what a viewer shows behind a transparent picture
        picture = Image.alpha_composite(background, picture)
    picture = picture.convert("L" if mode == "grey" else "RGB")
    target = (size[1], size[0])  # Pillow says width first
    if picture.size != target:
        if fit == "stretch":
            picture = picture.resize(target, Image.Resampling.BILINEAR)
        elif fit == "pad":
            picture = ImageOps.pad(picture, target, Image.Resampling.BILINEAR)
        else:
            picture = ImageOps.fit(picture, target, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[..., None] if mode == "grey" else pixels


def normalise(picture: Image.Image) -> Image.Image:
    """Turns a picture upright (EXIF) and to one of the modes L, I;16, RGB and RGBA, which keep what it shows.

    Raises:
        InputRefusedError: its numbers have no known range.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise InputRefusedError("its pixels are floating-point numbers of no known range")
    if picture.mode.startswith("I"):  # 16 bits in either byte order, or in 32-bit integers
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise InputRefusedError(f"its pixels, {values.min()} to {values.max()}, are no 16-bit values")
        return Image.fromarray(values.astype(np.uint16))
    if picture.mode in ("L", "RGB", "RGBA"):
        return picture if picture.mode != "RGB" or "transparency" not in picture.info else picture.convert("RGBA")
    if picture.mode == "1":
        return picture.convert("L")
    transparent = picture.mode in ("LA", "PA", "La", "RGBa") or "transparency" in picture.info
    return picture.convert("RGBA" if transparent else "RGB")


def _folder_items(source: Path, folder: Path, split: str | None) -> list[Item]:
    """Returns the files of the class folders directly under ``folder``; hidden files are no examples."""
    items = []
    for label in sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: natural(path.name)):
        if label.name.startswith("."):
            continue
        names = [path.relative_to(source) for path in sorted(label.rglob("*")) if path.is_file()]
        names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        if not names:
            raise InputRefusedError(f"{label} is an empty class folder. Put pictures into it, or remove it.")
        for name in names:
            items.append(Item(name.as_posix(), label.name, split, lambda path=source / name: _open(path)))
    return items


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                raise InputRefusedError(f"too many pixels: {picture.width} x {picture.height}")
            picture.load()
            return normalise(picture)
    except UnidentifiedImageError:
        raise InputRefusedError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise InputRefusedError(f"too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:  # what Pillow raises on damaged files
        raise InputRefusedError(f"damaged: {error}") from error


def _idx_items(source: Path) -> list[Item]:
    items = []
    for images_path in sorted(source.glob("*-images-idx3-ubyte*")):
        prefix = images_path.name.split("-")[0]
        if prefix not in IDX_SPLITS:
            raise InputRefusedError(f"{images_path}: its name must begin with one of {', '.join(IDX_SPLITS)}.")
        labels_path = images_path.with_name(images_path.name.replace("-images-idx3-", "-labels-idx1-"))
        images, labels = _read_idx(images_path, axes=3), _read_idx(labels_path, axes=1)
        if len(images) != len(labels):
            raise InputRefusedError(f"{images_path} has {len(images)} pictures, {labels_path} {len(labels)} labels.")
        for row, label in enumerate(labels):
            path = f"{images_path.name}#{row}"
            items.append(
                Item(path, str(label), IDX_SPLITS[prefix], lambda images=images, row=row: Image.fromarray(images[row]))
            )
    return items


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Returns the array of an IDX file of bytes (LeCun's format: 0, 0, type 8, axes, sizes as big-endian int32)."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * axes)
            if header[:4] != bytes([0, 0, 8, axes]) or len(header) != 4 + 4 * axes:
                raise InputRefusedError(
                    f"{path} is not an IDX file of bytes with {axes} axes: it begins {header[:4]!r}."
                )
            shape = struct.unpack(f">{axes}i", header[4:])
            content = file.read(int(np.prod(shape)) + 1)
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise InputRefusedError(f"{path} cannot be read: {error}") from error
    if len(content) != int(np.prod(shape)):
        raise InputRefusedError(f"{path} announces {shape} and does not hold just that many bytes.")
    return np.frombuffer(content, np.uint8).reshape(shape)
