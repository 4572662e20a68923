"""The only storage format of examples: a folder of memory-mapped, checksummed arrays.

``write_shards`` splits a stream of examples over a few large files - per shard and per array one ``.npy`` - and
writes ``index.json`` last, so that a folder with an index is complete. ``Shards`` reads any rows in any order::

    train = Shards(Path("data/ingest/digits/train"))
    len(train), train.shape("image")        # 1168, (32, 32, 1)
    train[[5, 3, 900]]["image"]             # uint8, shape (3, 32, 32, 1)
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.errors import InputRefusedError, IntegrityError

Arrays = dict[str, np.ndarray]  # equal length along the first axis: one row per example

INDEX = "index.json"
SHARD_BYTES = 64 * 2**20  # large enough for DVC (one object each), small enough to be one writer's buffer


class ShardWriter:
    """Writes blocks of examples to a new folder, holding at most one shard and one block in memory.

    Use it as a context manager; the index, and with it the folder's validity, comes at the regular end.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._blocks: list[Arrays] = []
        self._buffered = 0
        self._shards: list[dict] = []
        self._kinds: dict[str, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()

    def append(self, block: Arrays) -> None:
        """Adds the rows of ``block``.

        Raises:
            ValueError: lengths within the block, or names, types or shapes against the first block, differ.
        """
        lengths = {name: len(array) for name, array in block.items()}
        kinds = {name: {"dtype": array.dtype.str, "shape": list(array.shape[1:])} for name, array in block.items()}
        self._kinds = self._kinds or kinds
        if len(set(lengths.values())) != 1 or kinds != self._kinds:
            raise ValueError(f"{self._folder}: a block of {kinds} with lengths {lengths} among {self._kinds}")
        self._blocks.append(block)
        self._buffered += next(iter(lengths.values()))
        row_bytes = sum(np.dtype(kind["dtype"]).itemsize * int(np.prod(kind["shape"])) for kind in kinds.values())
        rows = max(1, self._shard_bytes // row_bytes)
        while self._buffered >= rows:
            self._flush(rows)

    def close(self) -> None:
        """Writes what is buffered, then the index."""
        if self._buffered:
            self._flush(self._buffered)
        rows = sum(shard["rows"] for shard in self._shards)
        index = {"rows": rows, "arrays": self._kinds, "shards": self._shards}
        _write(self._folder / INDEX, json.dumps(index, indent=1).encode())

    def _flush(self, rows: int) -> None:
        joined = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._kinds}
        files = {}
        for name, array in joined.items():
            file = f"{name}-{len(self._shards):05d}.npy"
            path = self._folder / file
            np.save(path, np.ascontiguousarray(array[:rows]), allow_pickle=False)
            files[name] = {"file": file, "bytes": path.stat().st_size, "sha256": sha256(path)}
        self._shards.append({"rows": rows, "files": files})
        self._buffered -= rows
        self._blocks = [{name: array[rows:] for name, array in joined.items()}] if self._buffered else []


def write_shards(folder: Path, blocks: Iterable[Arrays], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes all ``blocks`` to a new ``folder``; each array keeps its type and the shape of its rows."""
    with ShardWriter(folder, shard_bytes) as writer:
        for block in blocks:
            writer.append(block)


class Shards(Sequence):
    """The examples of a folder written by ``write_shards``: memory-mapped, so that only the rows read cost memory.

    Args:
        folder: a folder with ``index.json``.
        verify: compare every file with its SHA-256 first; the price is one sequential read.

    Raises:
        InputRefusedError: the folder is missing or has no index (its writer did not finish).
        IntegrityError: a file is missing or not as it was written.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self._index = read_json(folder / INDEX)
        self.folder = folder
        self._shards: list[Arrays] = []
        for shard in self._index["shards"]:
            for file in shard["files"].values():
                _check(folder / file["file"], file["bytes"], file["sha256"] if verify else None)
            self._shards.append(
                {
                    name: np.load(folder / file["file"], mmap_mode="r", allow_pickle=False)
                    for name, file in shard["files"].items()
                }
            )
        self._ends = np.cumsum([shard["rows"] for shard in self._index["shards"]], dtype=np.int64)

    def __len__(self) -> int:
        return self._index["rows"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of one row of the array ``name``."""
        return tuple(self._index["arrays"][name]["shape"])

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> Arrays:
        """Copies the given rows, in the given order; a single number gives arrays without the first axis."""
        if isinstance(rows, int | np.integer):
            return {name: array[0] for name, array in self[np.asarray([rows])].items()}
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"row {rows.max()} of {self.folder}, which has {len(self)} rows")
        shard = np.searchsorted(self._ends, rows, side="right")
        result = {
            name: np.empty((len(rows), *kind["shape"]), kind["dtype"]) for name, kind in self._index["arrays"].items()
        }
        for number in np.unique(shard):
            place = np.flatnonzero(shard == number)
            arrays = self._shards[number]
            local = rows[place] - (self._ends[number] - len(next(iter(arrays.values()))))
            for name, array in arrays.items():
                result[name][place] = array[local]
        return result

    def blocks(self, rows: int) -> Iterator[Arrays]:
        """Yields all examples in order, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def column(self, name: str) -> np.ndarray:
        """Returns one array whole, shape (examples, ...): for labels and other small ones."""
        if not self._shards:
            raise InputRefusedError(f"{self.folder} has no examples.")
        return np.concatenate([shard[name] for shard in self._shards])


def read_json(path: Path) -> dict:
    """Returns what a stage wrote about its result.

    Raises:
        InputRefusedError: the file is missing: the stage did not run.
        IntegrityError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputRefusedError(f"{path} is missing: run the stage that writes it.") from None
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, size: int, digest: str | None) -> None:
    if not path.exists():
        raise IntegrityError(f"{path} is missing.")
    if path.stat().st_size != size or (digest is not None and sha256(path) != digest):
        raise IntegrityError(f"{path} was changed after it was written: it does not match {INDEX}.")


def _write(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
