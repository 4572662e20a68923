"""Checks, de-duplicates and splits raw data, and stores it: data/raw/<dataset> -> data/ingest/<dataset>."""

import hashlib
import json
import posixpath
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convoy import dependencies, kinds
from convoy.checksums import sha256
from convoy.data.shards import Shards, ShardWriter
from convoy.errors import InputRefusedError
from convoy.files import scratch_folder, swap_folder, write_sealed
from convoy.kinds.base import UNEXPECTED
from convoy.pages.page import many
from stages.ingest import decoding, previous, reading
from stages.ingest.entry import Ingest
from stages.ingest.formats import archives
from stages.ingest.near.incremental import find_near
from stages.ingest.outputs import write_split, write_tables
from stages.ingest.previous import Known
from stages.ingest.reading import Found
from stages.ingest.records import Source, natural
from stages.ingest.report.report import report
from stages.ingest.splits import SPLITS, check_counts, check_shares, choose_splits, keep_distinct

# The modules that made what the next run takes over from this one: decoded examples, and pairs of near copies.
REMEMBERED = (decoding.__name__, find_near.__module__)


def ingest(dataset: str, entry: Ingest) -> None:
    """Reads data/raw/<dataset>; writes data/ingest/<dataset>.

    The result is one folder of shards per split (the arrays of the kind, ``label`` and ``content``),
    ``manifest.parquet`` (one row per accepted example, the rows of a split in the order of its shards),
    ``quarantine.csv`` (path and reason of everything that was left out), ``duplicates.csv`` (equal and nearly equal
    examples), ``about.json`` (classes, counts, options), ``key.json`` (what it was made with) and ``report.html``.

    What the last run decoded is not decoded again (``previous.py``); the result is the same, byte by byte.

    Args:
        dataset: name of the data set.
        entry: its entry of params.yaml.

    Raises:
        ConfigurationError: the options do not fit the kind; the shares leave nothing to train on.
        InputRefusedError: no examples, fewer than two classes, too many unreadable files, an empty split, or a
            class without an example to train on.
        IntegrityError: a file is not what the SHA256SUMS beside the raw data says.
        BusyError: another run is at it.
    """
    entry.check(f"ingest.{dataset}", dataset)
    now = time.time_ns()
    source, target = Path("data/raw", dataset), Path("data/ingest", dataset)
    if not source.is_dir():
        raise InputRefusedError(f"{source} is missing: fetch it, or put it there with dvc add or dvc import-url.")
    cache = target.parent / ".cache" / dataset
    with scratch_folder(cache) as scratch:
        options = _options(entry)
        key = _key(entry.kind, options | {"near_duplicates": entry.near_duplicates})
        known = previous.load(cache, target, key, SPLITS)
        found, notes = _read(source, entry, options, known, scratch, now)
        _check_readable(source, found, entry.max_bad, cache)
        classes = _classes(source, found)
        new = Shards(scratch / "new")
        selection = _select(found, known, new, entry, scratch / previous.FINGERPRINTS, f"ingest@{dataset}")
        counts = selection.count(found)
        missing = check_counts(source, classes, counts, selection.refused, entry.val, entry.test)
        output = scratch / "output"
        _write(output, found, known, new, selection, classes)
        about = {
            "dataset": dataset,
            "kind": entry.kind,
            **_describe(found, selection, classes, counts, missing),
            "reading": notes,
            "manifest_sha256": sha256(output / "manifest.parquet"),
            "options": entry.model_dump(exclude={"kind"}),
        }
        write_sealed(output / "about.json", about)
        # Not in about.json: a new library that changes nothing is no change.
        write_sealed(output / "key.json", {"key": key})
        report(output)
        swap_folder(output, target)
        _remember(cache, scratch, key, found, selection.kept, selection.pairs)
        _say(target, about, selection.refused, len(found.rows))


@dataclass(frozen=True, slots=True)
class Selection:
    """What becomes of the examples that were read.

    Attributes:
        kept: numbers of the distinct ones, rising.
        splits: of each of these; None: left out, since a near copy of it is in another split.
        pairs: near copies among them, (pairs, 2), places in ``kept``.
        compared: how many of them were compared with others.
        doubles: rows of duplicates.csv.
        refused: rows of quarantine.csv.
        leaks: how many of these are near copies.
    """

    kept: list[int]
    splits: list[str | None]
    pairs: np.ndarray
    compared: int
    doubles: list[tuple]
    refused: list[tuple[str, str]]
    leaks: int

    def count(self, found: Found) -> Counter:
        """Returns (split, label) -> number of examples."""
        return Counter((split, found.labels[number]) for number, split in self._placed() if split)

    def numbers(self, split: str) -> list[int]:
        """Returns the numbers of the examples of a split."""
        return [number for number, chosen in self._placed() if chosen == split]

    def _placed(self) -> Iterator[tuple[int, str | None]]:
        return zip(self.kept, self.splits, strict=True)


def _options(entry: Ingest) -> dict[str, Any]:
    """Returns the arguments of the kind's ``decode``."""
    if kinds.get(entry.kind).axes:
        return {"size": entry.size, "mode": entry.mode, "fit": entry.fit, "fingerprints": entry.near_duplicates}
    return {"encoding": entry.encoding}


def _read(
    source: Path, entry: Ingest, options: dict[str, Any], known: Known, scratch: Path, now: int
) -> tuple[Found, dict[str, Any]]:
    """Returns every example of ``source``, and notes of the reader; new arrays go to ``scratch``/new."""
    sums = reading.read_sums(source)
    reading.check_sums(source, sums, lambda name: "/" not in name)  # archives and tables, before they are opened
    reader = import_module(f"stages.ingest.finders.{entry.kind}")
    folder = archives.prepared(source, scratch / "unpacked")
    patterns = {split: _plain(pattern) for split, pattern in entry.files.items()}
    raw = Source(folder, entry.columns, patterns, entry.encoding)
    items = reader.find(raw)
    if isinstance(items, list):  # else they are found out while they are read
        check_shares(source, {item.split for item in items}, entry.val, entry.test)
    with ShardWriter(scratch / "new") as staging:
        found = reading.read(
            items, kind=entry.kind, folder=folder, options=options, known=known, staging=staging, sums=sums,
            title=f"ingest@{source.name}", now=now,
        )  # fmt: skip
    reading.check_sums(source, sums, lambda name: True)
    return found, raw.notes


def _select(found: Found, known: Known, new: Shards, entry: Ingest, prints: Path, title: str) -> Selection:
    """Keeps one example per content, and gives each a split; fingerprints are written to ``prints``."""
    kept, doubles = keep_distinct(found)
    pairs, compared = np.zeros((0, 2), np.int64), 0
    if entry.near_duplicates:
        pairs, compared = find_near(found, kept, known, new, entry.kind, prints, title)
    splits, leaks = choose_splits(found, kept, pairs, val=entry.val, test=entry.test)
    doubles += [
        (found.paths[kept[b]], found.paths[kept[a]], "near", found.labels[kept[b]], found.labels[kept[a]])
        for a, b in pairs
    ]
    refused = [(path, reason) for path, reason in zip(found.paths, found.reasons, strict=True) if reason]
    refused += [(path, _said(other, label, original)) for path, other, how, label, original in doubles if how == "same"]
    return Selection(kept, splits, pairs, compared, doubles, refused + leaks, len(leaks))


def _write(output: Path, found: Found, known: Known, new: Shards, selection: Selection, classes: list[str]) -> None:
    """Writes the shards of all splits and the tables."""
    output.mkdir()  # by none of those that write into it at the same time
    with ThreadPoolExecutor() as pool:  # copying, hashing and writing leave the interpreter to the others
        written = [
            pool.submit(write_split, output / split, found, known, new, selection.numbers(split), classes)
            for split in SPLITS
        ]
        write_tables(
            output, found, selection.kept, selection.splits, selection.pairs, selection.refused, selection.doubles
        )
        for future in written:
            future.result()


def _describe(
    found: Found, selection: Selection, classes: list[str], counts: Counter, missing: dict[str, list[str]]
) -> dict[str, Any]:
    """Returns what about.json says of the examples."""
    how = Counter(how for _, _, how, _, _ in selection.doubles)
    return {
        "classes": classes,
        "examples": {split: sum(count for (s, _), count in counts.items() if s == split) for split in SPLITS},
        "counts": {split: {label: counts[split, label] for label in classes} for split in SPLITS},
        "missing": {split: labels for split, labels in missing.items() if labels},
        "unreadable": sum(map(bool, found.reasons)),
        "duplicates": how["same"],
        "near_duplicates": len(selection.pairs) if selection.compared else None,  # None: they were not looked for
        "near_compared": selection.compared,
        "duplicates_under_another_label": sum(label != other for _, _, _, label, other in selection.doubles),
        "left_out_of_train": selection.leaks,
    }


def _key(kind: str, options: Mapping[str, Any]) -> str:
    """Returns a SHA-256 of all that what the last run found depends on: options, code and libraries.

    That is how examples are decoded, and which of them are near copies.
    """
    facts = {
        "kind": kind,
        "options": options,
        "code": dependencies.checksums(dependencies.of(REMEMBERED)),
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
    kind = kinds.get(about["kind"])
    # Texts always have an encoding, and sentence pairs always have columns.
    columns = kind.axes or (kind.is_text and kind.has_classes)
    for option, note, may_lack in (("encoding", "encodings", kind.axes), ("columns", "columns", columns)):
        if about["options"][option] and may_lack and not about["reading"].get(note):
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
