"""Checks, de-duplicates and splits raw data, and stores it: data/raw/<dataset> -> data/ingest/<dataset>."""

import hashlib
import json
import os
import posixpath
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convoy import dependencies
from convoy.checksums import sha256
from convoy.data.shards import Arrays, Shards, ShardWriter, swap, working, write_sealed, write_shards
from convoy.errors import InputRefusedError
from convoy.kinds.base import UNEXPECTED
from convoy.kinds.fingerprints import HASHES
from convoy.pages.page import many
from stages.ingest import decoding, previous, reading
from stages.ingest.decoding import FINGERPRINT
from stages.ingest.entry import PIXELS, Ingest
from stages.ingest.formats import archives
from stages.ingest.near import duplicates
from stages.ingest.previous import Known
from stages.ingest.reading import Found
from stages.ingest.records import Source, natural
from stages.ingest.report.report import report

SPLITS = ("train", "val", "test")
RANK = {"test": 0, "val": 1}  # of equal and nearly equal examples the one stays that the raw data gives for the test
GATHER_BYTES = 32 * 2**20  # copied at a time into the shards; bounds memory
GATHER_ROWS = 2**15  # fingerprints copied at a time


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
    kind, val, test = entry.kind, entry.val, entry.test
    now = time.time_ns()
    source, target = Path("data/raw", dataset), Path("data/ingest", dataset)
    if not source.is_dir():
        raise InputRefusedError(f"{source} is missing: fetch it, or put it there with dvc add or dvc import-url.")
    cache = target.parent / ".cache" / dataset
    with working(cache) as scratch:
        output = scratch / "output"
        options: dict[str, Any] = {"encoding": entry.encoding}
        if kind in PIXELS:
            options = {"size": entry.size, "mode": entry.mode, "fit": entry.fit, "fingerprints": entry.near_duplicates}
        key = _key(kind, options | {"near_duplicates": entry.near_duplicates})
        known = previous.load(cache, target, key, SPLITS)
        sums = reading.read_sums(source)
        reading.check_sums(source, sums, lambda name: "/" not in name)  # archives and tables, before they are opened

        reader = import_module(f"stages.ingest.finders.{kind}")
        folder = archives.prepared(source, scratch / "unpacked")
        patterns = {split: _plain(pattern) for split, pattern in entry.files.items()}
        raw = Source(folder, entry.columns, patterns, entry.encoding)
        items = reader.find(raw)
        if isinstance(items, list):  # else they are found out while they are read
            _check_shares(source, {item.split for item in items}, val, test)
        with ShardWriter(scratch / "new") as staging:
            found = reading.read(
                items, kind=kind, folder=folder, options=options, known=known, staging=staging, sums=sums,
                title=f"ingest@{dataset}", now=now,
            )  # fmt: skip
        reading.check_sums(source, sums, lambda name: True)
        _check_readable(source, found, entry.max_bad, cache)
        classes = _classes(source, found)

        kept, doubles = _distinct(found)
        new = Shards(scratch / "new")
        pairs, compared = np.zeros((0, 2), np.int64), 0
        if entry.near_duplicates:
            pairs, compared = _near(found, kept, known, new, kind, scratch / previous.FINGERPRINTS, f"ingest@{dataset}")
        splits, leaks = _split(found, kept, pairs, val=val, test=test)
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
        missing = _check_counts(source, classes, counts, refused, val, test)

        output.mkdir()  # by none of those that write into it at the same time
        with ThreadPoolExecutor() as pool:  # copying, hashing and writing leave the interpreter to the others
            written = []
            for split in SPLITS:
                numbers = [number for number, chosen in zip(kept, splits, strict=True) if chosen == split]
                written.append(pool.submit(_write, output / split, found, known, new, numbers, classes))
            _tables(output, found, kept, splits, pairs, refused, doubles)
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
            "options": entry.model_dump(exclude={"kind"}),
        }
        write_sealed(output / "about.json", about)
        # Not in about.json: a new library that changes nothing is no change.
        write_sealed(output / "key.json", {"key": key})
        report(output)
        swap(output, target)
        _remember(cache, scratch, key, found, kept, pairs)
        _say(target, about, refused, len(found.rows))


def split_of(content: bytes, *, val: float, test: float) -> str:
    """Returns train, val or test for an example, from its content alone.

    Its SHA-256, read as a number in [0, 1), is compared with the shares. So adding or removing data never moves an
    example to another split, equal content always shares one, and every class is split at the same shares up to
    chance: a class of n examples has ``n * test`` test examples, standard deviation ``sqrt(n * test * (1 - test))``.
    Nearly equal examples go by one among them, see ``leading``.
    """
    place = np.ldexp(int.from_bytes(content[:7]) >> 4, -52)
    return "test" if place < test else "val" if place < test + val else "train"


def leading(contents: Iterable[bytes]) -> bytes:
    """Returns the content of the near copy whose split all of them share.

    It is the one with the smallest SHA-256 of its SHA-256. The place of the content itself in [0, 1) takes no part in
    that choice, so groups of every size get the asked shares; the smallest content would be in the test too often. A
    group of one keeps its own split, and of n copies a further one decides for all with a probability of 1 / (n + 1).
    """
    return min(contents, key=lambda content: hashlib.sha256(content).digest())


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


def _check_shares(source: Path, given: set[str | None], val: float, test: float) -> None:
    for split, share in (("val", val), ("test", test)):
        if not share and split not in given:
            raise InputRefusedError(
                f"{source}: {split} = 0, and the data gives no {split} split, so there would be no examples in it. "
                "Give a share, or say with files which raw files belong to it."
            )


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


def _distinct(found: Found) -> tuple[list[int], list[tuple]]:
    """Returns the numbers of the examples that stay, one per content, and a row of duplicates.csv for each other."""
    usable = [number for number, content in enumerate(found.contents) if content]
    first: dict[bytes, int] = {}
    if any(found.given):
        usable.sort(key=lambda number: (RANK.get(found.given[number], 2), number))
    doubles = []
    for number in usable:
        original = first.setdefault(found.contents[number], number)
        if original != number:
            labels = (found.labels[number], found.labels[original])
            doubles.append((found.paths[number], found.paths[original], "same", *labels))
    return sorted(first.values()), doubles


def _near(
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
    described, search = (
        (duplicates.described, duplicates.pairs) if kind == "images" else (np.asarray, duplicates.text_pairs)
    )
    width = duplicates.DESCRIBED if kind == "images" else 4 * HASHES
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
            target[rows >= 0] = described(new.take(FINGERPRINT, rows[rows >= 0]))
        compared += int(duplicates.comparable(target).sum())
    where, earlier = {content: place for place, content in enumerate(contents)}, list(former)
    again = [(where.get(earlier[a], -1), where.get(earlier[b], -1)) for a, b in known.pairs.tolist()]
    again = [(a, b) for a, b in again if a >= 0 <= b]
    pairs = search(prints, np.array(fresh, np.int64), title) if fresh else np.zeros((0, 2), np.int64)
    pairs = np.sort(np.concatenate([pairs, np.array(again, np.int64).reshape(-1, 2)]), axis=1)
    return np.unique(pairs, axis=0), compared


def _split(
    found: Found, kept: list[int], pairs: np.ndarray, *, val: float, test: float
) -> tuple[list[str | None], list[tuple[str, str]]]:
    """Returns the split of each of the ``kept`` (None: left out), and (path, reason) of those left out.

    Near copies share a split. Where the raw data gives them several, the copies outside the test (else the
    validation) split are left out.
    """
    given = set(found.given)
    shares = {"val": 0.0 if "val" in given else val, "test": 0.0 if "test" in given else test}
    splits: list[str | None] = [found.given[number] for number in kept]
    for place, number in enumerate(kept):
        if splits[place] not in RANK:
            splits[place] = split_of(found.contents[number], **shares)
    group = duplicates.groups(len(kept), pairs)
    groups: dict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(np.bincount(group, minlength=len(kept))[group] > 1).tolist():
        groups[int(group[place])].append(place)
    leaks = []
    for members in groups.values():
        first = min(members, key=lambda place: RANK.get(found.given[kept[place]], 2))
        split = found.given[kept[first]]
        if split not in RANK:
            split = split_of(leading(found.contents[kept[place]] for place in members), **shares)
            for place in members:
                splits[place] = split
            continue
        for place in members:
            if found.given[kept[place]] != split:
                splits[place] = None
                reason = f"nearly the same as {found.paths[kept[first]]}, which the data set gives for {split}"
                leaks.append((found.paths[kept[place]], reason))
    return splits, leaks


def _check_counts(
    source: Path, classes: list[str], counts: Counter, refused: list[tuple[str, str]], val: float, test: float
) -> dict[str, list[str]]:
    """Returns the classes that val and test lack.

    Raises:
        InputRefusedError: a split is empty, or a class has nothing to train on.
    """
    needed = classes or [None]
    missing = {split: [label for label in needed if not counts[split, label]] for split in SPLITS}
    if missing["train"] or needed in missing.values():
        empty = "; ".join(
            f"{split} has none of {', '.join(map(str, labels))}" if classes else f"{split} has none"
            for split, labels in missing.items()
            if labels
        )
        out = "".join(f"; {path} ({reason})" for path, reason in refused[:5])
        raise InputRefusedError(
            f"{source}: too few examples: {empty}. Add examples, remove the class, or change the shares val = {val}, "
            f"test = {test}. Left out: {len(refused)}{out}"
        )
    return missing


def _write(folder: Path, found: Found, known: Known, new: Shards, numbers: list[int], classes: list[str]) -> None:
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


def _tables(
    output: Path,
    found: Found,
    kept: list[int],
    splits: list[str | None],
    pairs: np.ndarray,
    refused: list[tuple[str, str]],
    doubles: list[tuple],
) -> None:
    """Writes manifest.parquet, quarantine.csv and duplicates.csv."""
    groups = duplicates.groups(len(kept), pairs)
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
