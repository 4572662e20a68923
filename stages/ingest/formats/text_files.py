"""Text files: their encoding, given or found out, and their lines."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from convoy.errors import InputRefusedError
from convoy.kinds.encodings import choose
from stages.ingest.formats.compressed import open_bytes
from stages.ingest.formats.folders import printable
from stages.ingest.records import Source

LINE_CHARACTERS = 2**23  # longest line; above, a file is no text of lines, and memory would not be bounded


def encoding_of(source: Source, file: str) -> str:
    """Returns the encoding of a whole file, and notes it.

    That of params.yaml, else that of its byte order mark, else UTF-8 if it is valid UTF-8, else windows-1252 if no
    other reading is clearly better, else the one reading that is clearly better than all others. UTF-8 with some
    damaged lines is refused: read as anything else, all the others would be wrong.

    Raises:
        ConfigurationError: params.yaml gives an unknown encoding.
        InputRefusedError: the file is not in the given encoding, or none can be found out.
    """
    path = source.folder / file
    encoding = choose(partial(open_bytes, path), f"{path}", source.encoding)
    source.notes.setdefault("encodings", {})[printable(file)] = encoding
    return encoding


def lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    r"""Yields (number from 1, line without its end) of a file that is in ``encoding``.

    A line ends with ``\n`` or ``\r\n`` and nothing else: ``str.splitlines`` would break sentences at U+0085.

    Raises:
        InputRefusedError: a line is too long.
    """
    with open_bytes(path) as stream, io.TextIOWrapper(stream, encoding=encoding, newline="\n") as text:
        number = 0
        while line := text.readline(LINE_CHARACTERS):
            number += 1
            if len(line) == LINE_CHARACTERS:
                raise InputRefusedError(
                    f"{path}, line {number} has {LINE_CHARACTERS:,} characters or more: no text of lines."
                )
            if number == 1:
                line = line.removeprefix("\ufeff")
            yield number, line.removesuffix("\n").removesuffix("\r")
