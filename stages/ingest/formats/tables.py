"""Reads tables - .csv, .tsv, .jsonl, .parquet - row by row, with every value as the text that stands there.

"NA" stays "NA" and "001" stays "001", where pandas makes NaN and 1; and a field too many is a problem of its row, where
pandas shifts columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.errors import ConfigurationError
from stages.ingest.formats import delimited, json_lines, parquet
from stages.ingest.formats.columns import columns_of, is_numbered, values_of
from stages.ingest.formats.compressed import ending_of
from stages.ingest.formats.folders import printable
from stages.ingest.records import Source

SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet")
# Without a header, .txt and files without an ending are tables too.
READERS = dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ""), delimited)
READERS |= {".jsonl": json_lines, ".ndjson": json_lines, ".parquet": parquet}


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
    tables = [file for file in files if ending_of(file) in SUFFIXES]
    if tables or not is_numbered(source):
        return tables
    return [file for file in files if ending_of(file) in (".txt", "")]


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
    path, ending = source.folder / file, ending_of(file)
    unit = "row" if ending == ".parquet" else "line"
    found, records = READERS[ending].read(source, file)
    columns = columns_of(source, path, found, required, optional)
    shown = {role: names[0] if len(names) == 1 else names for role, names in columns.items()}
    source.notes.setdefault("columns", {})[printable(file)] = shown
    for number, record in records([name for names in columns.values() for name in names]):
        values, problem = ({}, record) if isinstance(record, str) else values_of(record, columns)
        yield Row(number, values, problem and f"{unit} {number}: {problem}")
