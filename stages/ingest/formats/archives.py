"""Unpacks archives that nobody vouches for: regular files only, within budgets, never outside the target.

Neither ``ZipFile.extract`` nor ``TarFile.extract`` is used, because Python 3.11.7 lacks the repairs of both
(CVE-2024-0450, CVE-2025-4517): each member is opened as a stream and written to a new file.
"""

import calendar
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from convoy.errors import InputRefusedError
from stages.ingest.formats import tar
from stages.ingest.formats.compressed import CHUNK, FLOOR_BYTES, RATIO, Budget
from stages.ingest.formats.folders import check_special

FORMATS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FOREIGN = (".7z", ".rar", ".zst", ".tbz2", ".txz", ".z", ".lz", ".cab", ".iso", ".dmg")  # would be taken for data

MEMBERS = 500_000  # in one archive; zipfile needs 530 bytes of memory for each
BLOCK_BYTES = 4096  # that even an empty file takes: 20 compressed bytes have to be there for each, see RATIO
MEMBER_BYTES = 16 * 2**30
NAME_BYTES = 1_000  # of a whole name; 255 of one part: what file systems allow
DEPTH = 32  # folders in each other

# What lies beside data without being data: README.1.0.txt, LICENSE, SHA256SUMS, _about.txt, ...
DOCUMENTATION = re.compile(
    r"(^|[\W_])(readme|licen[cs]e|copying|changelog)([\W_]|$)|^((md5|sha\d+)(sums?)?|checksums?|_about)(\.txt)?$", re.I
)
# Where each file is an example, a lone folder is a class and not a wrapping.
ONE_EXAMPLE = {
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".npy",
    ".nii",
}


def prepared(folder: Path, scratch: Path) -> Path:
    """Returns a folder with the data of the raw ``folder``, archives at its top unpacked (not those inside archives).

    - no archive: ``folder`` itself;
    - one archive, beside it at most documentation and hidden files: its content;
    - several archives, or archives beside other files: each becomes a folder named by its stem (``train.zip`` ->
      ``train/``), beside copies of the other files (``labels.csv``).

    From the content of an archive a wrapping folder is taken off, again and again: the only one at the top, and not a
    class folder. ``aclImdb/train/pos/1.txt`` -> ``train/pos/1.txt``, but a lone ``cat/1.jpg`` stays: one class. In
    ``images.zip`` beside other files a folder ``images/`` is taken off in any case, to come back as its stem.

    Args:
        folder: raw data; unchanged.
        scratch: a folder for the unpacked data; made if needed.

    Raises:
        InputRefusedError: ``unpack`` refuses an archive; a folder lies beside an archive; two archives have one stem;
            or a format cannot be unpacked.
    """
    if not folder.is_dir():
        raise InputRefusedError(f"{folder} is missing: fetch it, or put it there with dvc add or dvc import-url.")
    entries = visible(folder)
    for path in entries:
        if path.is_file() and path.name.lower().endswith(FOREIGN):
            raise InputRefusedError(
                f"{path} cannot be unpacked here. Allowed: {', '.join(FORMATS)}. Unpack it yourself."
            )
    archives = {path: stem for path in entries if path.is_file() and (stem := archive_stem(path.name))}
    if not archives:
        return folder
    for path in entries:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            check_special(folder, path.name)
    target = scratch / folder.name
    if len(entries) == 1:
        unpack(entries[0], target)
        return _unwrapped(target)
    if len({stem.casefold() for stem in archives.values()}) < len(archives):
        raise InputRefusedError(f"{folder}: two of the archives {sorted(p.name for p in archives)} have the same stem.")
    for path in entries:
        if path.is_dir():
            raise InputRefusedError(
                f"{folder} has archives and beside them the folder {path.name}. Unpack the archives yourself, or pack "
                "the folder too."
            )
    target.mkdir(parents=True)
    for number, path in enumerate(entries):
        if path not in archives:
            shutil.copy2(path, target)
            continue
        unpacked = target / f".unpacked-{number}"
        unpack(path, unpacked)
        _unwrapped(unpacked, archives[path]).rename(target / archives[path])
        shutil.rmtree(unpacked, ignore_errors=True)  # the wrapping, empty now
    return target


def visible(folder: Path) -> list[Path]:
    """Returns what lies at the top of ``folder``, by name, without hidden files and documentation."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and not (path.is_file() and DOCUMENTATION.search(path.name))
    )


def archive_stem(name: str) -> str | None:
    """Returns the name of an archive without its ending; None: it is no archive."""
    ending = next((ending for ending in FORMATS if name.lower().endswith(ending)), None)
    return name[: -len(ending)] or name if ending else None


def unpack(archive: Path, target: Path) -> None:
    """Writes the regular files of ``archive`` to the new folder ``target``, with their times of change.

    What macOS adds is skipped: ``__MACOSX/``, ``.DS_Store``, ``._*``.

    Raises:
        InputRefusedError: the archive is damaged, cut off or encrypted, exceeds a budget or has no file; or a member is
            a link or a device, lies outside, or has the name of another (but for case or Unicode form). Nothing stays.
    """
    names = _Names(archive)
    files = 0
    enough = min(MEMBERS, max(FLOOR_BYTES, RATIO * archive.stat().st_size) // BLOCK_BYTES)
    target.mkdir(parents=True)
    try:
        members = _zip_members if archive.suffix.lower() == ".zip" else tar.members
        for count, (name, folder, modified, content) in enumerate(members(archive)):
            if count == enough:
                raise InputRefusedError(f"{archive} has more than {count:,} members. Unpack it yourself.")
            place = names.place(name, folder=folder)
            if place is None:
                continue
            path = target / place
            if folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for chunk in content:
                    file.write(chunk)
                    if file.tell() > MEMBER_BYTES:
                        raise InputRefusedError(
                            f"{archive}: its member {name!r} has over {MEMBER_BYTES / 2**30:.0f} GiB."
                        )
            if 0 <= modified < 2**32:  # not NaN, and what file systems can keep
                os.utime(path, (modified, modified))
            files += 1
        if not files:
            raise InputRefusedError(f"{archive} has no files.")
    except BaseException:
        shutil.rmtree(target)
        raise


class _Names:
    """Judges the names of the members of one archive: no two may be one file on any system."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}  # as compared -> as written

    def place(self, name: str, *, folder: bool) -> str | None:
        """Returns where a member goes, relative to the target; None: it is litter, or the top itself.

        Raises:
            InputRefusedError: its name is not allowed.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if parts and (parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._")):
            return None
        reason = _objection(name, parts)
        if reason is None and not parts and not folder:
            reason = "its name is empty"
        if reason is not None:
            raise InputRefusedError(f"{self._archive}: its member {name[:200]!r} is refused: {reason}.")
        for depth in range(1, len(parts) + folder):
            self._enter("/".join(parts[:depth]), name)
        if not parts or folder:
            return "/".join(parts) or None
        key = _comparable("/".join(parts))
        if key in self._files or key in self._folders:
            raise InputRefusedError(
                f"{self._archive}: its member {name!r} has the name of an earlier one, apart from case or Unicode form."
            )
        self._files.add(key)
        return "/".join(parts)

    def _enter(self, folder: str, name: str) -> None:
        key = _comparable(folder)
        if key in self._files or self._folders.setdefault(key, folder) != folder:
            other = self._folders.get(key, "a file")
            raise InputRefusedError(f"{self._archive}: the folder of its member {name!r} collides with {other!r}.")


def _objection(name: str, parts: list[str]) -> str | None:
    if ".." in parts:
        return "it leads out of the archive"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "its path is absolute"
    if "\\" in name:
        return "a backslash is not allowed"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "its name has control characters, or is not UTF-8"
    if len(name.encode()) > NAME_BYTES or len(parts) > DEPTH or any(len(part.encode()) > 255 for part in parts):
        return f"its name is too long: allowed are 255 bytes a part, {NAME_BYTES} in all, {DEPTH} folders"
    return None


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _zip_members(path: Path) -> Iterator[tuple[str, bool, float, Iterator[bytes]]]:
    """Yields the same as ``tar.members``."""
    with path.open("rb") as file:
        try:
            announced = _check_directory(path, file)
            archive = zipfile.ZipFile(file)
            infos = archive.infolist()
            if len(infos) % 2**16 != announced % 2**16:  # old writers have 16 bits for more members
                raise zipfile.BadZipFile(f"it announces {announced} members and has {len(infos)}")
        except ZIP_ERRORS as error:
            raise InputRefusedError(f"{path} is no zip archive, is damaged or is cut off: {error}") from error
        _check_overlaps(path, infos, archive.start_dir)
        budget = Budget(path, file.tell)
        for info in infos:
            name = _zip_name(info)
            mode = info.external_attr >> 16  # of Unix; 0 where the archive was made elsewhere
            if info.flag_bits & 0x1:
                raise InputRefusedError(f"{path}: its member {name!r} is encrypted.")
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "a device or fifo"
                raise InputRefusedError(f"{path}: its member {name!r} is {what}. Only regular files are unpacked.")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputRefusedError(
                    f"{path}: its member {name!r} is compressed by method {info.compress_type}. Allowed: stored (0) "
                    "and deflate (8), what zip programs write unless told otherwise."
                )
            yield name, name.endswith("/"), _zip_time(info), _zip_content(path, archive, info, budget)


def _zip_content(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> Iterator[bytes]:
    try:
        with archive.open(info) as stream:
            while chunk := stream.read(CHUNK):
                budget.spend(len(chunk))
                yield chunk
    except ZIP_ERRORS as error:
        raise InputRefusedError(f"{path}: its member {info.filename!r} is damaged or cut off: {error}") from error


# What zipfile raises on damaged archives.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


def _check_directory(path: Path, file: BinaryIO) -> int:
    """Returns the number of members that a zip file announces; refuses too many before zipfile makes objects of them.

    Source: APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16 (end of central directory record, with its zip64 form).
    """
    size = file.seek(0, os.SEEK_END)
    tail_start = file.seek(max(0, size - 22 - 65_535))  # 22 bytes and a comment
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise zipfile.BadZipFile("its end record is missing")
    announced, directory = struct.unpack_from("<HL", tail, at + 10)
    end = tail_start + at
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":
        file.seek(struct.unpack_from("<Q", tail, at - 12)[0])
        record = file.read(56)
        if record[:4] == b"PK\6\6" and len(record) == 56:
            (announced, directory), end = struct.unpack_from("<QQ", record, 32), file.tell() - 56
    file.seek(max(0, end - directory))
    found, rest = 0, b""
    while file.tell() < end:
        chunk = rest + file.read(CHUNK)
        found += chunk.count(b"PK\1\2")
        rest = chunk[-3:]
        if found > MEMBERS:
            raise InputRefusedError(f"{path} has more than {MEMBERS:,} members. Unpack it yourself.")
    return announced


def _check_overlaps(path: Path, infos: list[zipfile.ZipInfo], end: int) -> None:
    """Refuses members that share bytes, by which a small file makes a large one (CVE-2024-0450)."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    starts = [*(info.header_offset for info in ordered), end]
    for info, (start, following) in zip(ordered, pairwise(starts), strict=True):
        # 30 bytes of header, then the name, and an extra field of unknown length, then the data
        if start + 30 + len(info.orig_filename) + info.compress_size > following:
            raise InputRefusedError(
                f"{path}: its member {info.filename!r} overlaps another, as in a decompression bomb."
            )


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Returns the name as its writer meant it: UTF-8 where it can be, for macOS does not say so in the flag."""
    name = info.orig_filename  # ZipInfo.filename ends at a NUL
    if not info.flag_bits & 0x800:
        try:
            return name.encode("cp437").decode()
        except UnicodeError:
            return name
    return name


def _zip_time(info: zipfile.ZipInfo) -> float:
    """Returns seconds since 1970, the local time of the archive read as UTC, so that it is the same on all machines."""
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0))
    except ValueError:  # day or month 0
        return 0.0


def _unwrapped(folder: Path, stem: str | None = None) -> Path:
    """Returns ``folder`` without the folders around its content; one called ``stem`` is always taken off."""
    while True:
        entries = visible(folder)
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        inside = visible(entries[0])
        if entries[0].name != stem and all(path.is_file() and path.suffix.lower() in ONE_EXAMPLE for path in inside):
            return folder
        folder = entries[0]
