"""Makes more training examples: data/ingest/<dataset>/train -> data/augment/<dataset>. Val and test stay."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track

from stages.augment import images
from stages.errors import ConfigurationError
from stages.params import Amount, Count, Seed, Share
from stages.shards import Arrays, Shards, read_json, write_shards

BLOCK_PIXELS = 2**21  # changed at a time; with some 60 bytes of intermediate results for each, bounds memory


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

    ``train/`` holds the original examples, then ``copies`` changed versions of each, with the same
    ``label``; ``about.json`` tells train what the labels mean. The functions are in ``images.py``.

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
    """
    source, target = Path("data/ingest", dataset), Path("data/augment", dataset)
    about = read_json(source / "about.json")
    if unknown := set(flip) - set(about["classes"]):
        raise ConfigurationError(
            f"augment.{dataset}: flip names {sorted(unknown)}. Classes: {', '.join(about['classes'])}."
        )
    train = Shards(source / "train")
    rows = max(1, BLOCK_PIXELS // math.prod(train.shape("image")))
    mirrored = np.flatnonzero(np.isin(about["classes"], flip))

    def changed(block: Arrays, rng: np.random.Generator) -> Arrays:
        grid = images.identity(*block["image"].shape[:3])
        grid = images.elastic(grid, elastic, smoothness, rng)
        grid = images.scale(grid, scale, rng)
        grid = images.rotate(grid, rotate, rng)
        grid = images.shift(grid, shift, rng)
        grid = images.flip(grid, np.isin(block["label"], mirrored), rng)
        pictures = images.resample(block["image"], grid)
        pictures = images.erase(pictures, erase, rng)
        return block | {"image": images.noise(pictures, noise, rng)}

    def blocks() -> Iterator[Arrays]:
        yield from train.blocks(rows)
        starts = [(copy, start) for copy in range(copies) for start in range(0, len(train), rows)]
        for copy, start in track(starts, f"augment@{dataset}", transient=True):
            yield changed(train[start : start + rows], np.random.default_rng([seed, copy, start]))

    shutil.rmtree(target, ignore_errors=True)
    write_shards(target / "train", blocks())
    (target / "about.json").write_text(
        json.dumps({key: about[key] for key in ("dataset", "kind", "classes")}, indent=1)
    )
    print(f"{target}: {len(train):,} training examples and {copies} changed copies of each")
