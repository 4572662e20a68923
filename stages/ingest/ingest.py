"""Checks, de-duplicates and splits raw data, and stores it: data/raw/<dataset> -> data/ingest/<dataset>."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from rich.progress import track

from stages.errors import ConfigurationError, InputRefusedError
from stages.ingest.records import Example, Item, natural, share
from stages.params import Positive, Share
from stages.shards import ShardWriter, sha256

SPLITS = ("train", "val", "test")
BLOCK = 512  # examples decoded at a time; bounds memory


def ingest(
    dataset: str,
    *,
    kind: Literal["images"],
    size: tuple[Positive, Positive],
    mode: Literal["grey", "colour"],
    fit: Literal["stretch", "pad", "crop"] = "stretch",
    val: Share = 0.15,
    test: Share = 0.2,
    max_bad: Share = 0.01,
) -> None:
    """Reads data/raw/<dataset>; writes data/ingest/<dataset>.

    The result is one folder of shards per split (arrays ``image`` uint8 (height, width, channels) and ``label``),
    ``manifest.parquet`` (one row per accepted example, the rows of a split in the order of its shards),
    ``quarantine.csv`` (path and reason of everything that was left out) and ``about.json`` (classes, counts, options).

    Args:
        dataset: name of the data set.
        kind: the reader, a file of this folder.
        size: (height, width) of the stored pictures, in pixels.
        mode: grey has one channel, colour has three.
        fit: how a picture comes to ``size``: ``stretch`` changes its proportions, ``pad`` adds black margins,
            ``crop`` cuts the longer side, centred.
        val: share of the examples for validation; see ``split_of``.
        test: share of the examples for the test, likewise.
        max_bad: largest share of unreadable files; above it the data set is refused.

    Raises:
        ConfigurationError: the shares leave nothing to train on.
        InputRefusedError: no examples, fewer than two classes, too many unreadable files, an empty split, or a
            class without an example to train on.
    """
    if val + test >= 1:
        raise ConfigurationError(f"ingest.{dataset}: val {val} + test {test} leave nothing to train on.")
    source, target = Path("data/raw", dataset), Path("data/ingest", dataset)
    reader = import_module(f"stages.ingest.{kind}")
    items = reader.find(source)
    classes = sorted({item.label for item in items}, key=natural)
    if len(classes) < 2:
        raise InputRefusedError(f"{source}: found the classes {classes}; at least two are needed.")
    given = {item.split for item in items}
    shares = {"val": 0.0 if "val" in given else val, "test": 0.0 if "test" in given else test}

    shutil.rmtree(target, ignore_errors=True)
    first: dict[str, Item] = {}  # content -> where it was first seen
    accepted: list[dict] = []
    refused: list[dict] = []
    unreadable = conflicts = 0
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(target / split)) for split in SPLITS}
        decode = partial(reader.decode, size=size, mode=mode, fit=fit)
        for item, example in _examples(items, decode, f"ingest@{dataset}"):
            if isinstance(example, InputRefusedError):
                refused.append({"path": item.path, "reason": str(example)})
                unreadable += 1
                continue
            original = first.setdefault(example.content, item)
            if original is not item:
                other = "" if original.label == item.label else f" under the label {original.label!r}"
                refused.append({"path": item.path, "reason": f"same content as {original.path}{other}"})
                conflicts += original.label != item.label
                continue
            split = item.split or "train"
            if split == "train":
                split = split_of(example.content, **shares)
            arrays = example.arrays | {"label": np.int64(classes.index(item.label))}
            writers[split].append({name: np.asarray(value)[None] for name, value in arrays.items()})
            accepted.append(
                {"path": item.path, "label": item.label, "split": split, "sha256": example.content} | example.facts
            )
        if unreadable > max_bad * len(items):
            sample = "; ".join(f"{bad['path']} ({bad['reason']})" for bad in refused[:5])
            raise InputRefusedError(
                f"{source}: {unreadable} of {len(items)} files cannot be read, more than max_bad = {max_bad}. Remove "
                f"them, or raise max_bad. {sample}"
            )
        counts = Counter((row["split"], row["label"]) for row in accepted)
        missing = {split: [label for label in classes if not counts[split, label]] for split in SPLITS}
        if missing["train"] or classes in missing.values():
            empty = "; ".join(f"{split} has none of {', '.join(labels)}" for split, labels in missing.items() if labels)
            out = "".join(f"; {bad['path']} ({bad['reason']})" for bad in refused[:5])
            raise InputRefusedError(
                f"{source}: too few examples: {empty}. Add examples, remove the class, or change the shares "
                f"val = {val}, test = {test}. Left out: {len(refused)}{out}"
            )

    pd.DataFrame(accepted).to_parquet(target / "manifest.parquet", index=False)
    pd.DataFrame(refused, columns=["path", "reason"]).to_csv(target / "quarantine.csv", index=False)
    about = {
        "dataset": dataset,
        "kind": kind,
        "classes": classes,
        "counts": {split: {label: counts[split, label] for label in classes} for split in SPLITS},
        "missing": {split: labels for split, labels in missing.items() if labels},
        "unreadable": unreadable,
        "duplicates": len(refused) - unreadable,
        "duplicates_under_another_label": conflicts,
        "manifest_sha256": sha256(target / "manifest.parquet"),
        "options": {"size": size, "mode": mode, "fit": fit, "val": val, "test": test},
    }
    (target / "about.json").write_text(json.dumps(about, indent=1))
    totals = ", ".join(f"{split} {sum(about['counts'][split].values()):,}" for split in SPLITS)
    print(f"{target}: {len(classes)} classes; {totals}; left out {len(refused)} (quarantine.csv)")
    for split, labels in about["missing"].items():
        print(f"warning: {split} has no example of {', '.join(labels)}; scores on it say nothing about them")


def split_of(content: str, *, val: float, test: float) -> str:
    """Returns train, val or test for an example, from its content alone.

    Its SHA-256, read as a number in [0, 1), is compared with the shares. So adding or removing data never moves an
    example to another split, equal content always shares one, and every class is split at the same shares up to
    chance: a class of n examples has ``n * test`` test examples, standard deviation ``sqrt(n * test * (1 - test))``.
    """
    place = share(content)
    return "test" if place < test else "val" if place < test + val else "train"


def _examples(items: list[Item], decode, title: str) -> Iterator[tuple[Item, Example | InputRefusedError]]:
    """Decodes in threads (Pillow works without the interpreter lock), BLOCK at a time, in the order of ``items``."""

    def attempt(item: Item) -> Example | InputRefusedError:
        try:
            return decode(item)
        except InputRefusedError as refusal:
            return refusal

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for start in track(range(0, len(items), BLOCK), title, transient=True):
            block = items[start : start + BLOCK]
            yield from zip(block, executor.map(attempt, block), strict=True)
