"""Writes what ingest found: the shards of a split, and the tables beside them."""

from pathlib import Path

import numpy as np
import pandas as pd

from convoy.data.shards import Arrays, Shards, write_shards
from stages.ingest.decoding import FINGERPRINT
from stages.ingest.near import duplicates
from stages.ingest.previous import Known
from stages.ingest.reading import Found

GATHER_BYTES = 32 * 2**20  # copied at a time into the shards; bounds memory


def write_split(folder: Path, found: Found, known: Known, new: Shards, numbers: list[int], classes: list[str]) -> None:
    """Writes the shards of one split: arrays of new examples from ``new``, of known ones from the last output."""
    stores: list[Shards] = [new, *known.stores.values()]
    names = ["new", *known.stores]
    place = np.empty((len(numbers), 2), np.int64)  # store, row
    for i, number in enumerate(numbers):
        content = found.contents[number]
        if content in found.rows:
            place[i] = 0, found.rows[content]
        else:
            split, row = known.place[content]
            place[i] = names.index(split), row
    number_of = {label: number for number, label in enumerate(classes)}
    labels = np.array([number_of.get(found.labels[number], -1) for number in numbers], np.int64)
    step = max(1, GATHER_BYTES // max(store.row_bytes for store in stores))

    def block(start: int) -> Arrays:
        rows = place[start : start + step]
        result: Arrays = {"label": labels[start : start + step]} if classes else {}
        for store, shards in enumerate(stores):
            chosen = np.flatnonzero(rows[:, 0] == store)
            for name in set(shards.names) - {"label", FINGERPRINT} if chosen.size else ():
                if name not in result:
                    result[name] = shards.empty(name, len(rows))
                shards.copy(name, rows[chosen, 1], result[name], chosen)
        return {name: result[name] for name in sorted(result)}

    write_shards(folder, map(block, range(0, len(numbers), step)))


def write_tables(
    output: Path,
    found: Found,
    kept: list[int],
    splits: list[str | None],
    pairs: np.ndarray,
    refused: list[tuple[str, str]],
    doubles: list[tuple],
) -> None:
    """Writes manifest.parquet, quarantine.csv and duplicates.csv."""
    groups = duplicates.group(len(kept), pairs)
    alone = np.bincount(groups, minlength=len(kept))[groups] == 1
    rows = [row for row in zip(kept, splits, np.where(alone, -1, groups), strict=True) if row[1]]
    columns: dict[str, list] = {
        "path": [found.paths[number] for number, _, _ in rows],
        "label": [found.labels[number] for number, _, _ in rows],
        "split": [split for _, split, _ in rows],
        "sha256": [found.contents[number].hex() for number, _, _ in rows],
        # The SHA-256 of the first of its near copies; "" for an example without any.
        "near": ["" if group < 0 else found.contents[kept[group]].hex() for _, _, group in rows],
    }
    if not any(columns["label"]):
        del columns["label"]
    facts = zip(*(found.facts[number] for number, _, _ in rows), strict=True)
    columns |= {name: list(values) for name, values in zip(found.names, facts, strict=True)}
    pd.DataFrame(columns).to_parquet(output / "manifest.parquet", index=False)
    pd.DataFrame(refused, columns=["path", "reason"]).to_csv(output / "quarantine.csv", index=False)
    names = ["path", "same_as", "how", "label", "other_label"]
    pd.DataFrame(doubles, columns=names).to_csv(output / "duplicates.csv", index=False)
