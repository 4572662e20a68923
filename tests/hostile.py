"""Raw data that nobody vouches for: a corpus of hostile and broken files, made again at each run.

Each case is a folder of raw data, the row of the table of faults that it belongs to, and what ingest has to do with it.
Most of them are one bad file among good pictures, since what is bad must not cost what is good.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGES = {"kind": "images", "size": [8, 8], "mode": "grey", "near_duplicates": False, "max_bad": 0.1}
VOLUMES = {**IMAGES, "kind": "volumes", "size": [4, 8, 8]}
TEXT = {"kind": "text", "near_duplicates": False, "max_bad": 0.1}
PAIRS = {**TEXT, "kind": "translation"}

CANARY = "canary"  # in the folder that the workspace lies in; what code in a raw file would leave there
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Raw data and what becomes of it.

    Attributes:
        name: of the case.
        row: of the table of faults.
        build: fills the raw folder, whose path is absolute.
        status: exit status of ingest.
        words: in the message; where there is none, in quarantine.csv or in what ingest prints.
        bad: rows of quarantine.csv.
        shows: grey level that the picture ``a/bad*`` has to have in the shards, of a picture of one colour.
        bomb: is run within limits of memory and time.
        params: of the entry of ingest.
    """

    name: str
    row: int
    build: Callable[[Path], None]
    status: int
    words: tuple[str, ...] = ()
    bad: int = 0
    shows: int | None = None
    bomb: bool = False
    params: dict = field(default_factory=lambda: IMAGES)


CASES: list[Case] = []


def case(row: int, status: int, *words: str, **facts):
    """Adds the function below it to the corpus, under its name."""

    def add(build: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES.append(Case(build.__name__.replace("_", " "), row, build, status, words, **facts))
        return build

    return add


def among(name: str, row: int, file: str, data: bytes | Callable[[], bytes], *words: str, **facts) -> None:
    """Adds a case of one file in the class folder ``a``, beside good pictures: left out if there are ``words``."""

    def build(raw: Path) -> None:
        good(raw)
        (raw / "a" / file).write_bytes(data() if callable(data) else data)

    CASES.append(Case(name, row, build, 0, words, bad=int(bool(words)), **facts))


# Good data ------------------------------------------------------------------------------------------------------------


def noise(number: int, shape: tuple[int, ...] = (12, 12)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(number: int, side: int = 12) -> bytes:
    return encoded(Image.fromarray(noise(number, (side, side))))


def good(raw: Path, count: int = 24, names: tuple[str, ...] = ("a", "b")) -> None:
    """Writes pictures into class folders; enough of them for each split."""
    for number in range(count):
        put(raw, f"{names[number % len(names)]}/{number:02d}.png", photo(number))


def put(raw: Path, name: str, data: bytes | str) -> Path:
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def canary(raw: Path) -> Path:
    return raw.parents[3] / CANARY  # data/raw/<dataset> in the workspace in that folder


class Payload:
    """Writes the canary as soon as it is unpickled."""

    def __init__(self, raw: Path) -> None:
        self._path = str(canary(raw))

    def __reduce__(self):
        return os.mkdir, (self._path,)


# Row 29: archives, links and special files ----------------------------------------------------------------------------


def members(count: int = 24) -> dict[str, bytes]:
    return {f"{'ab'[number % 2]}/{number:02d}.png": photo(number) for number in range(count)}


def zipped(raw: Path, extra: dict[str, bytes] | None = None, **info) -> Path:
    """Writes x.zip with good pictures and ``extra``, whose entries get the attributes ``info``."""
    raw.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(raw / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members().items():
            archive.writestr(name, data)
        for name, data in (extra or {}).items():
            entry = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(entry, key, value)
            archive.writestr(entry, data)
    return raw / "x.zip"


def tarred(raw: Path, name: str, data: bytes = b"", ending: str = ".tar", **info) -> Path:
    """Writes x.tar with good pictures and one more member with the attributes ``info``."""
    raw.mkdir(parents=True, exist_ok=True)
    path = raw / f"x{ending}"
    with tarfile.open(path, {".tar": "w", ".tgz": "w:gz"}[ending]) as archive:
        for good_name, content in members().items():
            member = tarfile.TarInfo(good_name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for key, value in info.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(data))
    return path


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "x") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def odd_member(name: str, member: str, words: tuple[str, ...], forms: tuple[str, ...] = ("zip", "tar")) -> None:
    """Adds a case per form of archive with a file of a name that must not be unpacked."""
    for form in forms:

        def build(raw: Path, form: str = form) -> None:
            entry = member.replace("CANARY", str(canary(raw)))
            zipped(raw, {entry: b"x"}) if form == "zip" else tarred(raw, entry, b"x")

        CASES.append(Case(f"{form}: {name}", 29, build, 3, words))


odd_member("path that climbs out", "../../../../../canary", ("x.", "'../../../../../canary'", "leads out"))
odd_member("path that climbs out of a folder", "a/../../../../../../canary", ("x.", "leads out"))
odd_member("absolute path", "CANARY", ("canary'", "is absolute"))
odd_member("drive letter", "C:/canary", ("'C:/canary'", "is absolute"))
odd_member("backslashes", "..\\..\\canary", ("backslash",))
odd_member("control character", "a/\x1b[31mred.png", ("control characters",))
odd_member("the same name twice", "a/00.png", ("'a/00.png'", "the name of an earlier one"), ("tar",))
odd_member("a name but for case", "A/00.PNG", ("'A/00.PNG'", "collides"))
odd_member("a file in the place of a folder", "a", ("'a'", "the name of an earlier one"))
odd_member("a folder in the place of a file", "a/00.png/x.png", ("'a/00.png/x.png'", "collides"))
odd_member("33 folders deep", "d/" * 33 + "x.png", ("too long",))
odd_member("a part of 300 bytes", "a/" + "n" * 300, ("too long",))


@case(29, 3, "the name of an earlier one")
def zip_two_names_that_are_one_in_unicode_form_c(raw):
    zipped(raw, {"a/caf\u00e9.png": photo(1), "a/cafe\u0301.png": photo(2)})


@case(29, 3, "'a/link.png'", "a symbolic link")
def zip_symbolic_link(raw):
    zipped(raw, {"a/link.png": b"/etc/passwd"}, create_system=3, external_attr=0o120777 << 16)


@case(29, 3, "'a/pipe'", "a device or fifo")
def zip_fifo(raw):
    zipped(raw, {"a/pipe": b""}, create_system=3, external_attr=0o010644 << 16)


for what, kind, said in (
    ("symbolic link", tarfile.SYMTYPE, "a symbolic link"),
    ("hard link", tarfile.LNKTYPE, "a hard link"),
    ("character device", tarfile.CHRTYPE, "a device"),
    ("block device", tarfile.BLKTYPE, "a device"),
    ("fifo", tarfile.FIFOTYPE, "a fifo"),
    ("sparse file", tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ("kind that nobody knows", b"Z", "of the unknown type"),
):

    def odd_kind(raw: Path, kind: bytes = kind) -> None:
        tarred(raw, "a/odd", type=kind, linkname="/etc/passwd")

    CASES.append(Case(f"tar: {what}", 29, odd_kind, 3, ("'a/odd'", said)))


@case(29, 3, "'a/sparse.png'", "a sparse file")
def tar_sparse_file_by_pax_header(raw):
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**43)}
    tarred(raw, "a/sparse.png", b"0\n" + bytes(510), pax_headers=records)


@case(29, 3, "extended header of")
def tar_extended_header_of_a_gigabyte(raw):
    put(raw, "x.tar", header(2**30, tarfile.XHDTYPE) + bytes(1024))


@case(29, 3, "cut off")
def tar_member_larger_than_the_archive(raw):
    put(raw, "x.tar", header(2**33, name="a/x.png") + bytes(2048))


@case(29, 3, "'a/00.png'", "is encrypted")
def zip_encrypted_member(raw):
    path = zipped(raw)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)


@case(29, 3, "cut off")
def zip_cut_in_half(raw):
    path = zipped(raw)
    os.truncate(path, path.stat().st_size // 2)


@case(29, 3, "damaged or cut off")
def tgz_cut_in_half(raw):
    path = tarred(raw, "a/z.png", photo(99), ".tgz")
    os.truncate(path, path.stat().st_size // 2)


@case(29, 3, "'a/00.png'", "Bad CRC-32")
def zip_member_with_a_wrong_checksum(raw):
    path = zipped(raw)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        data[data.index(mark) + place] ^= 1
    path.write_bytes(data)


@case(29, 3, "damaged or cut off")
def tgz_with_a_wrong_checksum(raw):
    path = tarred(raw, "a/z.png", photo(99), ".tgz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


@case(29, 3, "no picture in a class folder")
def zip_in_a_zip(raw):
    inner = zipped(raw).read_bytes()
    (raw / "x.zip").unlink()
    with zipfile.ZipFile(raw / "x.zip", "w") as archive:
        archive.writestr("inner.zip", inner)


@case(29, 3, "x.7z", "cannot be unpacked", "Unpack it yourself")
def archive_of_a_foreign_format(raw):
    put(raw, "x.7z", b"7z\xbc\xaf\x27\x1c" + bytes(99))


@case(29, 3, "has no files")
def zip_without_members(raw):
    put(raw, "x.zip", b"PK\5\6" + bytes(18))


@case(29, 3, "x.tar is no tar archive, or is damaged")
def tar_that_is_a_web_page(raw):
    put(raw, "x.tar", b"<html>404 not found</html>" * 100)


@case(29, 3, "x.zip", "link that leads out")
def archive_that_is_a_link_out_of_the_folder(raw):
    outside = zipped(raw.parents[3])
    raw.mkdir(parents=True)
    (raw / "x.zip").symlink_to(outside)


@case(29, 3, "labels.csv", "link that leads out")
def file_beside_an_archive_that_is_a_link_out_of_the_folder(raw):
    zipped(raw)
    (raw / "labels.csv").symlink_to("/etc/passwd")


@case(29, 3, "pipe", "no regular file")
def pipe_beside_an_archive(raw):
    zipped(raw)
    os.mkfifo(raw / "pipe")


@case(29, 3, "gone.csv", "link")
def link_to_nothing_beside_an_archive(raw):
    zipped(raw)
    (raw / "gone.csv").symlink_to("nothing")


@case(29, 3, "a/pipe", "no regular file")
def pipe_in_a_class_folder(raw):
    good(raw)
    os.mkfifo(raw / "a/pipe")


@case(29, 3, "a/passwd.png", "leads out of the folder")
def link_out_of_the_folder(raw):
    good(raw)
    (raw / "a/passwd.png").symlink_to("/etc/passwd")


@case(29, 3, "a/loop.png", "a link that leads to itself")
def link_to_itself(raw):
    good(raw)
    (raw / "a/loop.png").symlink_to("loop.png")


@case(29, 3, "a/up", "link")
def link_to_the_folder_above(raw):
    good(raw)
    (raw / "a/up").symlink_to("..")


# Row 30: bombs --------------------------------------------------------------------------------------------------------


def zeros(compressor, megabytes: int = 100) -> bytes:
    """Returns so many megabytes of zeros, compressed."""
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(megabytes)) + compressor.flush()


def bomb(name: str, file: str, data: Callable[[], bytes], *words: str, status: int = 3, **facts) -> None:
    """Adds a case of one file that wants too much."""
    CASES.append(Case(name, 30, lambda raw: put(raw, file, data()) and None, status, words, bomb=True, **facts))


def gzipped(megabytes: int = 100) -> bytes:
    return zeros(zlib.compressobj(9, zlib.DEFLATED, 31), megabytes)


def zip_of_zeros(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        for _ in range(100):
            member.write(bytes(MIB))
    return file.getvalue()


def overlapping(count: int = 1000) -> bytes:
    """Returns a zip whose members are all the same megabyte (CVE-2024-0450)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0", bytes(MIB))
        for number in range(1, count):
            again = zipfile.ZipInfo(f"a/{number}")
            for key in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(again, key, getattr(archive.filelist[0], key))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    return file.getvalue()


def zip64_that_lies() -> bytes:
    """Returns a zip whose zip64 record announces 2**40 members in a directory of 2**50 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/0.png", photo(0))
    data = file.getvalue()
    at = data.index(b"PK\5\6")
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**50, data.index(b"PK\1\2"))
    return data[:at] + record + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1) + data[at:]


def tar_with_headers_without_end() -> bytes:
    content = b"9 a=1111\n" * 32
    record = header(len(content), tarfile.XHDTYPE) + content + bytes(-len(content) % 512)
    return gzip.compress(record * 50_000, 1)


def npy_header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz_that_announces(shape: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "y_train"):
            archive.writestr(f"{name}.npy", npy_header(shape) + content)
    return file.getvalue()


def npz_of_zeros() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x_train.npy", "w") as member:
            member.write(npy_header(f"({300 * MIB // 784}, 28, 28)"))
            for _ in range(300):
                member.write(bytes(MIB))
        archive.writestr("y_train.npy", npy_header("(1,)") + b"\0")
    return file.getvalue()


def parquet_of_one_value(size: int, rows: int) -> bytes:
    """Returns a Parquet file whose dictionary has one value, which every row has."""
    file = io.BytesIO()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
    labels = pa.array(["ab"[number % 2] for number in range(rows)])
    table = pa.table({"text": texts, "label": labels})
    pq.write_table(table, file, compression="zstd", store_schema=False)  # so it is read as plain text
    return file.getvalue()


def json_lines_with_large_objects() -> bytes:
    """Returns 12 lines of 4 MB, in each a list of a million numbers that nobody asked for: 80 MB of memory each."""
    line = b'{"text": "x", "label": "a", "more": [' + b"10," * 1_300_000 + b"10]}\n"
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    salt = np.random.default_rng(0).integers(48, 58, 40_000, np.uint8).tobytes()  # keeps below the limit of ratios
    return (
        b"".join(compressor.compress(line[:-3] + b',"' + salt[number:] + b'"]}\n') for number in range(12))
        + compressor.flush()
    )


bomb("zip of zeros", "x.zip", lambda: zip_of_zeros("a/0.png"), "decompression bomb")
bomb("zip of members that share bytes", "x.zip", overlapping, "overlaps another")
bomb("zip64 that lies", "x.zip", zip64_that_lies, "damaged or is cut off")
bomb("tar.gz of zeros", "x.tar.gz", lambda: gzip.compress(header(2**34)) + gzipped(), "decompression bomb")
bomb("tar.bz2 of zeros", "x.tar.bz2", lambda: bz2.compress(header(2**34)) + zeros(bz2.BZ2Compressor()), "bomb")
bomb("tar.xz of zeros", "x.tar.xz", lambda: lzma.compress(header(2**34)) + zeros(lzma.LZMACompressor(preset=0)), "bomb")
bomb("tar of headers without end", "x.tar.gz", tar_with_headers_without_end, "ends before its end mark")
bomb("csv.gz of zeros", "train.csv.gz", gzipped, "bomb", params=TEXT)
bomb(
    "csv line of 100 MB",
    "train.csv",
    lambda: b"text,label\n" + b"a" * 100 * MIB,
    "line 2",
    "characters or more",
    params=TEXT,
)
bomb(
    "csv of 300,000 columns",
    "train.csv",
    lambda: ",".join(map(str, range(300_000))).encode() + b"\n1,2\n",
    "no column for the text",
    params=TEXT,
)
bomb(
    "json 100,000 deep",
    "train.jsonl",
    lambda: lines("[" * 100_000),
    "line 25: JSON nested too deeply",
    status=0,
    bad=1,
    params=TEXT,
)
bomb("json lines of large objects", "train.jsonl.gz", json_lines_with_large_objects, "classes ['a']", params=TEXT)
bomb(
    "npy header of 7 TiB",
    "cat.npy",
    lambda: npy_header("(1000000000, 88, 88)") + bytes(99),
    "cat.npy announces",
    "7,744,000,000,000",
)
bomb("npy header of 2**80 bytes", "cat.npy", lambda: npy_header(f"({2**40}, {2**40})"), "announces")
bomb("npz of zeros", "x.npz", npz_of_zeros, "announces")
bomb("npz header of 7 TiB", "x.npz", lambda: npz_that_announces("(1000000000, 88, 88)", bytes(9)), "announces")
bomb(
    "idx header of 8 TB",
    "train-images-idx3-ubyte",
    lambda: b"\0\0\x08\x03" + struct.pack(">3i", 2**31 - 1, 64, 64),
    "labels",
)
bomb(
    "parquet of one value of 20 MB",
    "train.parquet",
    lambda: parquet_of_one_value(20 * MIB, 64),
    "train.parquet#1 (row 1: 20,971,520 characters",
    params=TEXT,
)


@case(30, 3, "train-images-idx3-ubyte.gz has 33 bytes and announces", bomb=True)
def idx_gz_of_zeros(raw):
    put(raw, "train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03" + struct.pack(">3i", 400_000, 28, 28)))
    put(raw, "train-labels-idx1-ubyte.gz", gzip.compress(b"\0\0\x08\x01" + struct.pack(">i", 400_000)))


@case(30, 0, "a/bad.txt", "combining marks in a row", bomb=True, bad=1, params=TEXT)
def text_of_combining_marks(raw):
    """Sorting marks takes time that grows with the square of their number."""
    for number in range(24):
        put(raw, f"{'ab'[number % 2]}/{number}.txt", f"sentence {number} of many")
    put(raw, "a/bad.txt", "a" + "\u0301\u0316" * 100_000)


@case(30, 4, "SHA256SUMS, line 1", "leads out", bomb=True)
def list_of_checksums_that_names_an_endless_file(raw):
    good(raw)
    put(raw, "SHA256SUMS", f"{'0' * 64}  /dev/zero\n")


@case(30, 4, "pipe", bomb=True)
def list_of_checksums_that_names_a_pipe(raw):
    good(raw)
    os.mkfifo(raw / "pipe")
    put(raw, "SHA256SUMS", f"{'0' * 64}  pipe\n")


# Row 31: pictures -----------------------------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, data: bytes, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def plain(mode: str, colour: object, side: int = 12) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def palette(colour: tuple[int, int, int], **info) -> Image.Image:
    picture = plain("P", 1)
    picture.putpalette([0, 0, 0, *colour])
    picture.info |= info
    return picture


def jpeg_of_scans(count: int) -> bytes:
    data = encoded(Image.fromarray(noise(1, (32, 32))), "JPEG", progressive=True)
    scan = data[data.index(b"\xff\xda") : data.rindex(b"\xff\xda")]
    end = data.rindex(b"\xff\xd9")
    return data[:end] + scan * count + data[end:]


def tiff_of_pages(count: int) -> bytes:
    """Returns a TIFF of one small page, followed by directories without an entry."""
    data = encoded(plain("L", 90), "TIFF")
    [first] = struct.unpack_from("<L", data, 4)
    link = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    starts = len(data) + 6 * np.arange(count)
    pages = b"".join(struct.pack("<HL", 0, start + 6 if start != starts[-1] else 0) for start in starts.tolist())
    return data[:link] + struct.pack("<L", len(data)) + data[link + 4 :] + pages


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(plain("L", 90), "JPEG", exif=exif)


def frames(kind: str, **options) -> bytes:
    return encoded(plain("L", 90), kind, save_all=True, append_images=[plain("L", 10), plain("L", 200)], **options)


def png_of_zeros(name: bytes) -> bytes:
    """Returns a small PNG with a chunk that unpacks to 100 MB."""
    return png(12, 12, 8, 0, bytes(156), chunk(name, b"a\0\0" + zlib.compress(bytes(10**8), 1)))


WIDE_BMP = b"BM" + bytes(12) + struct.pack("<LiiHHL20x", 40, 2**31 - 1, 9, 1, 24, 0)
PNG, JPEG = photo(100), encoded(Image.fromarray(noise(100, (32, 32))), "JPEG")
NO_PICTURE = "not a picture in one of the formats"
SCRIPT = b"<script>alert(1)</script>"

among("0 bytes", 31, "bad.png", b"", "a/bad.png", NO_PICTURE)
among("PNG cut by 2 bytes", 31, "bad.png", PNG[:-2], "cut off")
among("PNG cut in half", 31, "bad.png", PNG[: len(PNG) // 2], "cut off")
among("PNG with a flipped bit", 31, "bad.png", PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "wrong checksum")
among("JPEG cut by 2 bytes", 31, "bad.jpg", JPEG[:-2], "no end-of-image mark")
among("JPEG cut in half", 31, "bad.jpg", JPEG[: len(JPEG) // 2], "no end-of-image mark")
among("GIF cut in half", 31, "bad.gif", encoded(Image.fromarray(noise(1, (90, 90))), "GIF")[:4000], "damaged")
among(
    "EPS, which Ghostscript would run", 31, "bad.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_PICTURE
)
among("PSD", 31, "bad.psd", b"8BPS\0\1" + bytes(20), NO_PICTURE)
among("SVG", 31, "bad.svg", b"<svg xmlns='http://www.w3.org/2000/svg'>" + SCRIPT + b"</svg>", NO_PICTURE)
among("web page instead of a picture", 31, "bad.jpg", b"<!doctype html><title>404</title>", NO_PICTURE)
among("program instead of a picture", 31, "bad.png", b"\x7fELF\2\1\1" + bytes(99), NO_PICTURE)
among("floating-point TIFF", 31, "bad.tif", lambda: encoded(plain("F", 0.5), "TIFF"), "floating-point")
among("32-bit TIFF", 31, "bad.tif", lambda: encoded(plain("I", 70_000), "TIFF"), "no 16-bit values")
among("wrong ending", 31, "bad.jpg", lambda: encoded(plain("L", 90)), shows=90)
among("16-bit grey", 31, "bad.png", png(12, 12, 16, 0, (b"\0" + b"\x5a\x5a" * 12) * 12), shows=90)
among("16-bit colour", 31, "bad.png", png(12, 12, 16, 2, (b"\0" + b"\x5a\x5a" * 36) * 12), shows=90)
among("CMYK TIFF", 31, "bad.tif", lambda: encoded(plain("CMYK", (165, 165, 165, 0)), "TIFF"), shows=90)
among(
    "CMYK JPEG, inverted as Adobe does",
    31,
    "bad.jpg",
    lambda: encoded(plain("CMYK", (165,) * 3 + (0,)), "JPEG"),
    shows=90,
)
among("palette", 31, "bad.png", lambda: encoded(palette((90, 90, 90))), shows=90)
among(
    "palette with a transparent colour", 31, "bad.png", lambda: encoded(palette((9, 9, 9)), transparency=1), shows=255
)
among("palette of a GIF", 31, "bad.gif", lambda: encoded(palette((90, 90, 90)), "GIF"), shows=90)
among("grey with alpha", 31, "bad.png", lambda: encoded(plain("LA", (0, 165))), shows=90)
among("1 bit", 31, "bad.png", lambda: encoded(plain("1", 1)), shows=255)
among("turned by EXIF", 31, "bad.jpg", turned, shows=90)
among("progressive JPEG", 31, "bad.jpg", lambda: encoded(plain("L", 90), "JPEG", progressive=True), shows=90)
among("animated GIF", 31, "bad.gif", lambda: frames("GIF"), shows=90)
among("animated WebP", 31, "bad.webp", lambda: frames("WEBP", lossless=True), shows=90)
among("animated PNG", 31, "bad.png", lambda: frames("PNG"), shows=90)
among("MPO of two views", 31, "bad.jpg", lambda: frames("MPO"), shows=90)
among("a million pages of TIFF", 31, "bad.tif", lambda: tiff_of_pages(10**6), shows=90, bomb=True)
among("60,000 x 60,000 pixels", 31, "bad.png", png(60_000, 60_000, 8, 0, b""), "too many pixels", bomb=True)
among("GIF of 65,535 x 65,535 pixels", 31, "bad.gif", b"GIF89a\xff\xff\xff\xff\0\0\0;", "a/bad.gif", bomb=True)
among("BMP of 2 billion pixels a line", 31, "bad.bmp", WIDE_BMP, "too many pixels", bomb=True)
among("PPM of 10 billion pixels", 31, "bad.pgm", b"P5 99999 99999 255 ", "too many pixels", bomb=True)
among(
    "8,000 x 8,000 pixels of 16 bits in 100 KB",
    31,
    "bad.png",
    lambda: png(8000, 8000, 16, 0, (b"\0" + b"\x5a\x5a" * 8000) * 8000),
    shows=90,
    bomb=True,
)
among("text bomb in a PNG", 31, "bad.png", lambda: png_of_zeros(b"zTXt"), "too large", bomb=True)
among("profile bomb in a PNG", 31, "bad.png", lambda: png_of_zeros(b"iCCP"), "too large", bomb=True)
among("thousands of scans of a JPEG", 31, "bad.jpg", lambda: jpeg_of_scans(4000), "more than 100 scans", bomb=True)
among(
    "picture of 1 x 60,000 pixels, padded",
    31,
    "bad.png",
    lambda: encoded(Image.new("L", (1, 60_000), 90)),
    params={**IMAGES, "fit": "pad"},
)
among("name with a newline", 31, "bad\n.png", b"", r"a/bad\x0a.png", "control characters")
among("name with a carriage return", 31, "bad\r.png", b"", r"a/bad\x0d.png", "control characters")
among("name that colours a terminal", 31, "\x1b[31mbad.png", b"", r"a/\x1b[31mbad.png", "control characters")
among("name of markup", 31, "<script>alert(1)<\u2215script>.png", b"", "<script>alert(1)", NO_PICTURE)
among("name of a formula", 31, "=cmd|'calc'!A1.png", b"", "a/=cmd|'calc'!A1.png", NO_PICTURE)
among("name of a comma and quotes", 31, 'a,"b".png', b"", 'a/a,"b".png', NO_PICTURE)
among("name that begins with a dash", 31, "-rf.png", b"", "a/-rf.png", NO_PICTURE)
among("name that is written from right to left", 31, "\u202egnp.exe", b"", "\u202egnp.exe", NO_PICTURE)
among("name of 255 bytes", 31, "n" * 251 + ".png", b"", "nnnn.png", NO_PICTURE)
among("name called NA", 31, "NA", b"", "a/NA", NO_PICTURE)


@case(31, 0, r"a/\xff.png", "not valid UTF-8", bad=1)
def name_that_is_not_utf8(raw):
    good(raw)
    put(raw, "a/\udcff.png", PNG)


@case(31, 3, "refused.csv", "control characters")
def class_folder_with_an_escape_sequence(raw):
    good(raw)
    good(raw, names=("\x1b[31mred",))


@case(31, 3, "wrong checksum of the chunk", params={**IMAGES, "max_bad": 0})
def chunk_of_a_png_with_an_escape_sequence_as_name(raw):
    good(raw)
    put(raw, "a/bad.png", PNG[:-12] + struct.pack(">I", 0) + b"\x1b[3m" + bytes(4) + PNG[-12:])


@case(31, 3, "a/0.png", "refused.csv", "6 of 30 files", "max_bad = 0.1")
def share_of_bad_files_above_max_bad(raw):
    good(raw)
    for number in range(6):
        put(raw, f"a/{number}.png", PNG[: -2 - number])


@case(31, 3, "too few examples", "train has none of a, b", params={**IMAGES, "max_bad": 1})
def nothing_but_bad_files(raw):
    for number in range(6):
        put(raw, f"{'ab'[number % 2]}/{number}.png", b"x" * number)


# Row 32: Python objects -----------------------------------------------------------------------------------------------


def objects(raw: Path) -> np.ndarray:
    return np.array([Payload(raw), None], object)[:1]


def dumped(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@case(32, 3, "x.npz[x_train]", "contains Python objects; refused")
def objects_in_an_npz(raw):
    raw.mkdir(parents=True)
    np.savez(raw / "x.npz", x_train=objects(raw), y_train=np.zeros(1, int))


@case(32, 3, "x.npz[y_train]", "contains Python objects; refused")
def objects_as_labels_of_an_npz(raw):
    raw.mkdir(parents=True)
    np.savez(raw / "x.npz", x_train=noise(0, (1, 8, 8)), y_train=objects(raw))


@case(32, 3, "images.npy contains Python objects; refused")
def objects_in_an_npy(raw):
    put(raw, "images.npy", dumped(objects(raw)))
    put(raw, "labels.npy", dumped(np.zeros(1, int)))


@case(32, 3, "cat.npy contains Python objects; refused")
def objects_in_an_npy_of_a_class(raw):
    put(raw, "cat.npy", dumped(objects(raw)))
    put(raw, "dog.npy", dumped(noise(0, (9, 64))))


@case(32, 0, "a/bad.npy", "contains Python objects; refused", bad=1, params=VOLUMES)
def objects_in_a_volume(raw):
    for number in range(24):
        put(raw, f"{'ab'[number % 2]}/{number}.npy", dumped(noise(number, (4, 8, 8))))
    put(raw, "a/bad.npy", dumped(objects(raw)))


@case(32, 3, "data_batch_1", "mkdir")
def pickle_called_like_a_batch_of_cifar(raw):
    put(raw, "data_batch_1", pickle.dumps({"data": Payload(raw), "labels": [0]}))


@case(32, 3, "batches.meta", "mkdir")
def pickle_called_like_the_classes_of_cifar(raw):
    put(raw, "data_batch_1", pickle.dumps({"data": noise(0, (1, 3072)), "labels": [0]}))
    put(raw, "batches.meta", pickle.dumps({"label_names": Payload(raw)}))


@case(32, 0, "a/bad.pkl", NO_PICTURE, bad=1)
def pickle_in_a_class_folder(raw):
    good(raw)
    put(raw, "a/bad.pkl", pickle.dumps(Payload(raw)))


# Row 33: CSV ----------------------------------------------------------------------------------------------------------


def sentence(number: int) -> str:
    return f"sentence number {number} of a table"


def table(rows: list[str] | None = None, head: str = "text,label", count: int = 24, end: str = "\n") -> bytes:
    """Returns a CSV of good rows and, behind them, others."""
    lines = [head, *(f"{sentence(number)},{'ab'[number % 2]}" for number in range(count)), *(rows or [])]
    return (end.join(lines) + end).encode()


def csv_case(name: str, data: bytes, status: int, *words: str, **facts) -> None:
    facts = {"params": TEXT, **facts}
    CASES.append(Case(f"csv: {name}", 33, lambda raw: put(raw, "train.csv", data) and None, status, words, **facts))


csv_case("label NA", table([f"{sentence(n + 50)},NA" for n in range(12)]), 0, "3 classes")
csv_case("label 001", table([f"{sentence(n + 50)},{('001', '1')[n % 2]}" for n in range(24)]), 0, "4 classes")
csv_case("surplus field", table(["one,a,b"]), 0, "train.csv#26", "line 26: 3 fields where the header has 2", bad=1)
csv_case("missing field", table(["one"]), 0, "train.csv#26", "line 26: 1 field where the header has 2", bad=1)
csv_case("empty label", table(["one,"]), 0, "train.csv#26", "0 characters", bad=1)
csv_case("NUL", table(["o\0ne,a"]), 0, "train.csv#26", "NUL", bad=1)
csv_case("byte order mark", b"\xef\xbb\xbf" + table(), 0, "2 classes")
csv_case("latin-1", table(["caf\u00e9 au lait,a"]).decode().encode("latin-1"), 0, "train.csv: read as cp1252")
csv_case(
    "not in its encoding", table() + b"\xff\xfe,a\n", 3, "train.csv", "line 26", params={**TEXT, "encoding": "utf-8"}
)
csv_case("duplicate column", table(head="text,text"), 3, "train.csv has two columns 'text'")
csv_case("open quote", table(['"one,a', "two,b"]), 0, "train.csv#26", "train.csv#27", "line 26: no valid row", bad=2)
csv_case("quotes in the middle", table(['"one"two,a']), 0, "train.csv#26", "no valid row", bad=1)
csv_case(
    "no header", table()[len("text,label\n") :], 3, "train.csv has no column for the text", "columns: {text: NAME}"
)
csv_case("empty", b"", 3, "train.csv is empty")
csv_case("only a header", b"text,label\n", 3, "has no examples")
csv_case("line ends of Windows", table(end="\r\n"), 0, "2 classes")
csv_case("line ends of old Macs", table(end="\r"), 3, "train.csv, line 1", "no valid row")
csv_case("row of 2 MB", table(["x" * 2 * MIB + ",a"]), 0, "train.csv#26", "characters in the column text", bad=1)
csv_case("class name of 300 letters", table(["one," + "x" * 300]), 0, "train.csv#26", "300 characters", bad=1)
csv_case("escape sequence as class", table(["one,\x1b[31m"]), 0, "train.csv#26", "control characters", bad=1)


# Row 34: damaged tables and arrays ------------------------------------------------------------------------------------


def parquet(rows: int = 24) -> bytes:
    file = io.BytesIO()
    columns = {"text": [sentence(n) for n in range(rows)], "label": ["ab"[n % 2] for n in range(rows)]}
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def listed(raw: Path) -> None:
    """Writes the list of checksums of all files."""
    lines = [f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(raw)}\n" for path in raw.rglob("*.*")]
    put(raw, "SHA256SUMS", "".join(lines))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@case(34, 4, "train.parquet was changed", "SHA256SUMS", params=TEXT)
def parquet_with_a_flipped_bit(raw):
    path = put(raw, "train.parquet", parquet())
    listed(raw)
    flip(path, 200)


@case(34, 3, "train.parquet is no Parquet file, is damaged or is cut off", params=TEXT)
def parquet_cut_in_half(raw):
    put(raw, "train.parquet", parquet()[:500])


@case(34, 3, "train.parquet is no Parquet file", params=TEXT)
def parquet_that_is_a_web_page(raw):
    put(raw, "train.parquet", b"<html>" * 99)


@case(34, 4, "a/00.png was changed", "SHA256SUMS")
def picture_with_a_flipped_bit(raw):
    good(raw)
    listed(raw)
    flip(raw / "a/00.png", 50)


@case(34, 4, "a/00.png is missing", "SHA256SUMS")
def picture_that_is_listed_and_not_there(raw):
    good(raw)
    listed(raw)
    (raw / "a/00.png").unlink()


@case(34, 4, "SHA256SUMS, line 1", "not `<SHA-256 in hexadecimal>  <file>`")
def list_of_checksums_of_another_kind(raw):
    good(raw)
    put(raw, "SHA256SUMS", "d41d8cd98f00b204e9800998ecf8427e  a/00.png\n")


@case(34, 4, "SHA256SUMS, line 1", "leads out of the folder")
def list_of_checksums_that_leads_out(raw):
    good(raw)
    outside = put(raw.parents[3], "outside", "x")
    put(raw, "SHA256SUMS", f"{sha256(b'x').hexdigest()}  {outside}\n")


def idx(count: int = 24) -> tuple[bytes, bytes]:
    images = b"\0\0\x08\x03" + struct.pack(">3i", count, 8, 8) + noise(0, (count, 64)).tobytes()
    return images, b"\0\0\x08\x01" + struct.pack(">i", count) + bytes(n % 2 for n in range(count))


def idx_case(name: str, images: bytes, labels: bytes | None, *words: str, ending: str = "") -> None:
    def build(raw: Path) -> None:
        put(raw, f"train-images-idx3-ubyte{ending}", images)
        if labels is not None:
            put(raw, f"train-labels-idx1-ubyte{ending}", labels)

    CASES.append(Case(f"idx: {name}", 34, build, 3, words))


IDX = idx()
idx_case("cut", IDX[0][:-9], IDX[1], "train-images-idx3-ubyte announces (24, 8, 8)")
idx_case("surplus bytes", IDX[0] + b"x", IDX[1], "train-images-idx3-ubyte announces (24, 8, 8)")
idx_case("flipped header", b"\0\0\x09" + IDX[0][3:], IDX[1], "is not an IDX file of bytes with 3 axes")
idx_case("no labels", IDX[0], None, "train-labels-idx1-ubyte is missing")
idx_case("labels for pictures", IDX[1], IDX[0], "is not an IDX file of bytes with 3 axes")
idx_case("other number of labels", IDX[0], idx(23)[1], "has 24 examples", "23 labels")
idx_case(
    "gz with a wrong checksum",
    gzip.compress(IDX[0])[:-8] + bytes(8),
    gzip.compress(IDX[1]),
    "cannot be read",
    ending=".gz",
)
idx_case("gz cut", gzip.compress(IDX[0])[:-99], gzip.compress(IDX[1]), "cannot be read", ending=".gz")


def lines(extra: str) -> bytes:
    rows = [json.dumps({"text": sentence(n), "label": "ab"[n % 2]}) for n in range(24)]
    return ("\n".join(rows) + f"\n{extra}").encode()


for what, extra, said in (
    ("cut", '{"text": "sente', "no valid JSON"),
    ("flipped", '{"text"; "x", "label": "a"}\n', "no valid JSON"),
    ("key twice", '{"text": "x", "text": "y", "label": "a"}\n', "a key twice"),
    ("key missing", '{"text": "x"}\n', "no value in the column label"),
    ("number that is none", '{"text": NaN, "label": "a"}\n', "NaN is no JSON number"),
    ("half a surrogate pair", '{"text": "\\ud800", "label": "a"}\n', "surrogate"),
    ("list", "[1, 2]\n", "a JSON list where an object is needed"),
):

    def bad_line(raw: Path, extra: str = extra) -> None:
        put(raw, "train.jsonl", lines(extra))

    CASES.append(Case(f"jsonl: {what}", 34, bad_line, 0, ("train.jsonl#25", "line 25", said), bad=1, params=TEXT))


@case(34, 0, "2 classes")
def idx_in_a_folder_whose_name_is_not_utf8(raw):
    put(raw, "\udcff/train-images-idx3-ubyte", IDX[0])
    put(raw, "\udcff/train-labels-idx1-ubyte", IDX[1])


@case(34, 3, "announces (24, 8, 8)")
def npy_cut(raw):
    put(raw, "images.npy", dumped(noise(0, (24, 8, 8)))[:-9])
    put(raw, "labels.npy", dumped(np.arange(24) % 2))


@case(34, 3, "x.npz")
def npz_cut(raw):
    file = io.BytesIO()
    np.savez_compressed(file, x_train=noise(0, (24, 8, 8)), y_train=np.arange(24) % 2)
    put(raw, "x.npz", file.getvalue()[:-99])


@case(34, 3, "the name of its class has control characters, or is not UTF-8", params=TEXT)
def class_file_whose_name_is_not_utf8(raw):
    for name in ("\udcff", "b"):
        put(raw, f"{name}.txt", "".join(f"{sentence(number)} of {name!r}\n" for number in range(24)))


@case(34, 3, "24 lines", "23", params={**PAIRS, "columns": {"source": "en", "target": "de"}})
def parallel_files_of_different_length(raw):
    for language, count in (("en", 24), ("de", 23)):
        put(raw, f"train.{language}", "".join(f"{sentence(n)} in {language}\n" for n in range(count)))


# Row 36: the same in train and test -----------------------------------------------------------------------------------


def split(raw: Path) -> None:
    for number in range(24):
        put(raw, f"{('train', 'val', 'test')[number % 3]}/{'ab'[number // 3 % 2]}/{number:02d}.png", photo(number, 32))


@case(36, 0, "train/a/copy.png", "same content as test/a/02.png", bad=1)
def picture_of_the_test_in_train(raw):
    split(raw)
    put(raw, "train/a/copy.png", photo(2, 32))


@case(36, 0, "train/b/copy.bmp", "same content as test/a/02.png under the label 'a'", bad=1)
def picture_of_the_test_in_train_under_another_label_and_format(raw):
    split(raw)
    put(raw, "train/b/copy.bmp", encoded(Image.fromarray(noise(2, (32, 32))), "BMP"))


@case(
    36,
    0,
    "train/a/copy.jpg",
    "nearly the same as test/a/scene.png, which the data set gives for test",
    bad=1,
    params={**IMAGES, "near_duplicates": True},
)
def near_copy_of_a_test_picture_in_train(raw):
    split(raw)
    scene = Image.fromarray(noise(7, (9, 9))).resize((96, 96), Image.Resampling.BICUBIC)
    put(raw, "test/a/scene.png", encoded(scene))
    put(raw, "train/a/copy.jpg", encoded(scene, "JPEG", quality=80))


@case(36, 0, "train.csv#", "nearly the same as test.csv#2", bad=1, params={**TEXT, "near_duplicates": True})
def near_copy_of_a_test_sentence_in_train(raw):
    told = "a long sentence of {} different words that stands in both of these files but for one of them"
    for number, name in enumerate(("test", "train")):
        words = [" ".join(f"{letter}{number}{k}" for letter in "abcdefghij") for k in range(24)]
        rows = [told.format("many" if number else "several"), *words]
        put(raw, f"{name}.csv", "text,label\n" + "".join(f"{row},{'ab'[k % 2]}\n" for k, row in enumerate(rows)))


# Row 37: classes ------------------------------------------------------------------------------------------------------


@case(37, 3, "found the classes ['a']", "at least two are needed")
def one_class(raw):
    good(raw, names=("a",))


@case(37, 3, "c is an empty class folder")
def empty_class_folder(raw):
    good(raw)
    (raw / "c").mkdir()


@case(37, 3, "at least two are needed")
def one_picture(raw):
    good(raw, count=1)


@case(37, 3, "too few examples", "val has none")
def one_picture_of_each_class(raw):
    good(raw, count=2)


@case(37, 3, "no picture in a class folder", "It has: nothing")
def empty_folder(raw):
    raw.mkdir(parents=True)


@case(37, 3, "no picture in a class folder", "It has: x.png")
def pictures_without_a_class(raw):
    put(raw, "x.png", PNG)


@case(37, 3, "train has none of c")
def class_that_only_the_test_has(raw):
    split(raw)
    put(raw, "test/c/x.png", PNG)


@case(37, 3, "train has none of")
def nothing_but_a_test(raw):
    for number in range(24):
        put(raw, f"test-{number}.png", photo(number))
    rows = "".join(f"test-{number}.png,{'ab'[number % 2]},test\n" for number in range(24))
    put(raw, "labels.csv", f"path,label,split\n{rows}")


@case(37, 3, "has split folders", "other")
def class_folder_beside_split_folders(raw):
    split(raw)
    put(raw, "other/x.png", PNG)


@case(37, 3, "24 examples", "23 labels")
def npz_with_fewer_labels(raw):
    raw.mkdir(parents=True)
    np.savez(raw / "x.npz", x_train=noise(0, (24, 8, 8)), y_train=np.arange(23))


@case(37, 3, "labels are missing")
def npz_without_labels(raw):
    raw.mkdir(parents=True)
    np.savez(raw / "x.npz", x_train=noise(0, (24, 8, 8)))


@case(37, 3, "data_batch_1 has 2 pictures and 1 labels")
def cifar_with_fewer_labels(raw):
    put(raw, "data_batch_1", pickle.dumps({"data": noise(0, (2, 3072)), "labels": [0]}))


@case(37, 3, "has the label 7", "2 names")
def cifar_with_a_class_that_has_no_name(raw):
    put(raw, "data_batch_1", pickle.dumps({"data": noise(0, (2, 3072)), "labels": [0, 7]}))
    put(raw, "batches.meta", pickle.dumps({"label_names": ["a", "b"]}))


def naming(name: str, path: str, *words: str, link: str | None = None) -> None:
    """Adds a case of a table that names 24 pictures that are there, and one more."""

    def build(raw: Path) -> None:
        rows = [[f"{number:02d}.png", "ab"[number % 2]] for number in range(24)] + [[path, "a"]]
        for number in range(24):
            put(raw, f"{number:02d}.png", photo(number))
        if link:
            (raw / path).symlink_to(link)
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([["path", "label"], *rows])
        put(raw, "labels.csv", file.getvalue())

    CASES.append(Case(f"table: {name}", 37, build, 3 if link else 0, words, bad=0 if link else 1))


naming("picture that does not exist", "99.png", "labels.csv#26", "99.png does not exist")
naming("picture outside", "../../../outside.png", "labels.csv#26", "leads out of the raw folder")
naming("picture on another path", "a/../../x.png", "labels.csv#26", "leads out of the raw folder")
naming("absolute path", "/etc/passwd", "labels.csv#26", "/etc/passwd leads out of the raw folder")
naming("path of Windows", "..\\..\\x.png", "labels.csv#26", "leads out of the raw folder")
naming("picture that is a link out", "link.png", "link.png is a link that leads out", link="/etc/passwd")
naming("empty path", "", "labels.csv#26", "does not exist")


@case(37, 0, "24.png", "has 5000 characters", bad=1)
def table_with_a_class_of_5000_digits(raw):
    """Python refuses to make a number of more than 4,300 digits."""
    rows = "".join(f"{number:02d}.png,{'ab'[number % 2]}\n" for number in range(24))
    for number in range(25):
        put(raw, f"{number:02d}.png", photo(number))
    put(raw, "pictures.csv", f"path,label\n{rows}24.png,{'7' * 5000}\n")


@case(37, 0, "24.png", "the label is empty", bad=1)
def table_with_an_empty_class(raw):
    rows = "".join(f"{number:02d}.png,{'ab'[number % 2]}\n" for number in range(24))
    for number in range(25):
        put(raw, f"{number:02d}.png", photo(number))
    put(raw, "pictures.csv", f"path,label\n{rows}24.png,\n")
