"""Reads tables - .csv, .tsv, .jsonl, .parquet - row by row, with every value as the text that stands there.

"NA" stays "NA" and "001" stays "001", where pandas makes NaN and 1; and a field too many is a problem of its row, where
pandas shifts columns.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from convoy.errors import ConfigurationError, InputRefusedError
from stages.ingest.formats.compressed import FLOOR_BYTES, RATIO
from stages.ingest.formats.folders import SPLIT_FOLDERS, check_name, printable
from stages.ingest.formats.text_files import encoding_of, lines
from stages.ingest.records import Source

SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz")
NAMES = {  # role -> usual names of its column, the first that there is; compared in lower case
    "text": ("text", "sentence", "review", "content", "question", "comment", "message", "tweet", "document"),
    "label": ("label", "class", "category", "target", "sentiment"),
    "split": ("split", "set", "subset"),
    "image": ("image", "img", "picture"),
    "path": ("file_name", "filename", "path", "file", "image_path"),
    "source": ("source", "src"),
    "target": ("target", "tgt"),
}
ROW_CHARACTERS = 2**23  # of one row of a .csv; a quote left open would take the rest of the file
VALUE_CHARACTERS = 2**20  # of one value; several rows are in memory at a time
JSON_HEAD = 100  # objects that are looked at for the names of the columns
BATCH = 64  # rows of a Parquet file in memory at a time
BATCH_BYTES = 64 * 2**20  # that these may take
GROUP_BYTES = 4 * 2**30  # of one row group of a Parquet file, unpacked; writers make some 100 MB

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write one alone, and then it is no character
KINDS = {dict: "an object", list: "a list", bytes: "bytes"}

Record = dict[str | int, Any]
Names = list[str | int]
# number of a row -> its values by column, or what is wrong with it
Records = Iterator[tuple[int, Record | str]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        number: from 1: the line on which it begins; in a Parquet file, which has no lines, the row.
        values: role -> text; of the role image also the bytes or the struct (dict) that a Parquet file has.
        problem: why it cannot be used, with its number; None: it can.
    """

    number: int
    values: dict[str, Any]
    problem: str | None = None


def table_files(source: Source, files: Sequence[str]) -> list[str]:
    """Returns those of ``files`` that are tables.

    By their endings (.csv, .tsv, .tab, .jsonl, .ndjson, .parquet; but for .parquet also with .gz, .bz2 or .xz). Where
    there is none and params.yaml gives columns by number, every .txt file and every file without an ending is a .tsv.
    """
    tables = [file for file in files if _ending(file) in SUFFIXES]
    if tables or not _numbered(source):
        return tables
    return [file for file in files if _ending(file) in (".txt", "")]


def rows(source: Source, file: str, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Yields the rows of one table with the values of the columns that have a role.

    The column of a role is what ``columns`` in params.yaml says - a name (``a.b`` is the field b of the JSON object or
    Parquet struct a), a number from 0 for a .csv or .tsv without a header, or a list of these, joined by a space - else
    the first of its usual names (``NAMES``). A null is a problem of its row. A split is returned as train, val or test.

    A .csv is separated by what its first line has most often outside quotes: comma, semicolon or tab. In a .tsv a
    quotation mark is text (IANA text/tab-separated-values) unless they surround every field of the first line.
    Numbers of JSON stay as written; those of Parquet become the shortest text (1.0 becomes "1", true "true"), or the
    name of their class where Hugging Face's metadata has it.

    Args:
        source: whose notes get the chosen columns and encodings.
        file: path relative to the folder.
        required: roles that have to have a column.
        optional: roles that may have one.

    Raises:
        ConfigurationError: ``columns`` names a role that is none of these, or mixes names and numbers.
        InputRefusedError: the file is damaged, empty, or lacks a column, or two columns have the same name.
    """
    unknown = source.columns.keys() - {*required, *optional}
    if unknown:
        raise ConfigurationError(
            f"columns: {', '.join(sorted(unknown))} is no role here. Allowed: {', '.join((*required, *optional))}."
        )
    path, ending = source.folder / file, _ending(file)
    read = {".csv": _csv, ".tsv": _csv, ".tab": _csv, ".txt": _csv, "": _csv, ".parquet": _parquet}.get(ending, _jsonl)
    unit = "row" if ending == ".parquet" else "line"
    found, records = read(source, file)
    columns = _columns(source, path, found, required, optional)
    shown = {role: names[0] if len(names) == 1 else names for role, names in columns.items()}
    source.notes.setdefault("columns", {})[printable(file)] = shown
    for number, record in records([name for names in columns.values() for name in names]):
        values, problem = ({}, record) if isinstance(record, str) else _values(record, columns)
        yield Row(number, values, problem and f"{unit} {number}: {problem}")


def bare(file: str) -> str:
    """Returns the name of a file without the ending of its compression: train.csv.gz -> train.csv."""
    path = Path(file)
    return str(path.with_suffix("")) if path.suffix.lower() in COMPRESSED else file


def _ending(file: str) -> str:
    name = file[file.rfind("/") + 1 :].lower()  # not with pathlib: of every file of a folder
    stem, dot, ending = name.rpartition(".")
    if dot + ending in COMPRESSED:
        stem, dot, ending = stem.rpartition(".")
    return dot + ending if stem and dot else ""


def _numbered(source: Source) -> bool:
    """Returns whether params.yaml gives columns by number, because the tables have no header."""
    given = [name for names in source.columns.values() for name in _listed(names)]
    numbers = [name for name in given if isinstance(name, int)]
    if numbers and len(numbers) < len(given):
        raise ConfigurationError(
            f"columns: {given} mixes names, which a header has, with numbers, for tables without one."
        )
    return bool(numbers)


def _listed(names: str | int | list[str | int]) -> Names:
    return names if isinstance(names, list) else [names]


def _columns(
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


def _values(record: Record, columns: dict[str, Names]) -> tuple[dict[str, Any], str | None]:
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


def _value(record: Record, name: str | int) -> Any:
    if name in record:
        return record[name]
    first, _, rest = str(name).partition(".")
    inside = record.get(first)
    return inside.get(rest) if isinstance(inside, dict) else None


def _csv(source: Source, file: str) -> tuple[Names, Callable[[Names], Records]]:
    path = source.folder / file
    encoding = encoding_of(source, file)
    first = next((line for _, line in lines(path, encoding) if line.strip()), None)
    if first is None:
        raise InputRefusedError(f"{path} is empty.")
    delimiter, quoting = "\t", csv.QUOTE_NONE
    if _ending(file) == ".csv":
        bare = re.sub('"[^"]*"', "", first)
        delimiter, quoting = max(",;\t", key=bare.count), csv.QUOTE_MINIMAL
    elif all(len(part) > 1 and part[0] == part[-1] == '"' for part in first.split("\t")):
        quoting = csv.QUOTE_MINIMAL
    fields = _fields(path, encoding, delimiter, quoting)
    number, header = next(fields)
    if isinstance(header, str):
        raise InputRefusedError(f"{path}, line {number}: {header}")
    numbered = _numbered(source)
    names: Names = [*range(len(header))] if numbered else [name.strip() for name in header]
    twice = sorted({name for name, count in Counter(names).items() if count > 1} - {""})
    if twice:
        raise InputRefusedError(f"{path} has two columns {twice[0]!r}. Rename one.")
    what = "first row" if numbered else "header"

    def records(_: Names) -> Records:
        for line, row in chain([(number, header)] if numbered else [], fields):
            if not isinstance(row, str) and len(row) != len(names):
                row = f"{len(row)} {'field' if len(row) == 1 else 'fields'} where the {what} has {len(names)}"
            yield line, row if isinstance(row, str) else dict(zip(names, row, strict=True))

    return names, records


def _fields(path: Path, encoding: str, delimiter: str, quoting: int) -> Iterator[tuple[int, list[str] | str]]:
    """Yields (line on which it begins, fields) of each row that is not blank, or what is wrong with it.

    Where quotes are not as they should be, each line that the row took is a problem of its own: none is lost unseen.
    """
    start = last = size = 0

    def feed() -> Iterator[str]:
        nonlocal last, size
        for number, line in lines(path, encoding):
            last, size = number, size + len(line) + 1
            if size > ROW_CHARACTERS:
                raise InputRefusedError(
                    f"{path}, line {start}: a row of more than {ROW_CHARACTERS:,} characters. Is a quote left open "
                    "there?"
                )
            yield f"{line}\n"

    csv.field_size_limit(ROW_CHARACTERS)
    reader = csv.reader(feed(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        start, size = last + 1, 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, f"no valid row: {error}"
            for number in range(start + 1, last + 1):
                yield number, f"taken by a quote that is opened on line {start} and not closed as it should be"
            continue
        if fields:
            yield start, fields


def _jsonl(source: Source, file: str) -> tuple[Names, Callable[[Names], Records]]:
    path = source.folder / file
    if _numbered(source):
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


def _parquet(source: Source, file: str) -> tuple[Names, Callable[[Names], Records]]:
    path = source.folder / file
    check_name(source.folder, file)
    try:
        parquet = pq.ParquetFile(path, page_checksum_verification=True)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        found: Names = []
        for field in schema:
            inner = field.type if pa.types.is_struct(field.type) else ()  # a struct type yields its fields
            found += [field.name, *(f"{field.name}.{part.name}" for part in inner)]
        classes = _class_names(schema)
    except PARQUET_ERRORS as error:
        raise InputRefusedError(f"{path} is no Parquet file, is damaged or is cut off: {error}") from error
    if _numbered(source):
        raise ConfigurationError(f"columns: {path} has names for its columns, so give names and not numbers.")
    twice = sorted(name for name, count in Counter(found).items() if count > 1)
    if twice:
        raise InputRefusedError(f"{path} has two columns {twice[0]!r}. Rename one.")
    allowed = min(GROUP_BYTES, max(FLOOR_BYTES, RATIO * path.stat().st_size))
    if max(sizes, default=0) > allowed:
        raise InputRefusedError(f"{path} has a row group of {max(sizes):,} bytes. Allowed: {allowed:,}.")

    def records(wanted: Names) -> Records:
        number = 0
        try:
            for batch in parquet.iter_batches(_batch(metadata), columns=wanted, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _record(batch, row, classes)
        except PARQUET_ERRORS as error:
            raise InputRefusedError(f"{path} is damaged after row {number}: {error}") from error
        if number != metadata.num_rows:
            raise InputRefusedError(f"{path} announces {metadata.num_rows:,} rows and has {number:,}.")

    return found, records


# What pyarrow raises on damaged files; its own exceptions are ValueErrors, OSErrors, KeyErrors and these.
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, MemoryError, OverflowError)


def _batch(metadata: pq.FileMetaData) -> int:
    """Returns how many rows to read at a time: one value may be all of a dictionary, and every row gets a copy."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = [group.column(column) for group in groups for column in range(metadata.num_columns)]
    dictionaries = [chunk for chunk in chunks if any("DICTIONARY" in encoding for encoding in chunk.encodings)]
    largest = max((chunk.total_uncompressed_size for chunk in dictionaries), default=1)
    return max(1, min(BATCH, BATCH_BYTES // max(1, largest)))


def _record(batch: pa.RecordBatch, row: int, classes: dict[str, list[str]]) -> Record | str:
    record: Record = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = column[row].as_py()
        except UnicodeDecodeError:
            return f"no valid UTF-8 in the column {name}"
        if name in classes and isinstance(value, int):
            if not 0 <= value < len(classes[name]):
                return f"{value} in the column {name} is none of its {len(classes[name])} classes"
            value = classes[name][value]
        record[name] = {key: _text(inner) for key, inner in value.items()} if isinstance(value, dict) else _text(value)
    return record


def _text(value: Any) -> Any:
    """Returns a value of Parquet as text; null and NaN as None; bytes and lists as they are."""
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None or isinstance(value, str | bytes | list | dict) else str(value)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Returns column -> names of the classes that its numbers stand for, as Hugging Face's datasets writes them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(label, str) for label in names)
    }
