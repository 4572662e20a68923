"""Reads tar archives as streams: regular files and folders in the formats ustar, GNU and pax; nothing else.

Not ``tarfile``, because that of Python 3.11.7 can be made to read endlessly by a forged header (CVE-2025-8194,
CVE-2024-6232) and keeps extended headers of any length in memory.

Source: POSIX.1-2001, "pax Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from convoy.errors import InputRefusedError
from stages.ingest.formats.compressed import CHUNK, open_bytes

BLOCK = 512  # bytes; every part of a tar file begins at a multiple of it
EXTENDED_BYTES = 2**16  # of one extended header; usual are some hundred bytes, with attributes of macOS some thousand
EXTENDED_RECORDS = 32  # of one extended header; usual are two or three
REGULAR, FOLDER = (b"0", b"\0", b"7"), b"5"
OTHERS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a fifo",
    b"S": "a sparse file",
}


def members(path: Path) -> Iterator[tuple[str, bool, float, Iterator[bytes]]]:
    """Yields (name, is a folder, time of change in seconds since 1970, content) of each member, in their order.

    The content, in chunks, has to be read before the next member is asked for; what was not read is skipped.

    Raises:
        InputRefusedError: the archive is damaged or cut off, or a member is neither a file nor a folder.
    """
    with open_bytes(path) as stream:
        extended: dict[str, bytes] = {}
        while True:
            header = _read(stream, BLOCK, path)
            if header == bytes(BLOCK):
                break
            if _number(header[148:156], path) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
                raise InputRefusedError(
                    f"{path} is no tar archive, or is damaged: a header does not match its checksum."
                )
            kind, size = header[156:157], _number(header[124:136], path)
            if kind in b"xgLK":
                if size > EXTENDED_BYTES:
                    raise InputRefusedError(
                        f"{path} has an extended header of {size:,} bytes; it is damaged or forged."
                    )
                content = _read(stream, size, path)
                _read(stream, -size % BLOCK, path)
                if kind == b"L":
                    extended["path"] = content.rstrip(b"\0")
                elif kind == b"x":
                    extended |= _records(content, path)
                continue  # g says something of all members, e.g. a comment; K belongs to a link
            name = _text(header[:100])
            if header[257:263] == b"ustar\0" and header[345] != 0:
                name = f"{_text(header[345:500])}/{name}"
            name = extended["path"].decode("utf-8", "surrogateescape") if "path" in extended else name
            if any(key.startswith("GNU.sparse.") for key in extended):
                kind = b"S"
            if kind not in REGULAR and kind != FOLDER:
                what = OTHERS.get(kind, f"of the unknown type {kind!r}")
                raise InputRefusedError(f"{path}: its member {name!r} is {what}. Only regular files are unpacked.")
            try:
                size = int(extended.get("size", size))
                modified = float(extended.get("mtime", _number(header[136:148], path)))
            except ValueError:
                raise InputRefusedError(f"{path} is damaged: the size or time of {name!r} is no number.") from None
            if size < 0:
                raise InputRefusedError(f"{path} is damaged or forged: the size of {name!r} is {size}.")
            folder = kind == FOLDER or name.endswith("/")
            size = 0 if folder else size
            extended = {}
            content = _chunks(stream, size, path)
            yield name, folder, modified, content
            for _ in content:
                pass
            _read(stream, -size % BLOCK, path)
        while chunk := stream.read(CHUNK):  # to the end, where gzip, bzip2 and xz keep their checksums
            if chunk.strip(b"\0"):
                raise InputRefusedError(f"{path} has further data after its end mark; it is damaged.")


def _read(stream: BinaryIO, count: int, path: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise InputRefusedError(f"{path} is cut off, or no tar archive: it ends before its end mark.")
    return data


def _chunks(stream: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    while size:
        chunk = _read(stream, min(size, CHUNK), path)
        size -= len(chunk)
        yield chunk


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, path: Path) -> int:
    """Returns a number written in octal digits, or as GNU writes large ones: 0x80 and a big-endian integer."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.replace(b"\0", b" ").strip()
    if digits.strip(b"01234567"):
        raise InputRefusedError(f"{path} is no tar archive, or is damaged: {field!r} is no octal number.")
    return int(digits or b"0", 8)


def _records(content: bytes, path: Path) -> dict[str, bytes]:
    """Returns key -> value of a pax header, in which each record is ``<its length> <key>=<value>`` and a line end."""
    records: dict[str, bytes] = {}
    start = 0
    while start < len(content):
        length, _, _ = content[start : start + 20].partition(b" ")
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = content[start + len(length) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or len(records) == EXTENDED_RECORDS:
            raise InputRefusedError(
                f"{path} is damaged or forged: a pax header is not 1 to {EXTENDED_RECORDS} records "
                "<length> <key>=<value>."
            )
        records[key.decode("utf-8", "replace")] = value[:-1]
        start = end
    return records
