"""Checksums of files, and ``SHA256SUMS``: those of a folder of raw data, in the format of coreutils' ``sha256sum``.

fetch writes that list, and ingest holds the files against it.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from convoy import files
from convoy.errors import InputRefusedError, IntegrityError

SUMS = "SHA256SUMS"

# What .dvcignore, or DVC itself, keeps out of data: a list with these files would not match a checkout of the data.
IGNORED = ("__pycache__", "*.pyc", ".gitignore", ".DS_Store", ".dvcignore", ".git", ".hg", ".dvc")

_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")


def is_ignored(name: str) -> bool:
    """Whether DVC leaves out files or folders of this name."""
    return any(fnmatchcase(name, pattern) for pattern in IGNORED)


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    return digest(file, "sha256")


def digest(file: Path, algorithm: str) -> str:
    """Returns the hexadecimal checksum of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def read(folder: Path) -> dict[str, str]:
    """Returns relative path -> SHA-256 from the folder's list; empty without one.

    Raises:
        InputRefusedError: a line is not of the format, or leads out of the folder; it is named.
    """
    list_file = folder / SUMS
    if not list_file.is_file():
        return {}
    entries = {}
    for number, line in enumerate(list_file.read_text("utf-8", "surrogateescape").split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip("\r"))
        if not match:
            raise InputRefusedError(
                f"{list_file}, line {number}: {line[:100]!r} is not `<SHA-256 in hexadecimal>  <file>`."
            )
        escaped, checksum, name = match.groups()
        if escaped:
            name = re.sub(r"\\([\\nr])", lambda sign: {"\\": "\\", "n": "\n", "r": "\r"}[sign[1]], name)
        name = os.path.normpath(name)
        if name.startswith(("/", "../")):
            raise InputRefusedError(f"{list_file}, line {number}: {name} leads out of the folder.")
        entries[name] = checksum.lower()
    return entries


def write(folder: Path, entries: Mapping[str, str]) -> None:
    """Writes the list, sorted by path, in one step, so that it is whole or not there."""
    lines = []
    for name, checksum in sorted(entries.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(("\\" if escaped != name else "") + f"{checksum}  {escaped}\n")
    files.write(folder / SUMS, "".join(lines).encode("utf-8", "surrogateescape"))


def compare(where: Path, published: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Holds checksums that were found against the published ones of some or all of the files.

    Raises:
        IntegrityError: a published file is missing or another; up to ten are named.
    """
    wrong = [
        f"{name}: {'missing' if name not in found else f'SHA-256 is {found[name]}, not {checksum}'}"
        for name, checksum in published.items()
        if name != SUMS and not is_ignored(Path(name).name) and found.get(name) != checksum
    ]
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise IntegrityError(
            f"{where} differs from its {SUMS}: {'; '.join(wrong[:10])}{more}. Get the files again, or correct the list."
        )
