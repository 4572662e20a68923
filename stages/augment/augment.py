"""Makes more training examples: data/ingest/<dataset>/train -> data/augment/<dataset>. Val and test stay."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import numpy as np

from stages import workers
from stages.augment import images
from stages.augment.draws import Draws
from stages.checksums import sha256
from stages.errors import ConfigurationError, InputRefusedError, IntegrityError
from stages.params import Amount, Count, Seed, Share
from stages.progress import track
from stages.shards import Arrays, Shards, read_sealed, swap, working, write_sealed, write_shards

BLOCK_PIXELS = 2**20  # changed at a time; with some 60 bytes of intermediate results for each, bounds memory
SMALL = 1000  # copies below which threads are used: starting processes takes longer


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
) -> None:
    """Reads the training split of data/ingest/<dataset>; writes it and its changed copies to data/augment/<dataset>.

    ``train/`` holds the original examples, then ``copies`` changed versions of each, with the same ``label`` and
    ``content``; ``about.json`` tells train what the labels mean. The functions are in ``images.py``.

    A copy follows from the seed, its number and the content of its original alone. So those of examples that were
    there before are copied from the former output, with the same result, byte by byte.

    Args:
        dataset: name of the data set.
        copies: changed versions per example; 0 keeps the originals alone.
        seed: of every random choice. Equal seeds give equal bytes.
        shift: largest move, in pixels.
        rotate: largest turn, in degrees.
        scale: largest change of size, as a share: 0.1 is 90 % to 110 %.
        elastic: typical length of the elastic displacement, in pixels.
        smoothness: distance over which the elastic displacement changes, in pixels.
        flip: the classes of which a mirrored picture keeps its label; half of their copies are mirrored.
        erase: largest share of the area that is overwritten with noise.
        noise: standard deviation of the noise added to each pixel, in grey levels of 255.

    Raises:
        ConfigurationError: ``flip`` names a class that the data set does not have.
        InputRefusedError: its examples are no pictures.
    """
    changes = {key: value for key, value in locals().items() if key not in ("dataset", "copies")}
    source, target = Path("data/ingest", dataset), Path("data/augment", dataset)
    about = read_sealed(source / "about.json")
    if about["kind"] != "images":
        raise InputRefusedError(f"augment.{dataset}: changes pictures, not {about['kind']}. Remove the entry.")
    if unknown := set(flip) - set(about["classes"]):
        raise ConfigurationError(
            f"augment.{dataset}: flip names {sorted(unknown)}. Classes: {', '.join(about['classes'])}."
        )
    train = Shards(source / "train")
    # With that of ingest: the same content is stored as another picture in another size, mode or fit.
    key = _key(changes | {"ingest": read_sealed(source / "key.json")["key"]})
    known = _known(target, key)
    contents, mirrored = train.contents(), np.isin(about["classes"], flip)[train.column("label")]
    former = np.array([known.rows.get(pair, -1) for pair in zip(contents, mirrored.tolist(), strict=True)])
    step = max(1, BLOCK_PIXELS // math.prod(train.shape("image")))
    starts = [(copy, start) for copy in range(copies) for start in range(0, len(train), step)]

    def new(copy: int, start: int) -> np.ndarray:
        """Returns the rows of a block whose changed copy does not lie in the former output."""
        rows = np.arange(start, min(start + step, len(train)))
        return rows[former[rows] < 0] if copy < known.copies else rows

    def tasks() -> Iterator[tuple[np.ndarray, np.ndarray, list[bytes]]]:
        for copy, start in starts:
            if (rows := new(copy, start)).size:
                keys = [b"%d %d " % (seed, copy) + contents[row] for row in rows]
                yield train.take("image", rows), mirrored[rows], keys

    total = sum(new(copy, start).size for copy, start in starts)
    with working(target.parent / ".cache" / dataset) as scratch:
        output = scratch / "output"
        with workers.executor(total < SMALL, __name__) as pool:
            changed = workers.map_ahead(pool, _change, tasks(), changes)

            def copies_of(copy: int, start: int) -> Arrays:
                rows, fresh = np.arange(start, min(start + step, len(train))), new(copy, start)
                block = {name: train.take(name, rows) for name in train.names if name != "image"}
                pictures = block["image"] = train.empty("image", len(rows))
                if fresh.size:
                    pictures[fresh - start] = next(changed)
                old = np.setdiff1d(rows, fresh, assume_unique=True)
                if old.size:
                    known.output.copy("image", (copy + 1) * known.n + former[old], pictures, old - start)
                return {name: block[name] for name in train.names}

            tracked = track(starts, f"augment@{dataset}", "pictures", len(starts) * step, step)
            write_shards(output / "train", chain(train.blocks(step), starmap(copies_of, tracked)))
        facts = {name: about[name] for name in ("dataset", "kind", "classes")}
        write_sealed(output / "about.json", facts)
        write_sealed(output / "key.json", {"key": key, "copies": copies, "flip": flip})
        swap(output, target)
    print(f"{target}: {len(train):,} training examples and {copies} changed copies of each; {total:,} copies were new")


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
    mirrored = np.isin(about["classes"], made["flip"])[output.column("label")[:n]].tolist()
    pairs = zip(output.contents()[:n], mirrored, strict=True)
    return Known(output, n, made["copies"], {pair: row for row, pair in enumerate(pairs)})


def _key(changes: dict[str, Any]) -> str:
    """Returns a SHA-256 of all that decides what a copy looks like: options, code and libraries."""
    code = [sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    libraries = {name: version(name) for name in ("numpy", "scipy")}
    options = {name: value for name, value in changes.items() if name != "flip"}  # that stands beside each content
    return hashlib.sha256(json.dumps([options, code, libraries], sort_keys=True).encode()).hexdigest()


def _change(block: tuple[np.ndarray, np.ndarray, list[bytes]], changes: dict[str, Any]) -> np.ndarray:
    """Returns changed copies of pictures; the function that runs in worker processes and on a cluster."""
    pictures, mirrored, keys = block
    rng = Draws(keys)
    grid = images.identity(*pictures.shape[:3])
    grid = images.elastic(grid, changes["elastic"], changes["smoothness"], rng)
    grid = images.scale(grid, changes["scale"], rng)
    grid = images.rotate(grid, changes["rotate"], rng)
    grid = images.shift(grid, changes["shift"], rng)
    grid = images.flip(grid, mirrored, rng)
    pictures = images.resample(pictures, grid)
    pictures = images.erase(pictures, changes["erase"], rng)
    return images.noise(pictures, changes["noise"], rng)
