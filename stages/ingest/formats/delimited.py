"""Reads tables of delimited values: .csv, .tsv, .tab and text files without a header."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from convoy.errors import InputRefusedError
from stages.ingest.formats.columns import Names, Records, is_numbered
from stages.ingest.formats.compressed import ending_of
from stages.ingest.formats.text_files import encoding_of, lines
from stages.ingest.records import Source

ROW_CHARACTERS = 2**23  # of one row of a .csv; a quote left open would take the rest of the file


def read(source: Source, file: str) -> tuple[Names, Callable[[Names], Records]]:
    """Returns the columns of a table, and what yields its rows: number of a row -> its values, or what is wrong.

    Raises:
        InputRefusedError: the table is damaged or empty, or two columns have the same name.
    """
    path = source.folder / file
    encoding = encoding_of(source, file)
    first = next((line for _, line in lines(path, encoding) if line.strip()), None)
    if first is None:
        raise InputRefusedError(f"{path} is empty.")
    delimiter, quoting = "\t", csv.QUOTE_NONE
    if ending_of(file) == ".csv":
        bare = re.sub('"[^"]*"', "", first)
        delimiter, quoting = max(",;\t", key=bare.count), csv.QUOTE_MINIMAL
    elif all(len(part) > 1 and part[0] == part[-1] == '"' for part in first.split("\t")):
        quoting = csv.QUOTE_MINIMAL
    fields = _fields(path, encoding, delimiter, quoting)
    number, header = next(fields)
    if isinstance(header, str):
        raise InputRefusedError(f"{path}, line {number}: {header}")
    numbered = is_numbered(source)
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
