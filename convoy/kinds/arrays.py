"""Arrays in files - .npy, .npz, IDX - read block by block, after what their headers announce has been checked."""

import gzip
import io
import math
import struct
import tokenize
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convoy.errors import InputRefusedError

BLOCK = 4 * 2**20  # bytes read at a time
WHOLE = 256 * 2**20  # bytes of what has to be in memory at once: labels, one row, an array in Fortran's order
EXPANSION = 250  # times its size a compressed file may announce. MNIST: 6, AdrenalMNIST3D: 126, a bomb of zeros: 1030


@dataclass(frozen=True)
class Stored:
    """An array in a file; only its header has been read.

    Attributes:
        name: says where it is, e.g. ``medmnist.npz[train_images]``.
        dtype: of numbers or texts, never of Python objects.
        shape: at least one axis.
        start: byte at which its content begins.
        open: opens the (unpacked) file.
        fortran: the first axis changes fastest.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    open: Callable[[], AbstractContextManager[BinaryIO]]
    fortran: bool = False

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def bytes(self) -> int:
        """The size that the header announces."""
        return self.dtype.itemsize * math.prod(self.shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the rows in order, some at a time: arrays of shape (some, ...).

        Raises:
            InputRefusedError: the file is damaged, or holds more or less than announced.
        """
        row = self.bytes // max(1, len(self))
        step = len(self) if self.fortran else max(1, BLOCK // max(1, row))
        if min(step, len(self)) * row > WHOLE and (self.fortran or row > WHOLE):
            raise InputRefusedError(
                f"{self.name}: {'in Fortran order, ' if self.fortran else 'one row of '}{row * step:,} bytes at once; "
                f"up to {WHOLE:,} are read. Save it with np.ascontiguousarray."
            )
        with reading(self.name), self.open() as file:
            file.read(self.start)
            for first in range(0, len(self), step):
                rows = min(step, len(self) - first)
                content = file.read(rows * row)
                if len(content) != rows * row:
                    raise InputRefusedError(f"{self.name} announces {self.shape} and is cut off at row {first}.")
                if self.fortran:
                    yield np.frombuffer(content, self.dtype).reshape(self.shape[::-1]).T
                else:
                    yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])
            if file.read(1):  # also makes gzip and zip compare their checksums
                raise InputRefusedError(f"{self.name} announces {self.shape} and holds more than that.")

    def whole(self) -> np.ndarray:
        """Returns all of it.

        Raises:
            InputRefusedError: it is damaged or larger than WHOLE.
        """
        if self.bytes > WHOLE:
            raise InputRefusedError(f"{self.name}: {self.bytes:,} bytes; up to {WHOLE:,} are read at once.")
        blocks = list(self.blocks())
        return np.concatenate(blocks) if blocks else np.empty(self.shape, self.dtype)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what a damaged file raises into InputRefusedError with its name."""
    try:
        yield
    except InputRefusedError:
        raise
    except Exception as error:  # gzip, zipfile and their decompressors raise some ten kinds
        raise InputRefusedError(f"{name} cannot be read: {str(error) or type(error).__name__}") from error


def open_npy(path: Path, name: str) -> Stored:
    """Returns the array of a .npy file, named ``name`` in messages.

    Raises:
        InputRefusedError: it is none, contains Python objects, or announces another size than it has.
    """
    with reading(name), path.open("rb") as file:
        return _npy(file, path.stat().st_size, name, lambda: path.open("rb"))


def npy_in(content: bytes) -> Stored:
    """Returns the array of the .npy file with this ``content``; as ``open_npy``."""
    return _npy(io.BytesIO(content), len(content), "the array", lambda: io.BytesIO(content))


def open_npz(path: Path, name: str) -> dict[str, Callable[[], Stored]]:
    """Returns array name -> function that opens it, of a .npz file.

    Raises:
        InputRefusedError: it is none, or announces more than WHOLE bytes and EXPANSION times its own size.
    """
    with reading(name), zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        total = sum(member.file_size for member in archive.infolist())
    check_expansion(name, total, path.stat().st_size)

    @contextmanager
    def unpacked(member: zipfile.ZipInfo) -> Iterator[BinaryIO]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield file

    def stored(key: str) -> Stored:
        member = members[f"{key}.npy"]
        with reading(f"{name}[{key}]"), unpacked(member) as file:
            return _npy(file, member.file_size, f"{name}[{key}]", lambda: unpacked(member))

    keys = [member.removesuffix(".npy") for member in members if member.endswith(".npy")]
    return {key: lambda key=key: stored(key) for key in keys}


def open_idx(path: Path, name: str, axes: int) -> Stored:
    """Returns the array of an IDX file of bytes (LeCun's format: 0, 0, type 8, axes, sizes as big-endian int32).

    Raises:
        InputRefusedError: it is none, or announces more than it can hold.
    """
    opener = partial(gzip.open if name.endswith(".gz") else open, path, "rb")
    with reading(name), opener() as file:
        header = file.read(4 + 4 * axes)
    if header[:4] != bytes([0, 0, 8, axes]) or len(header) != 4 + 4 * axes:
        raise InputRefusedError(f"{name} is not an IDX file of bytes with {axes} axes: it begins {header[:4]!r}.")
    shape = struct.unpack(f">{axes}i", header[4:])
    _check_shape(name, shape)
    stored = Stored(name, np.dtype(np.uint8), shape, len(header), opener)
    size = path.stat().st_size
    if name.endswith(".gz"):
        check_expansion(name, stored.bytes, size)
    elif len(header) + stored.bytes != size:
        raise InputRefusedError(f"{name} announces {shape} and does not hold just that many bytes: {size:,}.")
    return stored


def check_expansion(name: str, announced: int, size: int) -> None:
    """Raises InputRefusedError if a compressed file of ``size`` bytes announces what only a bomb does."""
    if announced > max(WHOLE, EXPANSION * size):
        raise InputRefusedError(
            f"{name} has {size:,} bytes and announces {announced:,}. Allowed: {WHOLE:,}, or {EXPANSION} times its size."
        )


def _npy(file: BinaryIO, size: int, name: str, opener: Callable[[], AbstractContextManager[BinaryIO]]) -> Stored:
    """Reads a .npy header (numpy.lib.format) from ``file``, which has ``size`` bytes in all."""
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # later ones are for tables with many columns
            raise InputRefusedError(f"{name} is a .npy file of version {version}. Allowed: (1, 0), a plain array.")
        with warnings.catch_warnings(action="ignore"):  # headers of Python 2
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (SyntaxError, tokenize.TokenError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise InputRefusedError(f"{name} is not a .npy file: {error}") from error
    if dtype.hasobject:
        raise InputRefusedError(f"{name} contains Python objects; refused. Save numbers: array.astype(...).")
    if dtype.kind not in "biufUS":
        raise InputRefusedError(f"{name} is of type {dtype}. Allowed: whole and floating-point numbers, bool, texts.")
    _check_shape(name, shape)
    stored = Stored(name, dtype, shape, file.tell(), opener, fortran and len(shape) > 1)
    if stored.start + stored.bytes != size:
        raise InputRefusedError(
            f"{name} announces {shape} of {dtype}, {stored.bytes:,} bytes, and has {size - stored.start:,}."
        )
    return stored


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if not shape or min(shape) < 0 or 0 in shape[1:]:
        raise InputRefusedError(f"{name} announces the shape {shape}. Allowed: a first axis of examples, no negatives.")


def arrangement(images: Stored, axes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that reshapes rows of ``images`` to (rows, [depth,] height, width[, channels])."""
    row = images.shape[1:]
    if len(row) == axes or (len(row) == axes + 1 and row[-1] in (1, 3, 4)):
        return lambda block: block
    if len(row) == axes + 1 and row[0] in (1, 3):  # channels first
        return lambda block: np.moveaxis(block, 1, -1)
    side = math.isqrt(row[0]) if len(row) == 1 else 0
    if axes == 2 and side and side * side == row[0]:  # flattened squares, as in Quick Draw
        return lambda block: block.reshape(-1, side, side)
    shape = "depth, height, width" if axes == 3 else "height, width"
    raise InputRefusedError(
        f"{images.name} has the shape {images.shape}. Allowed: (examples, {shape}); with 1, 3 or 4 channels last, or 1 "
        f"or 3 channels first{'; (examples, height * height)' if axes == 2 else ''}."
    )


def factor(images: list[Stored]) -> int:
    """Returns what numbers other than bytes, 16 bits and bool are multiplied with: 255 if all are within 0 and 1.

    Raises:
        InputRefusedError: they are not within 0 and 255 either.
    """
    high = None
    for stored in images:
        if stored.dtype.kind in "US":
            raise InputRefusedError(f"{stored.name} holds texts ({stored.dtype}), not pixels.")
        if stored.dtype.kind == "b" or stored.dtype.name in ("uint8", "uint16"):
            continue
        for block in stored.blocks():
            if not (block.min() >= 0 and block.max() <= 255):  # also if one is NaN
                raise InputRefusedError(
                    f"{stored.name} holds {stored.dtype} from {block.min()} to {block.max()}: no known range. Allowed: "
                    "0 to 1, 0 to 255, uint16."
                )
            high = max(block.max(), -1 if high is None else high)
    return 255 if high is not None and high <= 1 else 1


def to_bytes(block: np.ndarray, times: int) -> np.ndarray:
    """Returns ``block`` as uint8 or uint16."""
    if block.dtype.name in ("uint8", "uint16"):
        return block.astype(block.dtype.name, copy=False)  # in this machine's byte order
    if block.dtype.kind == "b":
        return block.astype(np.uint8) * 255
    if block.dtype.kind in "iu":
        return block.astype(np.uint8) * np.uint8(times)  # 255 is no int8
    return np.rint(block * times).astype(np.uint8)
