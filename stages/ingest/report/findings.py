"""The sentences of the page that a person should read first: what may be wrong with the data, and what is right."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from convoy import kinds
from convoy.pages.page import NAME, many, share, shown, words
from stages.ingest.report.gallery import Gallery
from stages.ingest.report.values import FEW, count_values, name_some

# Above these the page warns.
IMBALANCE = 3  # times the training examples of the smallest class
SOME = 0.1  # of the examples: near copies, enlarged or stretched ones
STRETCH = 1.5  # times the proportions that a picture had
AREAS = 16  # times the smallest picture
SHARED = 0.01  # of the sources of val or test: stand in train too


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence that a person should read first, and the id of the section that tells more."""

    level: Literal["warning", "note", "good"]
    sentence: str
    section: str


def judge(
    about: dict,
    manifest: pd.DataFrame,
    refused: pd.DataFrame,
    facts: list[str],
    hints: list[dict],
    gallery: Gallery,
) -> list[Finding]:
    """Returns what to know first, warnings before notes before what is good."""
    kind = kinds.get(about["kind"])
    noun = kind.noun
    found = [
        *_split_findings(about, manifest, noun),
        *(() if kind.has_classes else _source_findings(gallery)),
        *(_class_findings(about, noun) if about["classes"] else ()),
        *_reading_findings(about, manifest, refused, facts, noun),
        *(_size_findings(about["options"], manifest, noun) if {"height", "width"} <= set(facts) else ()),
    ]
    if names := [words(hint["name"]) for hint in hints if hint["high"]]:
        sentence = (
            f"The {name_some(names)} alone {'says' if len(names) == 1 else 'say'} much about the class, see below: "
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
        yield Finding("warning", f"The {split} split has no example of {name_some(labels)}.", "classes")
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
        sentence = f"{many(len(few), 'class')} with fewer than {FEW} training {noun}s: {name_some(few)}."
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
            counts = count_values(manifest[name]).to_dict()
            if without := counts.pop("none", 0):
                where = words(name.removesuffix("script")).strip()
                sentence = f"{many(without, noun)} without any letter{f' in the {where}' if where else ''}."
                yield Finding("warning", sentence, "facts")
            if len(counts) > 1:
                first, *others = (f"{script} {count:,}" for script, count in counts.items())
                yield Finding(
                    "warning", f"Mixed {words(name)}s: {shown(first)}, but also {name_some(others)}.", "facts"
                )
    encodings = about["reading"].get("encodings")
    safe = re.compile("ascii|utf.*|its own")  # the last: a file per text, and each was looked at
    if odd := {file: code for file, code in (encodings or {}).items() if not safe.fullmatch(code)}:
        sentence = f"Not in UTF-8 but read as {name_some(sorted(set(odd.values())))}: {name_some(odd)}."
        yield Finding("warning", f"{sentence} Do accents and quotes look right?", "examples")


def _left_unread(notes: Mapping[str, Any]) -> list[str]:
    """Returns what a reader found in the raw folder and left alone."""
    files = [shown(notes["left_out"], 2 * NAME)] if "left_out" in notes else []
    if tables := notes.get("tables left out"):
        files.append(name_some(tables))
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
