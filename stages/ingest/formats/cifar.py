"""Reads CIFAR-10 and CIFAR-100, the version for Python (pickles, whose code is not run) and the binary version.

Source of both formats: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import arrays
from stages.ingest.formats.folders import printable
from stages.ingest.records import Item, Source

PIXELS = 3072  # bytes per picture: 32 x 32 of red, then of green, then of blue
FILE_BYTES = 512 * 2**20  # the largest original, CIFAR-100's train, has 155 MB
SPLITS = {"train": "train", "test": "test", "test_batch": "test"}  # data_batch_1 to 5: train
BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?$")
TUPLES = 1000  # in one pickle; the originals have about 10. Nested ones by the million end Python itself.


def find(source: Source, files: Sequence[str], chosen: Mapping[str, str]) -> Iterator[Item] | None:
    """Returns the pictures of CIFAR's files among ``files``; None if they are not there.

    ``columns: {label: coarse_labels}`` asks for the 20 coarse classes of CIFAR-100 instead of the 100 fine ones.

    Raises:
        ConfigurationError: another column is asked for.
        InputRefusedError: a file is damaged, or contains other Python objects than arrays, lists and texts.
    """
    names = {path.rpartition("/")[2]: path for path in files}
    batches = [path for path in files if BATCH.match(path.rpartition("/")[2])]
    hundred = not any("_batch" in path for path in batches)
    if hundred and not names.keys() & {"meta", "fine_label_names.txt"}:
        return None  # any file may be called train
    if not batches:
        return None
    column = source.columns.get("label", "fine_labels" if hundred else "labels")
    allowed = ("fine_labels", "coarse_labels") if hundred else ("labels",)
    if column not in allowed:
        raise ConfigurationError(f"columns.label = {column!r}. In these files of CIFAR there is: {', '.join(allowed)}.")
    source.notes["layout"] = f"CIFAR-{100 if hundred else 10}"
    classes = _classes(source.folder, names, column)

    def items() -> Iterator[Item]:
        for path in batches:
            name, shown = path.rpartition("/")[2].removesuffix(".bin"), printable(path)
            split = chosen.get(path) or SPLITS.get(name, "train")
            blocks = (
                _binary(source.folder, path, column)
                if path.endswith(".bin")
                else [_pickled(source.folder, path, column)]
            )
            row = 0
            for pixels, labels in blocks:
                for picture, label in zip(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, strict=True):
                    if not 0 <= label < len(classes):
                        raise InputRefusedError(f"{shown}#{row} has the label {label}; there are {len(classes)} names.")
                    yield Item(f"{shown}#{row}", classes[label], split, payload=picture)
                    row += 1

    return items()


def load(content: bytes, name: str) -> Any:
    """Returns the object in a pickle of arrays of bytes, dicts, lists, numbers and texts; texts of Python 2 as bytes.

    Nothing that the pickle names is imported or called: arrays are put together by ``_Array``.

    Raises:
        InputRefusedError: it holds anything else, or is damaged.
    """
    operations = tuples = 0
    try:
        for operation, argument, _ in pickletools.genops(content):
            operations += 1
            tuples += "TUPLE" in operation.name
            # A huge place in the memo would be allocated; its entries are numbered one after the other.
            if tuples > TUPLES or ("PUT" in operation.name and int(argument) > operations):
                raise InputRefusedError(f"{name} is no pickle of CIFAR: {operation.name} {argument}")
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except InputRefusedError as refusal:
        raise InputRefusedError(f"{name} {refusal}") from None
    except Exception as error:  # pickle raises nearly anything at hostile bytes
        raise InputRefusedError(f"{name} is no pickle of CIFAR: {str(error) or type(error).__name__}") from error


class _Array:
    """Takes the place of numpy.ndarray in a pickle."""

    def __init__(self, *_: object) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _assemble(content, dtype, shape, "F" if fortran else "C")


class _Type:
    """Takes the place of numpy.dtype in a pickle."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, _: tuple) -> None:
        pass  # byte order, which bytes do not have


def _assemble(content: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    if dtype.name != "u1" or math.prod(shape) != len(content) or min(shape, default=0) < 0:
        raise InputRefusedError(f"holds {len(content):,} bytes as an array {shape} of {dtype.name}; bytes are allowed")
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise InputRefusedError(f"holds a text in {encoding!r}")
    return text.encode("latin1")  # how Python 3 writes bytes for Python 2


ALLOWED = {("_codecs", "encode"): _encode, ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    ALLOWED |= {(f"{_core}.multiarray", "_reconstruct"): _Array, (f"{_core}.numeric", "_frombuffer"): _assemble}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise InputRefusedError(f"contains Python objects; refused: {module}.{name}")
        allowed = ALLOWED[module, name]
        return lambda *arguments: allowed(
            *arguments
        )  # a new one each time: a pickle can set attributes of what it gets


def _pickled(folder: Path, path: str, column: str) -> tuple[np.ndarray, list[int]]:
    """Returns pictures (n, 3072) and labels of a batch of the version for Python."""
    batch = load(_content(folder / path), path)
    if not isinstance(batch, dict):
        raise InputRefusedError(f"{path} holds {type(batch).__name__}, not CIFAR's dict")
    batch = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = batch.get("data"), batch.get(column)
    if isinstance(pixels, _Array):
        pixels = pixels.values
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (PIXELS,) or not isinstance(labels, list):
        raise InputRefusedError(f"{path} has no data (n, {PIXELS}) with {column}. It has: {list(batch)[:10]}")
    if len(pixels) != len(labels) or {type(label) for label in labels} - {int}:
        raise InputRefusedError(f"{path} has {len(pixels)} pictures and {len(labels)} {column}, or not whole numbers")
    return pixels, labels


def _binary(folder: Path, path: str, column: str) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yields pictures (n, 3072) and labels: rows of 3,073 bytes, or 3,074 (coarse label, fine label, pixels)."""
    before = 1 if column == "labels" else 2
    place = folder / path
    size = place.stat().st_size
    if size % (before + PIXELS):
        raise InputRefusedError(f"{path} has {size:,} bytes, which is no multiple of {before + PIXELS}")
    shape = (size // (before + PIXELS), before + PIXELS)
    rows = arrays.Stored(path, np.dtype(np.uint8), shape, 0, lambda: place.open("rb"))
    for block in rows.blocks():
        yield block[:, before:], block[:, 1 if column == "fine_labels" else 0].tolist()


def _classes(folder: Path, names: Mapping[str, str], column: str) -> list[str]:
    """Returns the class names of the meta file; the numbers as names without one."""
    texts = {"labels": "batches.meta.txt", "fine_labels": "fine_label_names.txt"}.get(column, "coarse_label_names.txt")
    if texts in names:
        with arrays.reading(names[texts]):
            return _content(folder / names[texts]).decode().split()
    pickled = "batches.meta" if column == "labels" else "meta"
    if pickled in names:
        meta = load(_content(folder / names[pickled]), names[pickled])
        key = "label_names" if column == "labels" else column.replace("labels", "label_names")
        found = meta.get(key.encode(), meta.get(key)) if isinstance(meta, dict) else None
        if not isinstance(found, list) or {type(name) for name in found} - {bytes, str}:
            raise InputRefusedError(f"{names[pickled]} has no list {key}")
        with arrays.reading(names[pickled]):
            return [name.decode() if isinstance(name, bytes) else name for name in found]
    return [str(number) for number in range(100)]


def _content(path: Path) -> bytes:
    if path.stat().st_size > FILE_BYTES:
        raise InputRefusedError(f"{path} has {path.stat().st_size:,} bytes; up to {FILE_BYTES:,} are read")
    return path.read_bytes()
