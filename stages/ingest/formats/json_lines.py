"""Reads tables of JSON objects, one a line: .jsonl, .ndjson."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from convoy.errors import ConfigurationError, InputRefusedError
from stages.ingest.formats.columns import Names, Record, Records, is_numbered
from stages.ingest.formats.text_files import encoding_of, lines
from stages.ingest.records import Source

JSON_HEAD = 100  # objects that are looked at for the names of the columns


def read(source: Source, file: str) -> tuple[Names, Callable[[Names], Records]]:
    """Returns the columns of a table, and what yields its rows: number of a row -> its values, or what is wrong.

    Raises:
        InputRefusedError: the table is damaged or empty, or two columns have the same name.
        ConfigurationError: columns are given by number, and the table has names.
    """
    path = source.folder / file
    if is_numbered(source):
        raise ConfigurationError(f"columns: {path} has names for its values, so give names and not numbers.")
    encoding = encoding_of(source, file)
    count, first = 0, ""
    names: dict[str, None] = {}
    for number, record in islice(_objects(path, encoding), JSON_HEAD):  # not kept: an object may take 100 MB
        count, first = count + 1, first or f"line {number}: {record}"
        for name, value in record.items() if isinstance(record, dict) else ():
            names |= {name: None} | {f"{name}.{inner}": None for inner in (value if isinstance(value, dict) else ())}
    if not count:
        raise InputRefusedError(f"{path} is empty.")
    if not names:
        raise InputRefusedError(f"{path} has no JSON object in its first {count} lines; {first}.")
    return list(names), lambda _: _objects(path, encoding)


def _objects(path: Path, encoding: str) -> Records:
    for number, line in lines(path, encoding):
        if not line.strip():
            continue
        try:
            record = json.loads(
                line, parse_int=str, parse_float=str, parse_constant=_no_constant, object_pairs_hook=_unique
            )
        except RecursionError:
            record = "JSON nested too deeply"
        except ValueError as error:
            record = f"no valid JSON: {error}"
        else:
            if not isinstance(record, dict):
                record = f"a JSON {type(record).__name__} where an object is needed"
        yield number, record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = {name: str(value).lower() if isinstance(value, bool) else value for name, value in pairs}
    if len(record) < len(pairs):
        raise ValueError("an object has a key twice")
    return record
