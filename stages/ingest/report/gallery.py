"""Shows single examples, and reads only these from the shards."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from convoy import kinds
from convoy.data.shards import Shards, objects, spread
from convoy.pages.page import picture
from stages.ingest.report.values import FEW, extremes

# Caps that keep the page below 3 MB: 500 pictures of noise, the least compressible, are 2.9 MB.
TILE = 80  # pixels, height of a picture on the page
TILES, CLASSES = 300, 50  # examples on the page, and classes that show any
AVERAGED = 100  # examples in the average of a class
READ = 64 * 2**20  # bytes, for all averages together
BLOCK = 2**12  # sources read at a time


@dataclass(frozen=True, slots=True)
class View:
    """One example as the page shows it: a picture (``src``) or texts, or its name alone if it was left out.

    Attributes:
        path: as in the manifest.
        label: "" if it has none.
        split: "" if it was left out.
        texts: one, or a pair.
        src: the picture, as a data: URI.
        width: of the picture on the page, in CSS pixels.
        height: likewise.
        enlarged: its own pixels are smaller.
    """

    path: str
    label: str
    split: str = ""
    texts: tuple[str, ...] = ()
    src: str = ""
    width: int = 0
    height: int = 0
    enlarged: bool = False


class Gallery:
    """Shows single examples, by their position in the manifest; only these are read from the shards."""

    def __init__(self, folder: Path, manifest: pd.DataFrame, kind: kinds.Kind) -> None:
        # Written a moment ago by the same process; verifying would read all of it.
        self._shards = {split: Shards(folder / split, verify=False) for split in manifest["split"].unique()}
        self._rows = manifest.groupby("split").cumcount().to_numpy()
        self._positions = pd.Index(manifest["path"], dtype=object)
        labels = manifest["label"] if "label" in manifest else [""] * len(manifest)
        self._names = list(zip(manifest["path"], labels, manifest["split"], strict=True))
        self._shown = kind.arrays
        self.pictures = not kind.is_text

    def view(self, position: int) -> View:
        """Returns the example at ``position``."""
        name = self._names[position]
        example = [self._shards[name[-1]].take(array, self._rows[[position]])[0] for array in self._shown]
        return View(*name, (), *picture(*example, TILE)) if self.pictures else View(*name, tuple(example))

    def positions(self, paths: Iterable[str]) -> np.ndarray:
        """Returns where the examples of these ``paths`` are in the manifest; -1: left out."""
        return self._positions.get_indexer(objects(paths))

    def named(self, path: str, label: str) -> View:
        """Returns the example ``path``, or if it was left out, what is known of it."""
        position = self.positions([path])[0]
        return View(path, label) if position < 0 else self.view(position)

    def sources(self, split: str) -> np.ndarray:
        """Returns a hash of each source of the sentence pairs of ``split``: uint64, (examples,)."""
        shards = self._shards[split]
        rows = (np.arange(first, min(first + BLOCK, len(shards))) for first in range(0, len(shards), BLOCK))
        digests = [
            hashlib.blake2b(text.encode(), digest_size=8).digest()
            for some in rows
            for text in shards.take("source", some)
        ]
        return np.frombuffer(b"".join(digests), np.uint64)

    def averaged(self, classes: int) -> int:
        """Returns how many examples of each of the ``classes`` go into its average; 0: texts, or too large."""
        train = self._shards["train"]
        count = min(AVERAGED, READ // (train.row_bytes * classes)) if self.pictures else 0
        return count if count >= FEW else 0

    def average(self, positions: np.ndarray) -> View:
        """Returns the average of the training examples at ``positions``."""
        train, rows = self._shards["train"], self._rows[positions]
        step = max(1, 2**22 // train.row_bytes)  # 4 MiB at a time
        parts = (train.take(self._shown[0], rows[first : first + step]) for first in range(0, len(rows), step))
        total = sum(part.sum(axis=0, dtype=np.float64) for part in parts)
        return View("", "", "", (), *picture((total / len(rows)).round().astype(np.uint8), TILE))


def choose_samples(about: dict, manifest: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns examples of each class, evenly spaced over its training rows: neighbours are often of one scene."""
    train = np.flatnonzero(manifest["split"] == "train")
    classes = about["classes"] or [""]
    chosen = extremes(about["counts"]["train"], CLASSES) if about["classes"] else {""}
    most = min(kinds.get(about["kind"]).per_class, TILES // len(chosen))
    averaged = gallery.averaged(len(chosen))
    codes = pd.Categorical(manifest["label"].to_numpy()[train], classes).codes if about["classes"] else 0 * train
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(classes) + 1))
    result = []
    for number, label in enumerate(classes):
        if label in chosen:
            rows = train[order[ends[number] : ends[number + 1]]]
            average = gallery.average(rows[:averaged]) if averaged and len(rows) >= FEW else None
            views = [gallery.view(row) for row in _spread(rows, most)]
            result.append({"label": label, "count": len(rows), "average": average, "views": views})
    return {"classes": result, "averaged": averaged, "left": len(classes) - len(result)}


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[spread(len(rows), most)]
