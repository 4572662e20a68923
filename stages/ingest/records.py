"""What every reader of raw data - a file of this folder, named by ``kind`` - takes from ingest and gives to it.

A reader has two functions::

    find(source: Source) -> Iterable[Item]              # in the main process: what there is, without decoding it
    decode(data: list[bytes] | Payload, **options) -> Example   # in a worker: one example, decoded and checked
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputRefusedError
from stages.shards import Arrays

LABEL_CHARACTERS = 200  # of one class name; a longer one is a text in the wrong column
UNEXPECTED = "cannot be decoded ("  # how the reason begins where a reader raised what it does not promise
REASON_CHARACTERS = 200  # of what the exception says
NO_TEXT = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8

Payload = bytes | str | tuple[str, ...] | np.ndarray


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


@dataclass(frozen=True, slots=True)
class Example:
    """One example, decoded and checked.

    Attributes:
        content: SHA-256 (32 bytes) of what it shows, before it was brought to one size.
        arrays: what is stored, without the first axis; a text as a str.
        facts: what the manifest says of it, e.g. its original height and width; the same keys for every example.
        fingerprint: uint8 vector by which near copies are found (``duplicates.py``); zeros: takes no part; None for
            every example: near copies are not looked for.
    """

    content: bytes
    arrays: Arrays | dict[str, str]
    facts: dict[str, int | str]
    fingerprint: np.ndarray | None = None


def decode_with(kind: str, data: list[bytes] | Payload, options: Mapping[str, Any]) -> Example:
    """Returns one example, decoded by the reader ``kind``.

    Libraries raise nearly anything at hostile bytes, and one example must not end a run, or a server. So every
    exception of a reader becomes a refusal of that example. A defect of a reader refuses most examples, which
    ``max_bad`` does not let pass.

    Raises:
        InputRefusedError: it cannot be decoded. The message is the reader's own reason, or begins with UNEXPECTED and
            names the exception.
        MemoryError: as the reader raised it: the cause is this machine, and the example may be fine.
    """
    decode = import_module(f"stages.ingest.{kind}").decode
    try:
        return decode(data, **options)
    except (InputRefusedError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:REASON_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        raise InputRefusedError(f"{UNEXPECTED}{type(error).__name__}): {text}") from error


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
