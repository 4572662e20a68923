"""Decides which examples stay, and which split each is in: by content, so that no later data moves an example."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from convoy.errors import InputRefusedError
from stages.ingest.near import duplicates
from stages.ingest.reading import Found

SPLITS = ("train", "val", "test")
RANK = {"test": 0, "val": 1}  # of equal and nearly equal examples the one stays that the raw data gives for the test


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


def keep_distinct(found: Found) -> tuple[list[int], list[tuple]]:
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


def choose_splits(
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
    group = duplicates.group(len(kept), pairs)
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


def check_shares(source: Path, given: set[str | None], val: float, test: float) -> None:
    """Raises an InputRefusedError if the share of a split is 0 and the data does not give that split either."""
    for split, share in (("val", val), ("test", test)):
        if not share and split not in given:
            raise InputRefusedError(
                f"{source}: {split} = 0, and the data gives no {split} split, so there would be no examples in it. "
                "Give a share, or say with files which raw files belong to it."
            )


def check_counts(
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
