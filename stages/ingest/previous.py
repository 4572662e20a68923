"""What the last run of ingest found out about each example, so that only new ones are decoded.

It lies in data/ingest/.cache/<dataset>, outside DVC's outputs, and may be deleted at any time: the next run then
decodes everything again, with the same result. It holds no pictures; those of known examples are copied from the shards
of the last output, which DVC leaves in place (``persist: true``).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from convoy.checksums import sha256
from convoy.data.shards import Shards
from convoy.errors import InputRefusedError, IntegrityError
from convoy.files import read_sealed, write_sealed

COLUMNS = ("stat", "digest", "path", "reason", "content", "place")
COARSE = 10**8  # nanoseconds; clocks of file systems tick every 1 to 10 ms, some network ones slower
FINGERPRINTS = "fingerprints.npy"
FILES = ("examples.parquet", FINGERPRINTS, "pairs.npy")


@dataclass
class Known:
    """The examples that were read, in the order in which they were: accepted, refused and duplicate ones.

    Attributes:
        table: ``stat`` (of its files, "" for a part of one), ``digest`` (SHA-256 of its bytes), ``path``, ``reason``
            (why it was refused, "" if it was not), ``content``, ``place`` (its row of ``fingerprints``, -1: none), and
            a column per fact.
        fingerprints: uint8, a row per content that was looked at for near copies; each was compared with each.
        pairs: (pairs, 2), rows of ``fingerprints`` that are near copies.
        stores: where arrays of the last output are: split -> its shards.
        place: content -> (split, row).
    """

    table: pd.DataFrame
    fingerprints: np.ndarray
    pairs: np.ndarray
    stores: dict[str, Shards]
    place: dict[bytes, tuple[str, int]]

    def __post_init__(self) -> None:
        self.by_stat = {
            (path, stat): row
            for row, (path, stat) in enumerate(zip(self.table["path"], self.table["stat"], strict=True))
            if stat
        }
        self.by_digest = {digest: row for row, digest in enumerate(self.table["digest"]) if digest}


def nothing() -> Known:
    """Returns what a first run knows."""
    table = pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    return Known(table, np.zeros((0, 0), np.uint8), np.zeros((0, 2), np.int64), {}, {})


def load(cache: Path, output: Path, key: str, splits: Iterable[str]) -> Known:
    """Returns what is known of the last run, or nothing if its key (options, code, libraries) or any file differs."""
    try:
        facts = read_sealed(cache / "key.json")
        if facts["key"] != key or facts["files"] != {name: sha256(cache / name) for name in FILES}:
            return nothing()
        if read_sealed(output / "key.json")["key"] != key:  # another version was checked out since
            return nothing()
        stores = {split: Shards(output / split) for split in splits}
    except (InputRefusedError, IntegrityError, OSError):
        return nothing()
    place = {}
    for split, shards in stores.items():
        if len(shards):
            place |= {content: (split, row) for row, content in enumerate(shards.contents())}
    return Known(
        pd.read_parquet(cache / FILES[0]),
        np.load(cache / FILES[1], mmap_mode="r"),
        np.load(cache / FILES[2]),
        stores,
        place,
    )


def save(cache: Path, key: str, table: pd.DataFrame, scratch: Path, pairs: np.ndarray) -> None:
    """Keeps what this run found out; the key comes last.

    Args:
        cache: where to.
        key: see ``load``.
        table: see ``Known``.
        scratch: folder on the same file system, from which the fingerprints are taken; there may be none.
        pairs: see ``Known``.
    """
    if not (scratch / FINGERPRINTS).exists():
        np.save(scratch / FINGERPRINTS, np.zeros((0, 0), np.uint8))
    table.to_parquet(scratch / FILES[0], index=False)
    np.save(scratch / FILES[2], pairs)
    (cache / "key.json").unlink(missing_ok=True)
    for name in FILES:
        (scratch / name).replace(cache / name)
    write_sealed(cache / "key.json", {"key": key, "files": {name: sha256(cache / name) for name in FILES}})


def stat_of(folder: str, files: Iterable[str], now: int) -> str:
    """Returns what changes when a file is written, renamed over or replaced: size, both times, and inode.

    The same facts by which git decides whether to read a file again; the time of the last change of the inode
    (ctime) cannot be set back. Where it is as young as the clock is coarse, another change could leave it as it is:
    the answer is then "", and the file is read again next time.

    Args:
        folder: where the files are.
        files: one or more.
        now: nanoseconds since 1970, before any file was read.

    Raises:
        OSError: a file cannot be looked at.
    """
    facts = []
    for file in files:
        stat = os.stat(f"{folder}/{file}")  # noqa: PTH116 - a tenth of the time of pathlib's, once per file
        if stat.st_ctime_ns > now - COARSE:
            return ""
        facts.append(f"{stat.st_size}.{stat.st_mtime_ns}.{stat.st_ctime_ns}.{stat.st_ino}")
    return " ".join(facts)
