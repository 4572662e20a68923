"""Makes more training examples: data/ingest/<dataset>/train -> data/augment/<dataset>. Val and test stay."""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from itertools import chain, starmap
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from convoy import dependencies
from convoy.data import vocabulary
from convoy.data.shards import Arrays, Shards, write_shards
from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError
from convoy.files import read_sealed, scratch_folder, swap_folder, write_sealed
from convoy.machine import workers
from convoy.machine.progress import track
from convoy.params import Amount, Count, Positive, Seed, Share
from stages.augment.draws import Draws

BLOCK_PIXELS = 2**20  # changed at a time; with some 60 bytes of intermediate results for each, bounds memory
TEXTS = 4096  # texts or pairs changed at a time
PREPARED = ("images", "volumes")  # kinds that ingest brings to one size
SMALL = 1000  # copies below which threads are used: starting processes takes longer

Axis = Literal["depth", "height", "width"]
Length = Annotated[float, Field(ge=1, allow_inf_nan=False)]


def augment(
    dataset: str,
    *,
    copies: Count,
    seed: Seed,
    shift: Amount = 0.0,
    rotate: Amount = 0.0,
    scale: Share = 0.0,
    elastic: Amount = 0.0,
    smoothness: Amount = 4.0,
    flip: list[str] = [],  # noqa: B006 - read only; the signature is the schema of params.yaml
    erase: Share = 0.0,
    noise: Amount = 0.0,
    mirror: list[Axis] = [],  # noqa: B006
    turn: list[Axis] = [],  # noqa: B006
    swap: Share = 0.0,
    delete: Share = 0.0,
    insert: Share = 0.0,
    misspell: Share = 0.0,
    mask: Share = 0.0,
    span: Length = 3.0,
    subwords: Positive | None = None,
) -> None:
    """Reads the training split of data/ingest/<dataset>; writes it and its changed copies to data/augment/<dataset>.

    ``train/`` holds the original examples, then ``copies`` changed versions of each, with the same ``label`` and
    ``content``; ``about.json`` tells train what the labels mean, how pictures were prepared, and which words,
    characters and subwords the original texts consist of. The functions are in ``images.py``, ``volumes.py`` and
    ``text.py``; of a sentence pair the source is changed, and the target stays its translation.

    A copy follows from the seed, its number and the content of its original alone. So those of examples that were
    there before are copied from the former output, with the same result, byte by byte.

    Args:
        dataset: name of the data set.
        copies: changed versions per example; 0 keeps the originals alone.
        seed: of every random choice. Equal seeds give equal bytes.
        shift: images, volumes: largest move, in pixels or whole voxels.
        rotate: images: largest turn, in degrees.
        scale: images: largest change of size, as a share: 0.1 is 90 % to 110 %.
        elastic: images: typical length of the elastic displacement, in pixels.
        smoothness: images: distance over which the elastic displacement changes, in pixels.
        flip: images: the classes of which a mirrored picture keeps its label; half of their copies are mirrored.
        erase: images: largest share of the area that is overwritten with noise.
        noise: images, volumes: standard deviation of the noise added to each pixel, in grey levels of 255.
        mirror: volumes: axes (depth, height, width) along which half of the copies are mirrored.
        turn: volumes: axes about which copies are turned by a multiple of 90 degrees.
        swap: text, translation: share of the words that change places.
        delete: text, translation: share of the words that are left out.
        insert: text, translation: words of the vocabulary that are put in, as a share of those there are.
        misspell: text, translation: share of the characters that are left out, doubled, exchanged or replaced.
        mask: text, translation: share of the words that are hidden, in spans.
        span: text, translation: words of such a span, on average.
        subwords: text, translation: learn so many, for the models that divide texts into subwords.

    Raises:
        ConfigurationError: an option is for another kind of data; ``flip`` names a class that the data set does not
            have; ``turn`` an axis of which the two others differ; voxels are to ``shift`` by a part of one; there
            cannot be so many ``subwords``.
    """
    given = {key: value for key, value in locals().items() if key not in ("dataset", "copies", "seed", "subwords")}
    where, source, target = f"augment.{dataset}", Path("data/ingest", dataset), Path("data/augment", dataset)
    about = read_sealed(source / "about.json")
    kind, classes = about["kind"], about["classes"]
    changer = import_module(f"stages.augment.{kind}")
    _check(where, about, given | {"subwords": subwords}, changer.OPTIONS)
    train = Shards(source / "train")
    options = {key: given[key] for key in changer.OPTIONS}
    facts = {"dataset": dataset, "kind": kind, "classes": classes}
    if kind in PREPARED:
        facts["options"] = {key: about["options"][key] for key in ("size", "mode", "fit")}
    else:
        columns = [column for column in ("text", "source", "target") if column in train.names]
        facts["vocabulary"] = {column: vocabulary.describe(_texts(train, column), subwords) for column in columns}
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
    step = max(1, BLOCK_PIXELS // math.prod(train.shape(changer.ARRAY))) if kind in PREPARED else TEXTS
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


def _check(where: str, about: dict[str, Any], given: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Raises ConfigurationError for options that the data set has no use for."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(augment).parameters.items()}
    allowed = (*allowed, *(() if about["kind"] in PREPARED else ("subwords",)))
    if foreign := [name for name, value in given.items() if name not in allowed and value != defaults[name]]:
        raise ConfigurationError(
            f"{where}: {', '.join(foreign)} cannot change {about['kind']}. Allowed: {', '.join(allowed)}."
        )
    if unknown := set(given["flip"]) - set(about["classes"]):
        raise ConfigurationError(f"{where}: flip names {sorted(unknown)}. Classes: {', '.join(about['classes'])}.")
    if about["kind"] == "volumes" and given["shift"] % 1:
        raise ConfigurationError(f"{where}: shift = {given['shift']}: volumes move by whole voxels.")
    if given["turn"]:
        size = dict(zip(("depth", "height", "width"), about["options"]["size"], strict=True))
        for axis in given["turn"]:
            if len({length for name, length in size.items() if name != axis}) > 1:
                raise ConfigurationError(
                    f"{where}: turn about {axis} needs the two other sides to be equal; got {size}."
                )


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
    if kind == "images":
        options = options | {"flip": mirrored}
    return import_module(f"stages.augment.{kind}").change(examples, Draws(keys), **options)
