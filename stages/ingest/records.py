"""What every reader of raw data gives to ingest."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stages.shards import Arrays


@dataclass(frozen=True)
class Item:
    """One example as it lies in the raw data, not yet read.

    Attributes:
        path: where it is, relative to the raw folder; unique.
        label: name of its class.
        split: train, val or test if the raw data says so, else None.
        open: reads it; raises InputRefusedError with the reason where that fails.
    """

    path: str
    label: str
    split: str | None
    open: Callable[[], object]


@dataclass(frozen=True)
class Example:
    """One example, read and checked.

    Attributes:
        content: SHA-256 of what it shows, before it was brought to one size.
        arrays: what is stored, without the first axis.
        facts: what the manifest says of it, e.g. its original height and width.
    """

    content: str
    arrays: Arrays
    facts: dict[str, int | str]


def natural(label: str) -> tuple[int, int, str]:
    """Sort key that puts whole numbers first, by value: 2 before 10 before "cat"."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def share(content: str) -> float:
    """Reads a SHA-256 as a number that is uniform over [0, 1)."""
    return np.ldexp(int(content[:13], 16), -52)
