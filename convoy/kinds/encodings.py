"""The encoding of a text, given or found out."""

import codecs
import io
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import charset_normalizer

from convoy.errors import ConfigurationError, InputRefusedError

BOMS = {  # the longer first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Encodings in which ASCII is ASCII and which text that is not UTF-8 has in practice; windows-1252 contains Latin-1.
CANDIDATES = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "iso8859_2", "koi8_r"),
    *("gb18030", "big5", "cp932", "euc_jp", "cp949"),
]
CHUNK = 2**16  # bytes decoded at a time
SAMPLE_BYTES = 2**16  # of lines with other bytes than ASCII: enough to tell encodings apart
MARGIN = 0.1  # by which, on the scales of charset_normalizer, a reading has to be better than all others


def check(encoding: str | None) -> None:
    """Raises ConfigurationError if params.yaml gives an unknown ``encoding``."""
    try:
        "".encode(encoding or "utf-8")  # refuses codecs from bytes to bytes, such as zlib
        codecs.getincrementaldecoder(encoding or "utf-8")
    except (LookupError, UnicodeError):
        raise ConfigurationError(
            f"encoding: {encoding!r} is unknown. Known are e.g. utf-8, utf-16, latin-1, cp1252."
        ) from None


def decode(data: bytes, encoding: str | None) -> str:
    """Returns the text of one file that is one example, by the same rules.

    Raises:
        ConfigurationError, InputRefusedError: like ``encoding_of``.
    """
    opener = partial(io.BytesIO, data)
    return data.decode(choose(opener, "the text", encoding)).removeprefix("\ufeff")


def choose(opener: Callable[[], BinaryIO], name: str, given: str | None) -> str:
    """Returns the encoding of what ``opener`` opens; ``name`` says in messages what it is.

    Raises:
        ConfigurationError: ``given`` is unknown.
        InputRefusedError: it is not in the given encoding, or none can be found out.
    """
    if given is not None:
        check(given)
        fault = _fault(opener, given)
        if fault:
            raise InputRefusedError(f"{name} is not {given}: {fault}. Without `encoding` it is detected.")
        return given
    with opener() as stream:
        start = stream.read(4)
    mark = next((mark for mark in BOMS if start.startswith(mark)), None)
    encoding = BOMS[mark] if mark else "utf-8"
    fault = _fault(opener, encoding)
    if not fault:
        return encoding
    if mark:
        raise InputRefusedError(
            f"{name} begins with the byte order mark of {encoding}, but is not {encoding}: {fault}."
        )
    return _detect(opener, name, fault)


def _detect(opener: Callable[[], BinaryIO], name: str, fault: str) -> str:
    with opener() as stream:
        sample = _sample(stream)
    utf8 = [_is_utf8(line) for line in sample.split(b"\n") if not line.isascii()]
    if sum(utf8) * 2 > len(utf8):  # by chance a line in another encoding hardly ever is
        raise InputRefusedError(f"{name} is UTF-8 but for {fault}. Mend it, or say what it is, e.g. encoding: cp1252.")
    readings = charset_normalizer.from_bytes(sample, cp_isolation=CANDIDATES)
    ranks = {}  # encoding -> (chaos: 0 is clean text, coherence: 1 is typical of a language)
    for reading in readings:
        for encoding in (reading.encoding, *reading.could_be_from_charset):
            ranks.setdefault(encoding, (reading.chaos, reading.coherence))
    if ranks:
        best = next(iter(ranks))
        chaos, coherence = ranks[best]
        rivals = [
            encoding
            for encoding, rank in ranks.items()
            if rank[0] < chaos + MARGIN and rank[1] > coherence - MARGIN and encoding in CANDIDATES
        ]
        # Equal texts are no rivals: the first reading stands for all encodings in which it is the same.
        same = set(readings[0].could_be_from_charset) | {best}
        choice = "cp1252" if "cp1252" in rivals else best if set(rivals) <= same else None
        if choice and not _fault(opener, choice):
            return choice
        fault += f"; it may be {', '.join(rivals)}"
    raise InputRefusedError(f"{name} is not UTF-8: {fault}. Say what it is, e.g. encoding: cp1252.")


def _sample(stream: BinaryIO) -> bytes:
    """Returns the first lines with other bytes than ASCII: the rest says nothing, and hides what they say."""
    sample = b""
    while len(sample) < SAMPLE_BYTES and (line := stream.readline(SAMPLE_BYTES)):
        sample += b"" if line.isascii() else line
    return sample


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fault(opener: Callable[[], BinaryIO], encoding: str) -> str | None:
    """Returns where a file is not in ``encoding``; None: all of it is."""
    decoder = codecs.getincrementaldecoder(encoding)()
    read, line = 0, 1
    with opener() as stream:
        while True:
            chunk = stream.read(CHUNK)
            read += len(chunk)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                good = error.object[: error.start].decode(encoding, "replace")
                at = read - len(error.object) + error.start
                return (
                    f"byte {at} (line {line + good.count(chr(10))}) is {error.object[error.start]:#04x}, {error.reason}"
                )
            except UnicodeError as error:
                return f"line {line}: {error}"
            if not chunk:
                return None
