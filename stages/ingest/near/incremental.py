"""Searches near copies of new examples alone; the pairs of those that the last run knew stay as they were."""

import os
from pathlib import Path

import numpy as np

from convoy import kinds
from convoy.data.shards import Shards
from convoy.kinds.fingerprints import HASHES
from stages.ingest.decoding import FINGERPRINT
from stages.ingest.near import description, duplicates, pictures, texts
from stages.ingest.previous import Known
from stages.ingest.reading import Found

GATHER_ROWS = 2**15  # fingerprints copied at a time


def find_near(
    found: Found, kept: list[int], known: Known, new: Shards, kind: str, path: Path, title: str
) -> tuple[np.ndarray, int]:
    """Returns the near copies among the ``kept`` - (pairs, 2), places in it -, and how many of these were compared.

    Volumes have no fingerprints, and pictures without detail and texts without words take no part. Writes all
    fingerprints to ``path``. Pairs of two examples that the last run knew are not looked for again.
    """
    places = zip(known.table["content"], known.table["place"], strict=True)
    former = {content: place for content, place in places if place >= 0}
    contents = [found.contents[number] for number in kept]
    fresh = [place for place, content in enumerate(contents) if content not in former]
    if FINGERPRINT not in new.names and not known.fingerprints.size:
        return np.zeros((0, 2), np.int64), 0
    pictorial = kinds.get(kind).axes == 2
    describe, search = (description.describe, pictures.find_pairs) if pictorial else (np.asarray, texts.find_pairs)
    width = description.DESCRIBED if pictorial else 4 * HASHES
    # In a file: a kilobyte for each of a million examples need not be in memory, and is to be kept anyway.
    prints = np.lib.format.open_memmap(path, "w+", np.uint8, (len(kept), width))
    if hasattr(os, "posix_fallocate"):  # a full disk would else end the process, by SIGBUS, when a page is written
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    compared = 0
    for start in range(0, len(kept), GATHER_ROWS):
        part, target = contents[start : start + GATHER_ROWS], prints[start : start + GATHER_ROWS]
        rows = np.array([former.get(content, -1) for content in part])
        if known.fingerprints.size:
            np.take(known.fingerprints, rows, axis=0, out=target, mode="clip")
        if FINGERPRINT in new.names:
            rows = np.array([-1 if content in former else found.rows[content] for content in part])
            target[rows >= 0] = describe(new.take(FINGERPRINT, rows[rows >= 0]))
        compared += int(duplicates.take_part(target).sum())
    where, earlier = {content: place for place, content in enumerate(contents)}, list(former)
    again = [(where.get(earlier[a], -1), where.get(earlier[b], -1)) for a, b in known.pairs.tolist()]
    again = [(a, b) for a, b in again if a >= 0 <= b]
    pairs = search(prints, np.array(fresh, np.int64), title) if fresh else np.zeros((0, 2), np.int64)
    pairs = np.sort(np.concatenate([pairs, np.array(again, np.int64).reshape(-1, 2)]), axis=1)
    return np.unique(pairs, axis=0), compared
