"""Makes more training examples: data/ingest/<dataset>/train -> data/augment/<dataset>. Val and test stay."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from itertools import chain, starmap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from convoy import dependencies
from convoy.data import vocabulary
from convoy.data.shards import Arrays, Shards, write_shards
from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError
from convoy.files import read_sealed, scratch_folder, swap_folder, write_sealed
from convoy.machine import workers
from convoy.machine.progress import track
from stages.augment.draws import Draws
from stages.augment.entry import Augment

BLOCK_PIXELS = 2**20  # changed at a time; with some 60 bytes of intermediate results for each, bounds memory
TEXTS = 4096  # texts or pairs changed at a time
SMALL = 1000  # copies below which threads are used: starting processes takes longer


def augment(dataset: str, entry: Augment) -> None:
    """Reads the training split of data/ingest/<dataset>; writes it and its changed copies to data/augment/<dataset>.

    ``train/`` holds the original examples, then ``copies`` changed versions of each, with the same ``label`` and
    ``content``; ``about.json`` tells train what the labels mean, how pictures were prepared, and which words,
    characters and subwords the original texts consist of. The functions are in ``images.py``, ``volumes.py`` and
    ``text.py``; of a sentence pair the source is changed, and the target stays its translation.

    A copy follows from the seed, its number and the content of its original alone. So those of examples that were
    there before are copied from the former output, with the same result, byte by byte.

    Args:
        dataset: name of the data set.
        entry: its entry of params.yaml.

    Raises:
        ConfigurationError: an option is for another kind of data; ``flip`` names a class that the data set does not
            have; ``turn`` an axis whose two others differ; voxels are to ``shift`` by a part of one; there
            cannot be so many ``subwords``.
    """
    copies, seed, flip = entry.copies, entry.seed, entry.flip
    where, source, target = f"augment.{dataset}", Path("data/ingest", dataset), Path("data/augment", dataset)
    about = read_sealed(source / "about.json")
    kind, classes = about["kind"], about["classes"]
    changer = import_module(f"stages.augment.{kind}")
    _check(where, about, entry, changer)
    train = Shards(source / "train")
    options = {key: getattr(entry, key) for key in changer.OPTIONS}
    facts = {"dataset": dataset, "kind": kind, "classes": classes}
    if changer.SIZED:
        facts["options"] = {key: about["options"][key] for key in ("size", "mode", "fit")}
    else:
        columns = [column for column in ("text", "source", "target") if column in train.names]
        facts["vocabulary"] = {column: vocabulary.describe(_texts(train, column), entry.subwords) for column in columns}
    # With that of ingest: the same content is stored as another picture in another size, mode or fit.
    changes = options | {"seed": seed, "ingest": read_sealed(source / "key.json")["key"]}
    if options.get("insert"):
        words, counts = zip(*facts["vocabulary"][changer.ARRAY]["words"], strict=True)
        options |= {"words": words, "frequency": np.cumsum(counts) / sum(counts)}
        changes |= {"words": [words, counts]}  # more data, other words
    elif "insert" in options:
        options |= {"words": (), "frequency": np.zeros(0)}
    key = _key(changes)
    known = _known(target, key)
    contents, mirrored = train.contents(), np.zeros(len(train), bool)
    if flip:
        mirrored = np.isin(classes, flip)[train.column("label")]
    former = np.array([known.rows.get(pair, -1) for pair in zip(contents, mirrored.tolist(), strict=True)])
    step = max(1, BLOCK_PIXELS // math.prod(train.shape(changer.ARRAY))) if changer.SIZED else TEXTS
    starts = [(copy, start) for copy in range(copies) for start in range(0, len(train), step)]

    def new(copy: int, start: int) -> np.ndarray:
        """Returns the rows of a block whose changed copy does not lie in the former output."""
        rows = np.arange(start, min(start + step, len(train)))
        return rows[former[rows] < 0] if copy < known.copies else rows

    def tasks() -> Iterator[tuple[np.ndarray, np.ndarray, list[bytes]]]:
        for copy, start in starts:
            if (rows := new(copy, start)).size:
                keys = [b"%d %d " % (seed, copy) + contents[row] for row in rows]
                yield train.take(changer.ARRAY, rows), mirrored[rows], keys

    total = sum(new(copy, start).size for copy, start in starts)
    with scratch_folder(target.parent / ".cache" / dataset) as scratch:
        output = scratch / "output"
        with workers.executor(total < SMALL, __name__) as pool:
            changed = workers.map_ahead(pool, _change, tasks(), kind, options)

            def copies_of(copy: int, start: int) -> Arrays:
                rows, fresh = np.arange(start, min(start + step, len(train))), new(copy, start)
                block = {name: train.take(name, rows) for name in train.names if name != changer.ARRAY}
                result = block[changer.ARRAY] = train.empty(changer.ARRAY, len(rows))
                if fresh.size:
                    result[fresh - start] = next(changed)
                old = np.setdiff1d(rows, fresh, assume_unique=True)
                if old.size:
                    known.output.copy(changer.ARRAY, (copy + 1) * known.n + former[old], result, old - start)
                return {name: block[name] for name in train.names}

            tracked = track(starts, f"augment@{dataset}", "examples", len(starts) * step, step)
            write_shards(output / "train", chain(train.blocks(step), starmap(copies_of, tracked)))
        write_sealed(output / "about.json", facts)
        write_sealed(output / "key.json", {"key": key, "copies": copies, "flip": flip})
        swap_folder(output, target)
    print(f"{target}: {len(train):,} training examples and {copies} changed copies of each; {total:,} copies were new")


def _texts(train: Shards, column: str) -> Iterator[str]:
    """Yields one column of all examples, in bounded memory."""
    for block in train.blocks(TEXTS):
        yield from block[column]


def _check(where: str, about: dict[str, Any], entry: Augment, changer: ModuleType) -> None:
    """Raises ConfigurationError for options that the data set has no use for."""
    allowed = (*changer.OPTIONS, *(() if changer.SIZED else ("subwords",)))
    changed = [key for key, field in Augment.model_fields.items() if getattr(entry, key) != field.default]
    if foreign := [key for key in changed if key not in ("copies", "seed", *allowed)]:
        raise ConfigurationError(
            f"{where}: {', '.join(foreign)} cannot change {about['kind']}. Allowed: {', '.join(allowed)}."
        )
    if unknown := set(entry.flip) - set(about["classes"]):
        raise ConfigurationError(f"{where}: flip names {sorted(unknown)}. Classes: {', '.join(about['classes'])}.")
    if hasattr(changer, "check"):
        changer.check(where, about, entry)


@dataclass(frozen=True)
class Known:
    """The former output: ``n`` originals, then ``copies`` changed copies of each.

    Attributes:
        output: its shards; None if there is none that was made by the same options, code and libraries.
        n: originals.
        copies: changed copies of each.
        rows: (content, whether it may be mirrored) -> row of the original.
    """

    output: Shards | None = None
    n: int = 0
    copies: int = 0
    rows: dict[tuple[bytes, bool], int] = field(default_factory=dict)


def _known(target: Path, key: str) -> Known:
    try:
        about, made = read_sealed(target / "about.json"), read_sealed(target / "key.json")
        if made["key"] != key:
            return Known()
        output = Shards(target / "train")
    except (InputRefusedError, IntegrityError, OSError):
        return Known()
    n = len(output) // (made["copies"] + 1)
    mirrored = np.zeros(n, bool)
    if made["flip"]:
        mirrored = np.isin(about["classes"], made["flip"])[output.column("label")[:n]]
    mirrored = mirrored.tolist()
    pairs = zip(output.contents()[:n], mirrored, strict=True)
    return Known(output, n, made["copies"], {pair: row for row, pair in enumerate(pairs)})


def _key(changes: dict[str, Any]) -> str:
    """Returns a SHA-256 of all that decides what a copy looks like: options, code and libraries."""
    code = dependencies.checksums(dependencies.stage("augment"))
    libraries = {name: version(name) for name in ("numpy", "scipy")}
    options = {name: value for name, value in changes.items() if name != "flip"}  # that stands beside each content
    return hashlib.sha256(json.dumps([options, code, libraries], sort_keys=True).encode()).hexdigest()


def _change(block: tuple[np.ndarray, np.ndarray, list[bytes]], kind: str, options: dict[str, Any]) -> np.ndarray:
    """Returns changed copies of examples; the function that runs in worker processes and on a cluster."""
    examples, mirrored, keys = block
    changer = import_module(f"stages.augment.{kind}")
    if "flip" in changer.OPTIONS:
        options = options | {"flip": mirrored}
    return changer.change(examples, Draws(keys), **options)
