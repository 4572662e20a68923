"""Finds examples in files of many: IDX (MNIST), .npz (Keras, MedMNIST), .npy (pairs; one per class: Quick Draw)."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.errors import InputRefusedError
from convoy.kinds import arrays
from convoy.kinds.arrays import Stored, arrangement, factor, to_bytes
from stages.ingest.formats.folders import SPLIT_FOLDERS, printable
from stages.ingest.formats.splits import split_of
from stages.ingest.records import Item, Source

IDX_IMAGES = re.compile(r"(.*?)[-.]?images[-.]idx3-ubyte(\.gz)?$")
IDX_SPLITS = {"t10k": "test"} | SPLIT_FOLDERS
IMAGE_WORDS = ("x", "image", "images", "data", "volumes")
LABEL_WORDS = ("y", "label", "labels", "target", "targets")
PAIRS = (
    "Allowed: x_train with y_train, train_images with train_labels, images with labels, x with y; test, val likewise."
)


@dataclass(frozen=True)
class Part:
    """Examples that are the rows of one array.

    Attributes:
        images: the array.
        labels: of its rows: an array, or the name of the one class of all.
        split: of all of them.
    """

    images: Stored
    labels: Stored | str
    split: str | None


def idx(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> Iterator[Item] | None:
    """Returns the pictures of ``<split>-images-idx3-ubyte[.gz]`` with their ``-labels-idx1-``; None without.

    Args:
        source: whose notes are filled.
        files: paths relative to its folder.
        chosen: file -> split, where params.yaml says so.

    Raises:
        InputRefusedError: pictures and labels do not fit, or a file is damaged.
    """
    parts = _idx(source, files, chosen)
    return _items(source, "IDX files", parts, axes=2) if parts else None


def npz(source: Source, files: Sequence[str], chosen: Mapping[str, str], axes: int = 2) -> Iterator[Item] | None:
    """Returns the examples in .npz files, which have ``axes`` axes each (3: volumes); else as ``idx``."""
    parts = _npz(source, files, chosen)
    return _items(source, ".npz", parts, axes) if parts else None


def npy(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> Iterator[Item] | None:
    """Returns the pictures in .npy files - images.npy with labels.npy, or <class>.npy; else as ``idx``."""
    parts = _npy(source, files, chosen)
    return _items(source, ".npy", parts, axes=2) if parts else None


def role(name: str) -> tuple[str, str | None] | None:
    """Returns what the array called ``name`` holds - images or labels - and its split; None: neither.

    ``x_train`` and ``train_images`` are ("images", "train"), ``y`` is ("labels", None).
    """
    words = name.lower().split("_")
    splits = [SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS]
    others = [word for word in words if word not in SPLIT_FOLDERS]
    if len(others) != 1 or len(splits) > 1:
        return None
    kind = "images" if others[0] in IMAGE_WORDS else "labels" if others[0] in LABEL_WORDS else None
    return kind and (kind, splits[0] if splits else None)


def _idx(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> list[Part]:
    parts = []
    for path in files:
        folder, _, name = path.rpartition("/")
        match = IDX_IMAGES.match(name)
        if not match:
            continue
        split = chosen.get(path) or IDX_SPLITS.get(match[1])
        if split is None:
            raise InputRefusedError(
                f"{source.folder}/{path}: its name must begin with one of {', '.join(IDX_SPLITS)}. Or say what it is: "
                f"files: {{train: {path}}}."
            )
        labels = name.replace("images", "labels").replace("idx3", "idx1")
        labels_path = f"{folder}/{labels}" if folder else labels
        if not (source.folder / labels_path).is_file():
            raise InputRefusedError(f"{source.folder}/{path} has no labels: {labels} is missing beside it.")
        images, labels = (
            arrays.open_idx(source.folder / file, printable(file), axes) for file, axes in ((path, 3), (labels_path, 1))
        )
        parts.append(Part(images, labels, split))
    return parts


def _npz(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> list[Part]:
    parts = []
    for path in files:
        if not path.endswith(".npz"):
            continue
        members = arrays.open_npz(source.folder / path, printable(path))
        pairs = _pairs(f"{source.folder}/{printable(path)}", members)
        if not pairs:
            raise InputRefusedError(f"{source.folder}/{printable(path)} holds {sorted(members)[:10]}. {PAIRS}")
        for split, (images, labels) in pairs.items():
            parts.append(Part(members[images](), members[labels](), split or split_of(path, chosen)))
    return parts


def _npy(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> list[Part]:
    folders: dict[str, dict[str, str]] = {}  # folder -> name without .npy -> path
    for path in files:
        folder, _, name = path.rpartition("/")
        if name.endswith(".npy"):
            folders.setdefault(folder, {})[name.removesuffix(".npy")] = path

    def stored(path: str) -> Stored:
        return arrays.open_npy(source.folder / path, printable(path))

    parts = []
    for folder, paths in folders.items():
        for split, (images, labels) in _pairs(str(source.folder / printable(folder)), paths).items():
            split = split or split_of(paths[images], chosen)
            parts.append(Part(stored(paths[images]), stored(paths[labels]), split))
    if parts or len({folder for folder in folders if split_of(f"{folder}/", {}) is None}) > 1:
        return parts  # in the second case the folders are the classes
    return [
        Part(stored(path), printable(name), chosen.get(path) or split_of(f"{folder}/", {}))  # a train is a class, too
        for folder, paths in folders.items()
        for name, path in paths.items()
    ]


def _pairs(where: str, names: Iterable[str]) -> dict[str | None, tuple[str, str]]:
    """Returns split -> names of the images and of the labels."""
    found: dict[tuple[str, str | None], str] = {}
    for name in names:
        key = role(name)
        if key and found.setdefault(key, name) != name:
            raise InputRefusedError(f"{where}: {found[key]} and {name} both say {key[0]}. {PAIRS}")
    for split in {split for _, split in found}:
        for kind in ("images", "labels"):
            if (kind, split) not in found:
                raise InputRefusedError(f"{where} has {', '.join(found.values())}: {kind} are missing. {PAIRS}")
    return {split: (name, found["labels", split]) for (kind, split), name in found.items() if kind == "images"}


def _items(source: Source, layout: str, parts: list[Part], axes: int) -> Iterator[Item]:
    """Checks that images, labels and numbers fit, then returns the iterator over all examples."""
    source.notes["layout"] = layout
    for part in parts:
        if isinstance(part.labels, Stored) and len(part.images) != len(part.labels):
            raise InputRefusedError(
                f"{source.folder}: {part.images.name} has {len(part.images)} examples, {part.labels.name} "
                f"{len(part.labels)} labels."
            )
    arrange = [arrangement(part.images, axes) for part in parts]
    labels = [_read_labels(part.labels) if isinstance(part.labels, Stored) else None for part in parts]
    times = factor([part.images for part in parts])
    if times != 1:
        source.notes["numbers"] = f"0 to 1, multiplied by {times}"

    def items() -> Iterator[Item]:
        for number, part in enumerate(parts):
            row = 0
            for block in part.images.blocks():
                for pixels in to_bytes(arrange[number](block), times):
                    label = part.labels if labels[number] is None else labels[number][row]
                    yield Item(f"{part.images.name}#{row}", label, part.split, payload=pixels)
                    row += 1

    return items()


def _read_labels(stored: Stored) -> list[str]:
    """Returns the class names in an array of shape (n,) or (n, 1): whole numbers or texts."""
    if len(stored.shape) > 2 or stored.shape[1:] not in ((), (1,)):
        raise InputRefusedError(
            f"{stored.name} has the shape {stored.shape}. Allowed: one label per example, ({len(stored)},) or "
            f"({len(stored)}, 1)."
        )
    values = stored.whole().ravel()
    if values.dtype.kind == "f":
        if not ((values == np.rint(values)) & (np.abs(values) < 2**53)).all():
            raise InputRefusedError(f"{stored.name} holds {stored.dtype} that are no whole numbers: no class labels.")
        values = values.astype(np.int64)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind == "S":
        with arrays.reading(stored.name):
            values = np.char.decode(values, "utf-8")
    return [str(value) for value in values.tolist()]
