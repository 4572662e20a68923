"""Checks, de-duplicates and splits raw data, and stores it: data/raw/<dataset> -> data/ingest/<dataset>."""

import hashlib
import json
import posixpath
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from convoy import dependencies
from convoy.checksums import sha256
from convoy.data.shards import Shards, ShardWriter
from convoy.errors import ConfigurationError, InputRefusedError
from convoy.files import scratch_folder, swap_folder, write_sealed
from convoy.kinds.base import UNEXPECTED
from convoy.pages.page import many
from convoy.params import Positive, Share
from stages.ingest import decoding, previous, reading
from stages.ingest.formats import archives
from stages.ingest.near.incremental import find_near
from stages.ingest.outputs import write_split, write_tables
from stages.ingest.reading import Found
from stages.ingest.records import Source, natural
from stages.ingest.report.report import report
from stages.ingest.splits import SPLITS, check_counts, check_shares, choose_splits, keep_distinct

Role = Literal["text", "label", "split", "image", "path", "source", "target"]
PIXELS = {"images": 2, "volumes": 3}  # kinds with a size, and its axes


def ingest(
    dataset: str,
    *,
    kind: Literal["images", "volumes", "text", "translation"],
    size: tuple[Positive, ...] | None = None,
    mode: Literal["grey", "colour"] | None = None,
    fit: Literal["stretch", "pad", "crop"] = "stretch",
    columns: dict[Role, str | int | list[str | int]] = {},  # noqa: B006 - read only; the signature is the schema
    files: dict[Literal["train", "val", "test"], str] = {},  # noqa: B006
    encoding: str | None = None,
    near_duplicates: bool = True,
    val: Share = 0.15,
    test: Share = 0.2,
    max_bad: Share = 0.01,
) -> None:
    """Reads data/raw/<dataset>; writes data/ingest/<dataset>.

    The result is one folder of shards per split (the arrays of the kind, ``label`` and ``content``),
    ``manifest.parquet`` (one row per accepted example, the rows of a split in the order of its shards),
    ``quarantine.csv`` (path and reason of everything that was left out), ``duplicates.csv`` (equal and nearly equal
    examples), ``about.json`` (classes, counts, options), ``key.json`` (what it was made with) and ``report.html``.

    What the last run decoded is not decoded again (``previous.py``); the result is the same, byte by byte.

    Args:
        dataset: name of the data set.
        kind: the reader, a file of this folder. Arrays: images ``image`` uint8 (height, width, channels); volumes
            ``volume`` uint8 (depth, height, width, channels); text ``text``; translation ``source`` and ``target``.
        size: (height, width) of the stored pictures, in pixels; (depth, height, width) of volumes.
        mode: grey has one channel, colour has three; for pictures and volumes.
        fit: how a picture comes to ``size``: ``stretch`` changes its proportions, ``pad`` adds black margins,
            ``crop`` cuts the longer side, centred.
        columns: role -> column of a table (its name, its number from 0, or several to be joined) or ending of a
            parallel file, where the names are not the usual ones.
        files: split -> glob pattern of the raw files that belong to it, where their names do not say it.
        encoding: of text files; by default detected for each, and noted in about.json.
        near_duplicates: look for nearly equal examples too, and keep them in one split.
        val: share of the examples for validation; see ``split_of``.
        test: share of the examples for the test, likewise.
        max_bad: largest share of unreadable examples; above it the data set is refused.

    Raises:
        ConfigurationError: the options do not fit the kind; the shares leave nothing to train on.
        InputRefusedError: no examples, fewer than two classes, too many unreadable files, an empty split, or a
            class without an example to train on.
        IntegrityError: a file is not what the SHA256SUMS beside the raw data says.
        BusyError: another run is at it.
    """
    asked = {name: value for name, value in locals().items() if name not in ("dataset", "kind")}
    check_options(f"ingest.{dataset}", kind=kind, size=size, mode=mode, val=val, test=test)
    now = time.time_ns()
    source, target = Path("data/raw", dataset), Path("data/ingest", dataset)
    if not source.is_dir():
        raise InputRefusedError(f"{source} is missing: fetch it, or put it there with dvc add or dvc import-url.")
    cache = target.parent / ".cache" / dataset
    with scratch_folder(cache) as scratch:
        output = scratch / "output"
        options: dict[str, Any] = {"encoding": encoding}
        if kind in PIXELS:
            options = {"size": size, "mode": mode, "fit": fit, "fingerprints": near_duplicates}
        key = _key(kind, options | {"near_duplicates": near_duplicates})
        known = previous.load(cache, target, key, SPLITS)
        sums = reading.read_sums(source)
        reading.check_sums(source, sums, lambda name: "/" not in name)  # archives and tables, before they are opened

        reader = import_module(f"stages.ingest.finders.{kind}")
        folder = archives.prepared(source, scratch / "unpacked")
        raw = Source(folder, columns, {split: _plain(pattern) for split, pattern in files.items()}, encoding)
        items = reader.find(raw)
        if isinstance(items, list):  # else they are found out while they are read
            check_shares(source, {item.split for item in items}, val, test)
        with ShardWriter(scratch / "new") as staging:
            found = reading.read(
                items, kind=kind, folder=folder, options=options, known=known, staging=staging, sums=sums,
                title=f"ingest@{dataset}", now=now,
            )  # fmt: skip
        reading.check_sums(source, sums, lambda name: True)
        _check_readable(source, found, max_bad, cache)
        classes = _classes(source, found)

        kept, doubles = keep_distinct(found)
        new = Shards(scratch / "new")
        pairs, compared = np.zeros((0, 2), np.int64), 0
        if near_duplicates:
            pairs, compared = find_near(
                found, kept, known, new, kind, scratch / previous.FINGERPRINTS, f"ingest@{dataset}"
            )
        splits, leaks = choose_splits(found, kept, pairs, val=val, test=test)
        doubles += [
            (found.paths[kept[b]], found.paths[kept[a]], "near", found.labels[kept[b]], found.labels[kept[a]])
            for a, b in pairs
        ]
        refused = [(path, reason) for path, reason in zip(found.paths, found.reasons, strict=True) if reason]
        refused += [
            (path, _said(other, label, original)) for path, other, how, label, original in doubles if how == "same"
        ]
        refused += leaks
        counts = Counter((split, found.labels[number]) for number, split in zip(kept, splits, strict=True) if split)
        missing = check_counts(source, classes, counts, refused, val, test)

        output.mkdir()  # by none of those that write into it at the same time
        with ThreadPoolExecutor() as pool:  # copying, hashing and writing leave the interpreter to the others
            written = []
            for split in SPLITS:
                numbers = [number for number, chosen in zip(kept, splits, strict=True) if chosen == split]
                written.append(pool.submit(write_split, output / split, found, known, new, numbers, classes))
            write_tables(output, found, kept, splits, pairs, refused, doubles)
            for future in written:
                future.result()
        about = {
            "dataset": dataset,
            "kind": kind,
            "classes": classes,
            "examples": {split: sum(count for (s, _), count in counts.items() if s == split) for split in SPLITS},
            "counts": {split: {label: counts[split, label] for label in classes} for split in SPLITS},
            "missing": {split: labels for split, labels in missing.items() if labels},
            "unreadable": sum(map(bool, found.reasons)),
            "duplicates": sum(how == "same" for _, _, how, _, _ in doubles),
            "near_duplicates": len(pairs) if compared else None,  # None: they were not looked for
            "near_compared": compared,
            "duplicates_under_another_label": sum(label != other for _, _, _, label, other in doubles),
            "left_out_of_train": len(leaks),
            "reading": raw.notes,
            "manifest_sha256": sha256(output / "manifest.parquet"),
            "options": asked,
        }
        write_sealed(output / "about.json", about)
        # Not in about.json: a new library that changes nothing is no change.
        write_sealed(output / "key.json", {"key": key})
        report(output)
        swap_folder(output, target)
        _remember(cache, scratch, key, found, kept, pairs)
        _say(target, about, refused, len(found.rows))


def check_options(
    where: str, *, kind: str, size: tuple[int, ...] | None, mode: str | None, val: float, test: float, **_: object
) -> None:
    """Raises what ``ingest`` would raise for these arguments, before any work."""
    axes = PIXELS.get(kind)
    if axes and (size is None or len(size) != axes or mode is None):
        names = "height, width" if axes == 2 else "depth, height, width"
        raise ConfigurationError(
            f"{where}: kind {kind} needs size: [{names}], in pixels, and mode: grey or colour; got size = {size}, "
            f"mode = {mode}."
        )
    if not axes and (size is not None or mode is not None):
        raise ConfigurationError(f"{where}: kind {kind} has no size and no mode; got size = {size}, mode = {mode}.")
    if val + test >= 1:
        raise ConfigurationError(f"{where}: val {val} + test {test} leave nothing to train on.")


def _key(kind: str, options: Mapping[str, Any]) -> str:
    """Returns a SHA-256 of all that decides what an example decodes to: options, code and libraries."""
    facts = {
        "kind": kind,
        "options": options,
        "code": dependencies.checksums(dependencies.of([decoding.__name__])),
        "libraries": {name: version(name) for name in ("numpy", "pillow", "scipy", "pyarrow", "charset-normalizer")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _classes(source: Path, found: Found) -> list[str]:
    """Returns the names of the classes, in the order of their numbers; [] where the data has none."""
    if not len(found):
        raise InputRefusedError(f"{source} has no examples.")
    labels = {label for label in found.labels if label is not None}
    classes = sorted(labels, key=natural)
    if len(classes) == 1:
        raise InputRefusedError(f"{source}: found the classes {classes}; at least two are needed.")
    return classes


def _plain(pattern: str) -> str:
    """Returns a pattern without ``./`` and ``//``; readers count its folders."""
    return posixpath.normpath(pattern) if pattern and ".." not in pattern else pattern


def _check_readable(source: Path, found: Found, max_bad: float, cache: Path) -> None:
    bad = [(path, reason) for path, reason in zip(found.paths, found.reasons, strict=True) if reason]
    if len(bad) > max_bad * len(found):
        everything = cache / "refused.csv"
        pd.DataFrame(bad, columns=["path", "reason"]).to_csv(everything, index=False)
        sample = "; ".join(f"{path} ({reason})" for path, reason in bad[:5])
        raise InputRefusedError(
            f"{source}: {len(bad)} of {len(found)} files cannot be read, more than max_bad = {max_bad}. Remove them, "
            f"or raise max_bad. {sample}{f'; all of them: {everything}' if len(bad) > 5 else ''}"
        )


def _remember(cache: Path, scratch: Path, key: str, found: Found, kept: list[int], pairs: np.ndarray) -> None:
    """Writes down what this run found out; see ``previous.py``."""
    table = {
        "path": found.paths,
        "stat": found.stats,
        "digest": found.digests,
        "reason": found.reasons,
        "content": found.contents,
    }
    for column, name in enumerate(found.names):
        blank = type(next(facts[column] for facts in found.facts if facts))()  # a missing one would make floats of all
        table[name] = [facts[column] if facts else blank for facts in found.facts]
    place = np.full(len(found), -1, np.int64)
    if (scratch / previous.FINGERPRINTS).exists():
        place[kept] = np.arange(len(kept))
    table["place"] = place
    previous.save(cache, key, pd.DataFrame(table), scratch, pairs)


def _said(other: str, label: str | None, original: str | None) -> str:
    return f"same content as {other}" + ("" if label == original else f" under the label {original!r}")


def _say(target: Path, about: dict, refused: list[tuple[str, str]], new: int) -> None:
    totals = ", ".join(f"{split} {count:,}" for split, count in about["examples"].items())
    of = f"{len(about['classes'])} classes; " if about["classes"] else ""
    print(f"{target}: {of}{totals}; decoded {new:,}; left out {len(refused)} (quarantine.csv); see report.html")
    if unexpected := [f"{path}: {reason}" for path, reason in refused if reason.startswith(UNEXPECTED)]:
        number = many(len(unexpected), "example")
        print(f"warning: {number} raised what no reader expects, e.g. {unexpected[0]}")
    if unread := about["reading"].get("unread"):
        print(f"warning: {unread}")
    for option, note, kinds in (("encoding", "encodings", PIXELS), ("columns", "columns", (*PIXELS, "text"))):
        if about["options"][option] and about["kind"] in kinds and not about["reading"].get(note):
            print(f"warning: {option} = {about['options'][option]} says nothing about {about['reading']['layout']}")
    for name, encoding in about["reading"].get("encodings", {}).items():
        if encoding not in ("ascii", "utf-8"):
            print(f"{name}: read as {encoding}")
    if about["near_duplicates"] is None:
        print("near copies were not looked for")
    elif about["near_duplicates"]:
        print(f"{about['near_duplicates']:,} pairs of near duplicates, each in one split (duplicates.csv)")
    if about["duplicates_under_another_label"]:
        equal = "equal" if about["near_duplicates"] is None else "equal or nearly equal"
        print(f"warning: {about['duplicates_under_another_label']} {equal} examples have two labels")
    for split, labels in about["missing"].items():
        print(f"warning: {split} has no example of {', '.join(labels)}; scores on it say nothing about them")
