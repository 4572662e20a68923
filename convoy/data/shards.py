"""The only storage format of examples: a folder of memory-mapped, checksummed arrays.

``write_shards`` splits a stream of examples over a few large files - per shard and per array one ``.npy``, texts as
UTF-8 bytes and where each ends - and writes ``index.json`` last, so that a folder with an index is complete. ``Shards``
reads any rows in any order, from a stage or from a notebook::

    train = Shards("data/ingest/digits/train")
    len(train), train.shape("image")        # 1144, (32, 32, 1)
    train[[5, 3, 900]]["image"]             # numpy: uint8, shape (3, 32, 32, 1); only these rows cost memory
    train.table()                           # pandas: the rows of the manifest, in the same order
    for block in train.batches(128, seed=1): ...          # shuffled; block["image"], block["label"]
    torch.utils.data.DataLoader(train, batch_size=128, shuffle=True)   # it is a map-style dataset
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convoy.checksums import sha256
from convoy.errors import InputRefusedError, IntegrityError
from convoy.files import read_sealed, write_sealed

if TYPE_CHECKING:
    import pandas as pd

Arrays = dict[str, np.ndarray]  # equal lengths: one row per example; texts are arrays of str objects

INDEX = "index.json"
SHARD_BYTES = 64 * 2**20  # large enough for DVC (one object each), small enough to be one writer's buffer
FEW = 8  # rows that a run of neighbours must have on average to be copied as a run
TEXTS = 10_000  # that are in memory at once where all are read


class ShardWriter:
    """Writes blocks of examples to a new folder, holding at most one shard and one block in memory.

    Use it as a context manager; the index, and with it the folder's validity, comes at the regular end.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._blocks: list[Arrays] = []
        self._sizes: list[np.ndarray] = []  # bytes of every buffered row, a text by its characters
        self._buffered = 0  # bytes of all of them
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
        kinds = {name: _kind(array) for name, array in block.items()}
        self._kinds = self._kinds or kinds
        if len(set(lengths.values())) != 1 or kinds != self._kinds:
            raise ValueError(f"{self._folder}: a block of {kinds} with lengths {lengths} among {self._kinds}")
        sizes = np.full(next(iter(lengths.values())), sum(map(_row_bytes, kinds.values())), np.int64)
        for name, kind in kinds.items():
            if kind["dtype"] == "text":
                sizes += [len(text) for text in block[name]]
        self._blocks.append(block)
        self._sizes.append(sizes)
        self._buffered += int(sizes.sum())
        while self._buffered > self._shard_bytes:
            ends = np.cumsum(np.concatenate(self._sizes))
            # As many as fit, whatever the blocks are; one, if it is larger than a shard.
            if (rows := max(1, int(np.searchsorted(ends, self._shard_bytes, side="right")))) == len(ends):
                break
            self._flush(rows)

    def close(self) -> None:
        """Writes what is buffered, then the index."""
        if rows := sum(map(len, self._sizes)):
            self._flush(rows)
        rows = sum(shard["rows"] for shard in self._shards)
        write_sealed(self._folder / INDEX, {"rows": rows, "arrays": self._kinds, "shards": self._shards})

    def _flush(self, rows: int) -> None:
        """Writes the first ``rows`` buffered ones as a shard."""
        taken, missing = [], rows
        while missing:
            block = self._blocks.pop(0)
            length = len(next(iter(block.values())))
            if length > missing:
                self._blocks.insert(0, {name: array[missing:] for name, array in block.items()})
                block, length = {name: array[:missing] for name, array in block.items()}, missing
            taken.append(block)
            missing -= length
        number, files = len(self._shards), {}
        for name, kind in self._kinds.items():
            parts = [block[name] for block in taken]
            if kind["dtype"] == "text":
                encoded = [text.encode() for part in parts for text in part]
                ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
                files[name] = self._save(f"{name}-{number:05d}.npy", [np.frombuffer(b"".join(encoded), np.uint8)])
                files[f"{name} ends"] = self._save(f"{name}-{number:05d}-ends.npy", [ends])
            else:
                files[name] = self._save(f"{name}-{number:05d}.npy", parts)
        self._shards.append({"rows": rows, "files": files})
        self._sizes = [np.concatenate(self._sizes)[rows:]]
        self._buffered = int(self._sizes[0].sum())

    def _save(self, name: str, parts: list[np.ndarray]) -> dict:
        """Writes ``parts`` as one .npy file, hashing on the way; returns its entry of the index."""
        first, digest, size = parts[0], hashlib.sha256(), 0
        shape = (sum(len(part) for part in parts), *first.shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        with (self._folder / name).open("wb") as file, ThreadPoolExecutor(1) as hasher:
            for piece in (
                buffer.getvalue(),
                *(np.ascontiguousarray(part).data.cast("B") for part in parts if part.size),
            ):
                hashed = hasher.submit(digest.update, piece)  # while it is written
                size += file.write(piece)
                hashed.result()
        return {"file": name, "bytes": size, "sha256": digest.hexdigest()}


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

    def __init__(self, folder: Path | str, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        self._index = read_sealed(self.folder / INDEX)
        self._shards: list[Arrays] = []
        files = [file for shard in self._index["shards"] for file in shard["files"].values()]
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(
                    lambda file: _check(self.folder / file["file"], file["bytes"], verify and file["sha256"]), files
                )
            )
        for shard in self._index["shards"]:
            self._shards.append(
                {
                    name: np.load(self.folder / file["file"], mmap_mode="r", allow_pickle=False)
                    for name, file in shard["files"].items()
                }
            )
        self._ends = np.cumsum([shard["rows"] for shard in self._index["shards"]], dtype=np.int64)

    def __len__(self) -> int:
        return self._index["rows"]

    @property
    def row_bytes(self) -> int:
        """What one example takes on average, in bytes; 1 where there are none."""
        size = sum(file["bytes"] for shard in self._index["shards"] for file in shard["files"].values())
        return max(1, size // max(1, len(self)))

    @property
    def names(self) -> list[str]:
        """The names of the arrays; none where there are no examples."""
        return list(self._index["arrays"])

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
        return {name: self.take(name, rows) for name in self.names}

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Copies the given rows, none negative, of one array."""
        result = self.empty(name, len(rows))
        self.copy(name, rows, result, np.arange(len(rows)))
        return result

    def empty(self, name: str, rows: int) -> np.ndarray:
        """Returns an array for ``rows`` rows of the array ``name``."""
        kind = self._index["arrays"][name]
        return np.empty((rows, *kind["shape"]), object if kind["dtype"] == "text" else kind["dtype"])

    def copy(self, name: str, rows: np.ndarray, target: np.ndarray, places: np.ndarray) -> None:
        """Copies the given rows, none negative, of one array to ``places`` of ``target``."""
        shard = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(shard):
            chosen = shard == number
            place, local = places[chosen], rows[chosen] - (self._ends[number] - self._index["shards"][number]["rows"])
            breaks = np.flatnonzero((np.diff(local) != 1) | (np.diff(place) != 1)) + 1
            if len(breaks) * FEW > len(place):
                target[place] = self._rows(number, name, local)
                continue
            for first, last in zip([0, *breaks], [*breaks, len(place)], strict=True):  # copied once, not row by row
                run = slice(local[first], local[last - 1] + 1)
                target[place[first] : place[last - 1] + 1] = self._rows(number, name, run)

    def blocks(self, rows: int) -> Iterator[Arrays]:
        """Yields all examples in order, ``rows`` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def batches(self, size: int, *, seed: int | Sequence[int]) -> Iterator[Arrays]:
        """Yields all examples once, ``size`` at a time, in an order that follows from ``seed``.

        For tf.data: ``tf.data.Dataset.from_generator(lambda: train.batches(128, seed=1), output_signature=...)``.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), size):
            yield self[order[start : start + size]]

    def __getitems__(self, rows: list[int]) -> list[Arrays]:
        """Returns single examples, read together: how PyTorch's DataLoader asks a map-style dataset for a batch."""
        block = self[rows]
        return [{name: array[number] for name, array in block.items()} for number in range(len(rows))]

    def column(self, name: str) -> np.ndarray:
        """Returns one array whole, shape (examples, ...): for labels and other small ones."""
        self._some()
        return np.concatenate([self._rows(number, name, slice(None)) for number in range(len(self._shards))])

    def texts(self, name: str) -> Iterator[str]:
        """Yields the texts of one array in order and holds few of them in memory at once."""
        self._some()
        for number, shard in enumerate(self._index["shards"]):
            for start in range(0, shard["rows"], TEXTS):
                yield from self._rows(number, name, slice(start, start + TEXTS))

    def text_bytes(self, name: str) -> np.ndarray:
        """Returns how many bytes each text of one array has, int64 of shape (examples,), without reading them."""
        self._some()
        return np.concatenate([np.diff(shard[f"{name} ends"], prepend=0) for shard in self._shards])

    def contents(self) -> list[bytes]:
        """Returns the SHA-256 of what each example shows, 32 bytes each."""
        joined = self.column("content").tobytes()
        return [joined[start : start + 32] for start in range(0, len(joined), 32)]

    def table(self) -> "pd.DataFrame":
        """Returns the manifest's row - path, label, split, sizes, flags - of each example, in order, joined by content.

        For a split of data/ingest, and for data/augment, whose changed copies have the row of their original.
        """
        import pandas as pd  # half a second that worker processes, which read no table, are spared

        dataset = self.folder.parent.name
        manifest = pd.read_parquet(self.folder.parents[2] / "ingest" / dataset / "manifest.parquet")
        return manifest.set_index("sha256", drop=False).loc[[c.hex() for c in self.contents()]].reset_index(drop=True)

    def _some(self) -> None:
        if not self._shards:
            raise InputRefusedError(f"{self.folder} has no examples.")

    def _rows(self, number: int, name: str, rows: slice | np.ndarray) -> np.ndarray:
        shard = self._shards[number]
        if self._index["arrays"][name]["dtype"] != "text":
            return shard[name][rows]
        ends = shard[f"{name} ends"]
        starts = np.concatenate([[0], ends[:-1]])
        texts = [bytes(shard[name][a:b]).decode() for a, b in zip(starts[rows], ends[rows], strict=True)]
        return objects(texts)


def spread(count: int, most: int) -> np.ndarray:
    """Returns the numbers of up to ``most`` of ``count`` rows, evenly spaced, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def objects(values: Iterable[Any]) -> np.ndarray:
    """Returns texts and the like as an array of objects, of shape (values,), and not of one string type."""
    return np.array([*values, None], object)[:-1]


def _kind(array: np.ndarray) -> dict:
    """Returns an array's entry of the index."""
    if array.dtype == object:
        if array.ndim != 1 or not all(isinstance(text, str) for text in array):
            raise ValueError("an array of Python objects that are no texts (allow_pickle is never used)")
        return {"dtype": "text", "shape": []}
    return {"dtype": array.dtype.str, "shape": list(array.shape[1:])}


def _row_bytes(kind: dict) -> int:
    return 0 if kind["dtype"] == "text" else np.dtype(kind["dtype"]).itemsize * int(np.prod(kind["shape"]))


def _check(path: Path, size: int, digest: str | bool) -> None:
    if not path.exists():
        raise IntegrityError(f"{path} is missing.")
    if path.stat().st_size != size or (digest and sha256(path) != digest):
        raise IntegrityError(f"{path} was changed after it was written: it does not match {INDEX}.")
