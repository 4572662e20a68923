"""Opens files that may be compressed, as streams that end in a refusal before they can fill memory or disk."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from convoy.errors import InputRefusedError

COMPRESSED = (".gz", ".bz2", ".xz")  # endings of files that are unpacked while they are read
CHUNK = 2**16  # bytes read at a time

# A bomb is judged while it unpacks, by what came out against what went in so far. Text gives 3 to 20 bytes for one,
# masks and empty volumes up to 200, a bomb of DEFLATE 1,000, one of bzip2 or xz far more.
RATIO = 200
FLOOR_BYTES = 64 * 2**20  # below it no ratio is too high: a small file of equal lines is no bomb; a second's work
TOTAL_BYTES = 64 * 2**30  # what one archive or file may unpack to; unpack larger data sets yourself
XZ_MEMORY = 128 * 2**20  # bytes; `xz -9` needs 65 MiB to unpack, a forged header asks for 4 GiB


class Budget:
    """Counts the bytes that come out of the compressed file ``path``; ``consumed`` tells how many went in."""

    def __init__(self, path: Path, consumed: Callable[[], int]) -> None:
        self._path = path
        self._consumed = consumed
        self._spent = 0

    def spend(self, count: int) -> None:
        """Counts ``count`` more bytes.

        Raises:
            InputRefusedError: they are too many.
        """
        self._spent += count
        if self._spent > TOTAL_BYTES:
            raise InputRefusedError(f"{self._path} unpacks to more than {TOTAL_BYTES / 2**30:.0f} GiB; stopped there.")
        if self._spent > FLOOR_BYTES and self._spent > RATIO * self._consumed():
            raise InputRefusedError(
                f"{self._path} unpacks to more than {RATIO} times its size, as a decompression bomb does; stopped "
                f"after {self._spent / 2**20:.0f} MiB. If you trust it, unpack it yourself and fetch the files."
            )


def open_bytes(path: Path) -> BinaryIO:
    """Opens a file for reading in binary, decompressed if its name ends with .gz, .tgz, .bz2 or .xz.

    Raises:
        InputRefusedError: on reading: it is damaged, cut off or beyond the budget.
    """
    if path.suffix.lower() not in DECODERS:
        return path.open("rb")
    return io.BufferedReader(_Decompressed(path), CHUNK)


class _Decompressed(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._stream = DECODERS[path.suffix.lower()](self._file)
        self._budget = Budget(path, self._file.tell)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputRefusedError(f"{self._path} is damaged or cut off: {error}") from error
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Xz:
    """Reads xz like ``lzma.LZMAFile``, which knows no limit of memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def read(self, count: int) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:  # another stream may follow, after zeros
                data = self._decoder.unused_data.lstrip(b"\0")
                while not data:
                    chunk = self._file.read(CHUNK)
                    if not chunk:
                        return b""
                    data = chunk.lstrip(b"\0")
                self._decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            elif self._decoder.needs_input:
                data = self._file.read(CHUNK)
                if not data:
                    raise EOFError("it ends before its end mark")
            result = self._decoder.decompress(data, count)
            if result:
                return result


DECODERS = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": _Xz,
}


def bare(file: str) -> str:
    """Returns the name of a file without the ending of its compression: train.csv.gz -> train.csv."""
    path = Path(file)
    return str(path.with_suffix("")) if path.suffix.lower() in COMPRESSED else file


def ending_of(file: str) -> str:
    """Returns the ending of a file in lower case, without that of its compression: A/Train.CSV.gz -> .csv."""
    name = file[file.rfind("/") + 1 :].lower()  # not with pathlib: of every file of a folder
    stem, dot, ending = name.rpartition(".")
    if dot + ending in COMPRESSED:
        stem, dot, ending = stem.rpartition(".")
    return dot + ending if stem and dot else ""
