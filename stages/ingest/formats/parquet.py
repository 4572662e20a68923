"""Reads Parquet tables, a few rows at a time."""

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from convoy.errors import ConfigurationError, InputRefusedError
from stages.ingest.formats.columns import Names, Record, Records, is_numbered
from stages.ingest.formats.compressed import FLOOR_BYTES, RATIO
from stages.ingest.formats.folders import check_name
from stages.ingest.records import Source

BATCH = 64  # rows of a Parquet file in memory at a time
BATCH_BYTES = 64 * 2**20  # that these may take
GROUP_BYTES = 4 * 2**30  # of one row group of a Parquet file, unpacked; writers make some 100 MB
# What pyarrow raises on damaged files; its own exceptions are ValueErrors, OSErrors, KeyErrors and these.
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, MemoryError, OverflowError)


def read(source: Source, file: str) -> tuple[Names, Callable[[Names], Records]]:
    """Returns the columns of a table, and what yields its rows: number of a row -> its values, or what is wrong.

    Raises:
        InputRefusedError: the table is damaged or empty, or two columns have the same name.
        ConfigurationError: columns are given by number, and the table has names.
    """
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
    if is_numbered(source):
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
