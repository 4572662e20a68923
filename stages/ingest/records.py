"""What every finder of raw data - a file of ``finders/``, named by ``kind`` - takes from ingest and gives to it.

It has one function, ``find(source: Source) -> Iterable[Item]``, which runs in the main process and decodes nothing. The
file of the same name in ``convoy/kinds`` decodes what it finds, in the workers.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from convoy.kinds.base import Payload

LABEL_CHARACTERS = 200  # of one class name; a longer one is a text in the wrong column
NO_TEXT = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


@dataclass(frozen=True)
class Source:
    """Raw data and what params.yaml says about reading it.

    Attributes:
        folder: where it lies, archives unpacked.
        columns: role -> column of a table: its name, its number from 0, or several to be joined by a space.
        files: split (train, val, test) -> glob pattern of the files that belong to it.
        encoding: of text files; None: detected per file.
        notes: filled by ``find`` with what it found out - layout, encodings, columns - for about.json and the user.
    """

    folder: Path
    columns: Mapping[str, str | int | list[str | int]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One example as it lies in the raw data, not yet decoded: whole files, or a part of one.

    Attributes:
        path: its name in the manifest, relative to the raw folder, unique: ``cat/1.png``, ``train.csv#17``.
        label: name of its class; None where the data has no classes (translation).
        split: train, val or test if the raw data says so, else None.
        files: the whole files that it consists of, relative to the raw folder; () if ``payload`` holds it.
        payload: what was taken out of a larger file: encoded bytes, a text, a pair of texts, or an array.
        problem: why it cannot be an example, e.g. a table row with a surplus field; None: nothing wrong so far.
    """

    path: str
    label: str | None
    split: str | None = None
    files: tuple[str, ...] = ()
    payload: Payload | None = None
    problem: str | None = None


@lru_cache(2**12)
def class_of(label: str) -> tuple[str | None, str | None]:
    """Returns the name of a class in Unicode form NFC and without superfluous spaces; or None, and what is wrong."""
    name = " ".join(label.split())
    if not 0 < len(name) <= LABEL_CHARACTERS:
        return None, f"the name of its class has {len(name)} characters; allowed are 1 to {LABEL_CHARACTERS}"
    if NO_TEXT.search(name):
        return None, "the name of its class has control characters, or is not UTF-8"
    return unicodedata.normalize("NFC", name), None


def natural(label: str) -> tuple[int, int, str]:
    """Sort key that puts whole numbers first, by value: 2 before 10 before "cat"."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
