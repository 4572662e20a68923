"""Writes data/ingest/<dataset>/report.html: can this data be trusted, at a glance and without network?

The page is one file: style, charts (SVG) and small pictures are in it; no script. It follows from the stage's other
output alone - no date, nothing random - so that equal data gives equal bytes. Everything that comes from the data is
escaped, and everything that grows with it has a cap; what the page leaves out stands in the tables beside it.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from convoy.data.shards import Shards, objects, spread
from convoy.files import read_sealed
from convoy.pages.page import NAME, many, picture, share, shown, template, words

SPLITS = ("train", "val", "test")
NOUNS = {"images": "picture", "volumes": "volume", "text": "text", "translation": "sentence pair"}
COLUMNS = ("path", "label", "split", "sha256", "near")  # of the manifest; the others are facts
SHOWN = ("image", "volume", "text", "source", "target")  # the arrays

# Above these the page warns, and says so.
IMBALANCE = 3  # times the training examples of the smallest class
FEW = 20  # training examples of a class; below, it has no average either
SOME = 0.1  # of the examples: near copies, enlarged or stretched ones
STRETCH = 1.5  # times the proportions that a picture had
AREAS = 16  # times the smallest picture
SHARED = 0.01  # of the sources of val or test: stand in train too
GAIN = 0.1  # of the accuracy, above always answering the most common class

# Caps that keep the page below 3 MB: 500 pictures of noise, the least compressible, are 2.9 MB.
TILE = 80  # pixels, height of a picture on the page
TILES, CLASSES = 300, 50  # examples on the page, and classes that show any
PER_CLASS = {"images": 9, "volumes": 7, "text": 5, "translation": 10}  # examples: what fills one line or two
AVERAGED = 100  # examples in the average of a class
READ = 64 * 2**20  # bytes, for all averages together
BLOCK = 2**12  # sources read at a time
ROWS, ALL_ROWS = 60, 1000  # classes in the chart and in the folded table
GROUPS, MEMBERS = 16, 5  # of near copies
CONFLICTS, COPIES, REASONS, NAMES = 16, 24, 20, 5
VALUES = 8  # different ones of a fact, up to which each has its own bar
BINS = 36
WIDE, HIGH = 420, 150  # of a chart


def report(folder: Path) -> None:
    """Writes ``folder``/report.html about the finished output of ingest in ``folder``."""
    about = read_sealed(folder / "about.json")
    manifest = pd.read_parquet(folder / "manifest.parquet")
    refused, doubles = _table(folder / "quarantine.csv"), _table(folder / "duplicates.csv")
    facts = [name for name in manifest.columns if name not in COLUMNS]
    gallery = Gallery(folder, manifest)
    hints = _hints(manifest, facts)
    page = template(Path(__file__).with_name("report.html.jinja")).render(
        about=about,
        many=many,
        noun=NOUNS[about["kind"]],
        total=len(manifest),
        left_out=len(refused),
        findings=_findings(about, manifest, refused, facts, hints, gallery),
        balance=_balance(about["counts"], about["classes"]),
        samples=_samples(about, manifest, gallery),
        charts=_charts(about, manifest, facts),
        hints=hints,
        conflicts=_conflicts(doubles, gallery),
        near=_near(doubles, manifest, gallery),
        copies=_copies(doubles, gallery),
        reasons=_reasons(refused, doubles),
        reading={**about["reading"], **about["options"]},
        lines=_lines,
        few=FEW,
    )
    (folder / "report.html").write_bytes(page.encode())


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence that a person should read first, and the id of the section that tells more."""

    level: Literal["warning", "note", "good"]
    sentence: str
    section: str


@dataclass(frozen=True, slots=True)
class View:
    """One example as the page shows it: a picture (``src``) or texts, or its name alone if it was left out.

    Attributes:
        path: as in the manifest.
        label: "" if it has none.
        split: "" if it was left out.
        texts: one, or a pair.
        src: the picture, as a data: URI.
        width: of the picture on the page, in CSS pixels.
        height: likewise.
        enlarged: its own pixels are smaller.
    """

    path: str
    label: str
    split: str = ""
    texts: tuple[str, ...] = ()
    src: str = ""
    width: int = 0
    height: int = 0
    enlarged: bool = False


class Gallery:
    """Shows single examples, by their position in the manifest; only these are read from the shards."""

    def __init__(self, folder: Path, manifest: pd.DataFrame) -> None:
        # Written a moment ago by the same process; verifying would read all of it.
        self._shards = {split: Shards(folder / split, verify=False) for split in manifest["split"].unique()}
        self._rows = manifest.groupby("split").cumcount().to_numpy()
        self._positions = pd.Index(manifest["path"], dtype=object)
        labels = manifest["label"] if "label" in manifest else [""] * len(manifest)
        self._names = list(zip(manifest["path"], labels, manifest["split"], strict=True))
        self._shown = [name for name in SHOWN if name in self._shards["train"].names]
        self.pictures = "text" not in self._shown and "source" not in self._shown

    def view(self, position: int) -> View:
        """Returns the example at ``position``."""
        name = self._names[position]
        example = [self._shards[name[-1]].take(array, self._rows[[position]])[0] for array in self._shown]
        return View(*name, (), *picture(*example, TILE)) if self.pictures else View(*name, tuple(example))

    def positions(self, paths: Iterable[str]) -> np.ndarray:
        """Returns where the examples of these ``paths`` are in the manifest; -1: left out."""
        return self._positions.get_indexer(objects(paths))

    def named(self, path: str, label: str) -> View:
        """Returns the example ``path``, or if it was left out, what is known of it."""
        position = self.positions([path])[0]
        return View(path, label) if position < 0 else self.view(position)

    def sources(self, split: str) -> np.ndarray:
        """Returns a hash of each source of the sentence pairs of ``split``: uint64, (examples,)."""
        shards = self._shards[split]
        rows = (np.arange(first, min(first + BLOCK, len(shards))) for first in range(0, len(shards), BLOCK))
        digests = [
            hashlib.blake2b(text.encode(), digest_size=8).digest()
            for some in rows
            for text in shards.take("source", some)
        ]
        return np.frombuffer(b"".join(digests), np.uint64)

    def averaged(self, classes: int) -> int:
        """Returns how many examples of each of the ``classes`` go into its average; 0: texts, or too large."""
        train = self._shards["train"]
        count = min(AVERAGED, READ // (train.row_bytes * classes)) if self.pictures else 0
        return count if count >= FEW else 0

    def average(self, positions: np.ndarray) -> View:
        """Returns the average of the training examples at ``positions``."""
        train, rows = self._shards["train"], self._rows[positions]
        step = max(1, 2**22 // train.row_bytes)  # 4 MiB at a time
        parts = (train.take(self._shown[0], rows[first : first + step]) for first in range(0, len(rows), step))
        total = sum(part.sum(axis=0, dtype=np.float64) for part in parts)
        return View("", "", "", (), *picture((total / len(rows)).round().astype(np.uint8), TILE))


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)  # a class may be called NA


def _counted(values: pd.Series) -> pd.Series:
    """Returns how often each value occurs, the most frequent first, equally frequent ones by value."""
    return values.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - NAMES:,} more" if len(names) > NAMES else ""
    return ", ".join(shown(name, 40) for name in names[:NAMES]) + rest


def _findings(
    about: dict,
    manifest: pd.DataFrame,
    refused: pd.DataFrame,
    facts: list[str],
    hints: list[dict],
    gallery: Gallery,
) -> list[Finding]:
    """Returns what to know first, warnings before notes before what is good."""
    noun = NOUNS[about["kind"]]
    found = [
        *_split_findings(about, manifest, noun),
        *(_source_findings(gallery) if about["kind"] == "translation" else ()),
        *(_class_findings(about, noun) if about["classes"] else ()),
        *_reading_findings(about, manifest, refused, facts, noun),
        *(_size_findings(about["options"], manifest, noun) if {"height", "width"} <= set(facts) else ()),
    ]
    if names := [words(hint["name"]) for hint in hints if hint["high"]]:
        sentence = (
            f"The {_listed(names)} alone {'says' if len(names) == 1 else 'say'} much about the class, see below: "
            "a model may learn that and not the content."
        )
        found.append(Finding("warning", sentence, "hints"))
    levels = ("warning", "note", "good")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def _split_findings(about: dict, manifest: pd.DataFrame, noun: str) -> Iterator[Finding]:
    sought = about["near_duplicates"] is not None
    groups = manifest[manifest["near"] != ""].groupby("near")["split"].nunique()
    leaks = len(manifest) - manifest["sha256"].nunique() + int((groups > 1).sum())
    if leaks:
        sentence = f"{many(leaks, noun)} or groups of near copies are in more than one split: scores will be too good."
        yield Finding("warning", sentence, "near")
    elif sought:
        yield Finding("good", f"No {noun} is in two splits, and no two near copies are in different ones.", "near")
    else:
        yield Finding("note", f"No {noun} is in two splits. Near copies were not looked for.", "near")
    alone = len(manifest) + about["left_out_of_train"] - about["near_compared"]
    if sought and alone:
        have = "has" if alone == 1 else "have"
        sentence = f"{many(alone, noun)} {have} too little to compare: near copies of them were not looked for."
        yield Finding("note", sentence, "near")
    equal = "equal or nearly equal" if sought else "equal"
    if pairs := about["duplicates_under_another_label"]:
        sentence = (
            f"{many(pairs, 'pair')} of {equal} {noun}s {'has' if pairs == 1 else 'have'} two labels: one "
            "of them is wrong, or the classes overlap."
        )
        yield Finding("warning", sentence, "conflicts")
    elif about["classes"]:
        yield Finding("good", f"No two {equal} {noun}s have different labels.", "copies")
    if about["near_duplicates"]:
        members = int((manifest["near"] != "").sum())
        part = members / len(manifest)
        sentence = f"{many(members, noun)} ({share(part)}) are near copies, in {many(len(groups), 'group')}"
        if part > SOME:
            yield Finding("warning", f"{sentence}: there is less to learn from than the counts say.", "near")
        else:
            yield Finding("note", f"{sentence}.", "near")
    if count := about["left_out_of_train"]:
        sentence = f"{many(count, noun)} left out, nearly the same as one that the data set gives for test or val."
        yield Finding("note", sentence, "left-out")
    if count := about["duplicates"]:
        yield Finding("note", f"{many(count, 'exact copy')} left out; one of each was kept.", "copies")


def _source_findings(gallery: Gallery) -> Iterator[Finding]:
    """Yields how many sources of val and of test are sources of train too, there with another target."""
    train = gallery.sources("train")
    for split in ("val", "test"):
        sources = gallery.sources(split)
        if count := int(np.isin(sources, train).sum()):
            part = count / len(sources)
            sentence = (
                f"{share(part)} of the sources in {split} stand in train too ({count:,} of {len(sources):,}), with "
                "another target: a model may know them by heart."
            )
            yield Finding("warning" if part > SHARED else "note", sentence, "near")
        else:
            yield Finding("good", f"No source in {split} stands in train too.", "near")


def _class_findings(about: dict, noun: str) -> Iterator[Finding]:
    train, test = about["counts"]["train"], about["counts"]["test"]
    for split, labels in about["missing"].items():
        yield Finding("warning", f"The {split} split has no example of {_listed(labels)}.", "classes")
    if not about["missing"]:
        yield Finding("good", "Every class is in every split.", "classes")
    large, small = max(train, key=train.get), min(train, key=train.get)
    always = f"Always answering {shown(large, 40)} scores {share(test[large] / max(1, sum(test.values())))} on test."
    if train[large] > IMBALANCE * train[small]:
        sentence = (
            f"Unequal classes: {train[large]:,} training {noun}s of {shown(large, 40)}, {train[small]:,} of "
            f"{shown(small, 40)}, {train[large] / max(1, train[small]):,.1f} times as many. {always}"
        )
        yield Finding("warning", sentence, "classes")
    else:
        yield Finding(
            "good", f"No class has more than {IMBALANCE} times the training examples of another. {always}", "classes"
        )
    if few := [label for label, count in train.items() if count < FEW]:
        sentence = f"{many(len(few), 'class')} with fewer than {FEW} training {noun}s: {_listed(few)}."
        yield Finding("warning", sentence, "classes")
    if shifted := _shifted(train, test):
        label, before, after = shifted[0]
        rest = f", and {many(len(shifted) - 1, 'other class')} likewise" if len(shifted) > 1 else ""
        sentence = f"{shown(label, 40)} is {share(before)} of train and {share(after)} of test{rest}."
        yield Finding("warning", f"Train and test differ: {sentence}", "classes")
    if count := sum(test.values()):
        margin = 196 * math.sqrt(0.9 * 0.1 / count)  # normal approximation, in points
        sentence = (
            f"90% accuracy on {many(count, 'test example')} would be known to ±{margin:.1f} points (95% interval)."
        )
        yield Finding("note", sentence, "classes")


def _shifted(train: Mapping[str, int], test: Mapping[str, int]) -> list[tuple[str, float, float]]:
    """Returns the classes whose shares differ by 4 standard errors and half the share, the largest difference first."""
    many_train, many_test = sum(train.values()), sum(test.values())
    result = []
    for label in train:
        before, after = train[label] / many_train, test[label] / max(1, many_test)
        both = (train[label] + test[label]) / (many_train + many_test)
        error = math.sqrt(both * (1 - both) * (1 / many_train + 1 / max(1, many_test)))
        if abs(after - before) > max(4 * error, before / 2):
            result.append((label, before, after))
    return sorted(result, key=lambda row: -abs(row[2] - row[1]))


def _reading_findings(
    about: dict, manifest: pd.DataFrame, refused: pd.DataFrame, facts: list[str], noun: str
) -> Iterator[Finding]:
    total = len(manifest) + len(refused)
    if bad := about["unreadable"]:
        yield Finding("warning", f"{bad:,} of {many(total, noun)} could not be read.", "left-out")
    else:
        yield Finding("good", f"All of {many(total, noun)} could be read.", "reading")
    if unread := about["reading"].get("unread"):
        yield Finding("warning", f"{unread[0].upper()}{shown(unread[1:], 2 * NAME)}.", "reading")
    if files := _left_unread(about["reading"]):
        yield Finding("note", f"Not read: {'; '.join(files)}.", "reading")
    for name in facts:
        if name.endswith("script"):
            counts = _counted(manifest[name]).to_dict()
            if without := counts.pop("none", 0):
                where = words(name.removesuffix("script")).strip()
                sentence = f"{many(without, noun)} without any letter{f' in the {where}' if where else ''}."
                yield Finding("warning", sentence, "facts")
            if len(counts) > 1:
                first, *others = (f"{script} {count:,}" for script, count in counts.items())
                yield Finding("warning", f"Mixed {words(name)}s: {shown(first)}, but also {_listed(others)}.", "facts")
    encodings = about["reading"].get("encodings")
    safe = re.compile("ascii|utf.*|its own")  # the last: a file per text, and each was looked at
    if odd := {file: code for file, code in (encodings or {}).items() if not safe.fullmatch(code)}:
        sentence = f"Not in UTF-8 but read as {_listed(sorted(set(odd.values())))}: {_listed(odd)}."
        yield Finding("warning", f"{sentence} Do accents and quotes look right?", "examples")


def _left_unread(notes: Mapping[str, Any]) -> list[str]:
    """Returns what a reader found in the raw folder and left alone."""
    files = [shown(notes["left_out"], 2 * NAME)] if "left_out" in notes else []
    if tables := notes.get("tables left out"):
        files.append(_listed(tables))
    if unnamed := notes.get("pictures that no row names"):
        names = ", ".join(shown(name, 40) for name in unnamed["examples"])
        files.append(f"{many(unnamed['number'], 'picture')} that no row names, e.g. {names}")
    return files


def _size_findings(options: dict, manifest: pd.DataFrame, noun: str) -> Iterator[Finding]:
    height, width = manifest["height"].to_numpy(float), manifest["width"].to_numpy(float)
    high, wide = options["size"][-2:]
    enlarged = float(((height < high) | (width < wide)).mean())
    if enlarged:
        sentence = f"{share(enlarged)} of the {noun}s were smaller than the stored {high} x {wide} and are enlarged."
        yield Finding("warning" if enlarged > SOME else "note", sentence, "facts")
    proportions = (width / height) / (wide / high)
    changed = float((np.maximum(proportions, 1 / proportions) > STRETCH).mean())
    if changed and options.get("fit") != "pad":
        done = "cut" if options.get("fit") == "crop" else "stretched"
        sentence = f"{share(changed)} of the {noun}s are {done} by more than {STRETCH} times to fit {high} x {wide}."
        yield Finding("warning" if changed > SOME else "note", sentence, "facts")
    areas = height * width
    if areas.max() > AREAS * areas.min():
        small, large = (f"{width[place]:.0f} x {height[place]:.0f}" for place in (areas.argmin(), areas.argmax()))
        yield Finding("note", f"Sizes differ much: from {small} to {large} (width x height).", "facts")


def _hints(manifest: pd.DataFrame, facts: list[str]) -> list[dict]:
    """Returns how often a fact alone - format, size, length - tells the class of a test example, best first.

    Each value (of numbers each tenth) answers with its most common class in train. Beyond always answering the most
    common class, that is what a model can learn from how the data was made and not from what it shows.
    """
    if "label" not in manifest or not {"train", "test"} <= set(manifest["split"]):
        return []
    columns = {name: _tenths(manifest[name]) for name in facts if manifest[name].nunique() > 1}
    if {"height", "width"} <= set(columns):
        columns["size"] = manifest["width"] * 10**6 + manifest["height"]
    train, test = (manifest["split"] == split for split in ("train", "test"))
    labels = manifest["label"]
    common = labels[train].value_counts().sort_index().idxmax()
    base, count = float((labels[test] == common).mean()), int(test.sum())
    margin = max(GAIN, 4 * math.sqrt(base * (1 - base) / count))
    result = []
    for name, values in columns.items():
        votes = pd.DataFrame({"value": values[train], "label": labels[train]}).value_counts(sort=False).reset_index()
        votes = votes.sort_values("count", ascending=False, kind="stable").drop_duplicates("value")
        answers = values[test].map(votes.set_index("value")["label"]).fillna(common)
        score = float((answers == labels[test]).mean())
        result.append({"name": name, "score": score, "base": base, "common": common, "high": score > base + margin})
    return sorted(result, key=lambda hint: -hint["score"])


def _tenths(values: pd.Series) -> pd.Series:
    """Returns texts and the few values of a number as they are, of many the tenth that each is in."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= VALUES:
        return values
    edges = np.quantile(values, np.linspace(0.1, 0.9, 9))
    return pd.Series(np.searchsorted(edges, values), index=values.index)


def _balance(counts: Mapping[str, Mapping[str, int]], classes: list[str]) -> dict:
    """Returns the rows of the class chart, in the order of the classes; above ROWS, also all sizes as a curve."""
    longest = {split: max(of.values(), default=0) or 1 for split, of in counts.items()}
    chosen = _extremes(counts["train"], ROWS)

    def row(label: str) -> dict:
        cells = [(of[label], 100 * of[label] / longest[split]) for split, of in counts.items()]
        return {"label": label, "cells": cells, "few": counts["train"][label] < FEW}

    result = {"rows": [row(label) for label in classes if label in chosen], "all": [], "curve": None}
    if len(classes) > ROWS:
        sizes = np.sort(np.fromiter(counts["train"].values(), np.int64))[::-1]
        places = _spread(np.arange(len(sizes)), 200)
        points = [(WIDE * place / (len(sizes) - 1), HIGH * (1 - sizes[place] / sizes[0])) for place in places]
        result["curve"] = {"points": points, "largest": int(sizes[0]), "smallest": int(sizes[-1])}
        result["all"] = [row(label) for label in classes[:ALL_ROWS]]
    return result


def _extremes(counts: Mapping[str, int], most: int) -> set[str]:
    """Returns all classes, or if there are more than ``most``, half of that of the largest and half of the smallest."""
    falling = sorted(counts, key=lambda label: -counts[label])
    return set(falling if len(falling) <= most else falling[: most // 2] + falling[-(most // 2) :])


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[spread(len(rows), most)]


def _samples(about: dict, manifest: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns examples of each class, evenly spaced over its training rows: neighbours are often of one scene."""
    train = np.flatnonzero(manifest["split"] == "train")
    classes = about["classes"] or [""]
    chosen = _extremes(about["counts"]["train"], CLASSES) if about["classes"] else {""}
    most = min(PER_CLASS[about["kind"]], TILES // len(chosen))
    averaged = gallery.averaged(len(chosen))
    codes = pd.Categorical(manifest["label"].to_numpy()[train], classes).codes if about["classes"] else 0 * train
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(classes) + 1))
    result = []
    for number, label in enumerate(classes):
        if label in chosen:
            rows = train[order[ends[number] : ends[number + 1]]]
            average = gallery.average(rows[:averaged]) if averaged and len(rows) >= FEW else None
            views = [gallery.view(row) for row in _spread(rows, most)]
            result.append({"label": label, "count": len(rows), "average": average, "views": views})
    return {"classes": result, "averaged": averaged, "left": len(classes) - len(result)}


def _charts(about: dict, manifest: pd.DataFrame, facts: list[str]) -> dict:
    """Returns what the page draws of the facts: those that never change, a scatter of sizes, bars and histograms."""
    result: dict[str, Any] = {"same": {}, "scatter": None, "bars": [], "histograms": []}
    drawn = set()
    if {"height", "width"} <= set(facts) and manifest["height"].nunique() > 1 < manifest["width"].nunique():
        width, height = manifest["width"].to_numpy(), manifest["height"].to_numpy()
        result["scatter"] = _scatter(width, height, about["options"]["size"])
        drawn = {"height", "width"}
    for name in facts:
        values, different = manifest[name], manifest[name].nunique()
        if different == 1:
            result["same"][name] = values.iloc[0]
        elif name not in drawn and pd.api.types.is_numeric_dtype(values) and different > VALUES:
            result["histograms"].append({"name": name, **_histogram(values.to_numpy())})
        elif name not in drawn:
            counts = _counted(values)
            bars = [(value, int(count), 100 * count / counts.iloc[0]) for value, count in counts[:VALUES].items()]
            result["bars"].append({"name": name, "bars": bars, "rest": len(counts) - len(bars)})
    return result


def _histogram(values: np.ndarray) -> dict:
    """Returns bars (left, top, width, height, what it says), ticks and quantiles; the last bar is the long tail."""
    low, high = int(values.min()), int(values.max())
    near_top = int(np.quantile(values, 0.99))
    top = high if high <= 2 * near_top else near_top
    step = _step(top - low, BINS)
    first = low // step * step
    bins = (top - first) // step + 1
    counts = np.bincount(np.minimum((values.astype(np.int64) - first) // step, bins - 1), minlength=bins)
    wide, bars = WIDE / bins, []
    for place, count in enumerate(counts.tolist()):
        start_, end = first + place * step, first + (place + 1) * step - 1
        name = f"{start_:,} and more" if place == bins - 1 and high > end else f"{start_:,} to {end:,}"
        tall = HIGH * count / counts.max()
        bars.append((place * wide, HIGH - tall, wide - 1, tall, f"{name if step > 1 else f'{start_:,}'}: {count:,}"))
    ticks = [(value, WIDE * (value - first) / (bins * step)) for value in _ticks(first, first + bins * step)]
    quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).round().astype(int).tolist()
    return {"bars": bars, "ticks": ticks, "quantiles": quantiles, "peak": int(counts.max())}


def _scatter(width: np.ndarray, height: np.ndarray, size: list[int]) -> dict:
    """Returns circles (x, y, radius, what it says) of the sizes, ticks of both axes, and where the stored size is."""
    low = min(width.min(), height.min(), *size[-2:])
    high = max(width.max(), height.max(), *size[-2:])
    logarithmic = high > 10 * low
    scale = np.log if logarithmic else np.asarray
    low, high = (low / 1.3, high * 1.3) if logarithmic else (max(0, low - (high - low) / 10), high + (high - low) / 10)

    def place(value: np.ndarray | float) -> np.ndarray:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    cells = 48  # per axis: each circle stands for the pictures of about one size
    across, up = (np.minimum(place(values) * cells, cells - 1).astype(int) for values in (width, height))
    found = pd.DataFrame({"across": across, "up": up, "width": width, "height": height}).groupby(["across", "up"])
    table = found.agg(n=("width", "size"), width=("width", "median"), height=("height", "median"))
    side = 300
    circles = [
        (
            side * float(place(row.width)),
            side * (1 - float(place(row.height))),
            1.5 + 8 * math.sqrt(row.n / table["n"].max()),
            f"about {row.width:.0f} x {row.height:.0f}: {row.n:,}",
        )
        for row in table.itertuples()
    ]
    wanted = [m * 10**power for power in range(7) for m in (1, 2, 5)] if logarithmic else _ticks(low, high)
    ticks = [(value, side * float(place(value))) for value in wanted if low <= value <= high]
    stored = side * float(place(size[-1])), side * (1 - float(place(size[-2])))
    return {"side": side, "circles": circles, "ticks": ticks, "stored": stored, "logarithmic": logarithmic}


def _step(span: float, most: int) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, ... of which up to ``most`` span ``span``."""
    power = 0
    while True:
        for factor in (1, 2, 5):
            if span <= most * factor * 10**power:
                return factor * 10**power
        power += 1


def _ticks(low: float, high: float) -> list[int]:
    step = _step(high - low, 6)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))


def _conflicts(doubles: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns the pairs of examples that are the same, or nearly, under two labels."""
    rows = doubles[doubles["label"] != doubles["other_label"]]
    pairs = []
    for row in rows[:CONFLICTS].itertuples():
        first, second = gallery.named(row.path, row.label), gallery.named(row.same_as, row.other_label)
        if row.how == "same":  # shows the same
            first = replace(second, path=row.path, label=row.label, split="")
        pairs.append((first, second, row.how))
    return {"pairs": pairs, "count": len(rows)}


def _near(doubles: pd.DataFrame, manifest: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns the largest groups of near copies; members that were left out belong to them too."""
    members = manifest.loc[manifest["near"] != "", ["path", "near"]].reset_index(names="position")
    pairs = doubles.loc[doubles["how"] == "near", ["path", "label", "same_as", "other_label"]]
    turned = pairs.set_axis(["same_as", "other_label", "path", "label"], axis=1)
    ends = pd.concat([pairs, turned])
    out = ends.loc[gallery.positions(ends["path"]) < 0, ["path", "label", "same_as"]]
    groups_of = members.set_axis(["position", "same_as", "near"], axis=1)
    left_out = out.merge(groups_of, on="same_as").drop_duplicates("path")
    sizes = pd.concat([members["near"], left_out["near"]]).value_counts(sort=False)
    first = members.groupby("near")["position"].first()
    table = pd.DataFrame({"size": sizes, "first": first}).sort_values(["size", "first"], ascending=[False, True])
    groups = []
    for near, size in table["size"][:GROUPS].items():
        out = left_out[left_out["near"] == near]
        kept = members.loc[members["near"] == near, "position"][: MEMBERS - min(len(out), 2)]
        views = [gallery.view(position) for position in kept]
        views += [View(row.path, row.label) for row in out[: MEMBERS - len(views)].itertuples()]
        groups.append({"views": views, "rest": int(size) - len(views)})
    return {"groups": groups, "count": len(table), "members": len(members), "left_out": len(left_out)}


def _copies(doubles: pd.DataFrame, gallery: Gallery) -> dict:
    """Returns the examples with the most exact copies, and the paths of these."""
    same = doubles[doubles["how"] == "same"]
    most = _counted(same["same_as"])[:COPIES]
    rows = []
    for kept, count in most.items():
        paths = same.loc[same["same_as"] == kept, "path"][:NAMES].tolist()
        rows.append({"kept": gallery.named(kept, ""), "paths": paths, "count": int(count)})
    return {"rows": rows, "count": len(same), "kept": same["same_as"].nunique()}


def _reasons(refused: pd.DataFrame, doubles: pd.DataFrame) -> list[dict]:
    """Returns what was left out by reason, the most frequent first; what stands behind a colon is no other reason."""
    names, paths = refused["reason"].str.split(":").str[0].str.slice(0, NAME), refused["path"]
    names[paths.isin(doubles["path"]) | paths.isin(doubles["same_as"])] = "nearly the same as another"
    names[paths.isin(doubles.loc[doubles["how"] == "same", "path"])] = "the same as another"
    counts = _counted(names)
    result = []
    for name, count in counts[:REASONS].items():
        examples = refused[names == name][:NAMES]
        result.append({"name": name, "count": int(count), "rows": list(examples.itertuples(index=False))})
    rest = int(counts[REASONS:].sum())
    return result + ([{"name": "other reasons", "count": rest, "rows": []}] if rest else [])


def _lines(note: object) -> list[str]:
    """Returns a note of the reader, or an option, as lines of text."""
    if isinstance(note, Mapping):
        lines = [f"{shown(name)}: {shown(', '.join(_lines(value)))}" for name, value in note.items()]
    elif isinstance(note, list):
        lines = [shown(", ".join(map(str, note)))]
    else:
        lines = [shown(note)]
    return lines if len(lines) <= 2 * NAMES else [*lines[: 2 * NAMES], f"and {len(lines) - 2 * NAMES:,} more"]
