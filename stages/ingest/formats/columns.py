"""Finds the columns that have a role, and takes their values out of the rows of a table."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from convoy.errors import ConfigurationError, InputRefusedError
from stages.ingest.formats.folders import SPLIT_FOLDERS
from stages.ingest.records import Source

NAMES = {  # role -> usual names of its column, the first that there is; compared in lower case
    "text": ("text", "sentence", "review", "content", "question", "comment", "message", "tweet", "document"),
    "label": ("label", "class", "category", "target", "sentiment"),
    "split": ("split", "set", "subset"),
    "image": ("image", "img", "picture"),
    "path": ("file_name", "filename", "path", "file", "image_path"),
    "source": ("source", "src"),
    "target": ("target", "tgt"),
}
VALUE_CHARACTERS = 2**20  # of one value; several rows are in memory at a time
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write one alone, and then it is no character
KINDS = {dict: "an object", list: "a list", bytes: "bytes"}
Record = dict[str | int, Any]
Names = list[str | int]
# number of a row -> its values by column, or what is wrong with it
Records = Iterator[tuple[int, Record | str]]


def is_numbered(source: Source) -> bool:
    """Returns whether params.yaml gives columns by number, because the tables have no header."""
    given = [name for names in source.columns.values() for name in _listed(names)]
    numbers = [name for name in given if isinstance(name, int)]
    if numbers and len(numbers) < len(given):
        raise ConfigurationError(
            f"columns: {given} mixes names, which a header has, with numbers, for tables without one."
        )
    return bool(numbers)


def columns_of(
    source: Source, path: Path, found: Names, required: Sequence[str], optional: Sequence[str]
) -> dict[str, Names]:
    """Returns role -> columns."""
    columns = {}
    lower = {name.lower(): name for name in reversed(found) if isinstance(name, str)}
    listed = ", ".join(str(name) for name in found[:50])
    for role in (*required, *optional):
        names = _listed(source.columns.get(role, []))
        names = names or [lower[name] for name in NAMES[role] if name in lower][:1]
        missing = [name for name in names if name not in found]
        if missing:
            raise InputRefusedError(f"{path} has no column {missing[0]!r} (columns: {role}). It has: {listed}.")
        if names:
            columns[role] = names
        elif role in required:
            raise InputRefusedError(
                f"{path} has no column for the {role}: none is called {', '.join(NAMES[role])}. It has: {listed}. Say "
                f"which in params.yaml, columns: {{{role}: NAME}}, or by numbers from 0 if the file has no header."
            )
    return columns


def values_of(record: Record, columns: dict[str, Names]) -> tuple[dict[str, Any], str | None]:
    """Returns the values by role, and what is wrong with them."""
    values = {}
    for role, names in columns.items():
        parts = [_value(record, name) for name in names]
        for name, part in zip(names, parts, strict=True):
            if part is None:
                return {}, f"no value in the column {name}"
            if not isinstance(part, str):
                if role == "image" and isinstance(part, bytes | dict) and len(parts) == 1:
                    continue
                return {}, f"{KINDS.get(type(part), type(part).__name__)} in the column {name}, where a text is needed"
            if len(part) > VALUE_CHARACTERS:
                return {}, f"{len(part):,} characters in the column {name}; allowed are {VALUE_CHARACTERS:,}"
            if "\0" in part:
                return {}, f"a NUL in the column {name}"
            if SURROGATE.search(part):
                return {}, f"half a surrogate pair in the column {name}"
        values[role] = parts[0] if len(parts) == 1 else " ".join(parts)
    if "split" in values:
        word = str(values["split"]).strip()
        values["split"] = SPLIT_FOLDERS.get(word.lower())
        if values["split"] is None:
            return {}, f"the split {word!r} is none of {', '.join(SPLIT_FOLDERS)}"
    return values, None


def _listed(names: str | int | list[str | int]) -> Names:
    return names if isinstance(names, list) else [names]


def _value(record: Record, name: str | int) -> Any:
    if name in record:
        return record[name]
    first, _, rest = str(name).partition(".")
    inside = record.get(first)
    return inside.get(rest) if isinstance(inside, dict) else None
