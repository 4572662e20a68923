import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest
from conftest import ROOT

from convoy.errors import InputRefusedError
from stages.ingest.formats import archives
from stages.ingest.formats.archives import prepared, unpack
from stages.ingest.formats.compressed import open_bytes

LONG = "Übung/" + "long-" * 30 + "name.txt"  # 153 characters: more than the 100 of the oldest tar header
CONTENT = {"pos/1.txt": b"good", "neg/2.txt": b"bad" * 50_000, "empty.txt": b"", LONG: b"x" * 512}


def packed(path, content=CONTENT, form=tarfile.PAX_FORMAT):
    """Writes an archive of the kind that its name says, changed on 2001-09-09 01:46:40 UTC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40)), data, zipfile.ZIP_DEFLATED)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1e9
            archive.addfile(member, io.BytesIO(data))
    return path


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, message):
    """Checks that nothing is left of a refused archive, inside or outside of its target."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(InputRefusedError, match=message) as caught:
        unpack(archive, archive.parent / "a/b/target")
    assert str(archive) in str(caught.value)
    assert not (archive.parent / "a/b/target").exists()
    assert [path for path in sorted(archive.parent.rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]


@pytest.mark.parametrize("ending", archives.FORMATS)
def test_what_was_packed_comes_out_with_its_time(tmp_path, ending):
    unpack(packed(tmp_path / f"x{ending}"), tmp_path / "out")
    assert files(tmp_path / "out") == CONTENT
    assert (tmp_path / "out/pos/1.txt").stat().st_mtime == 1e9


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_format_of_tar_is_read(tmp_path, form):
    content = {"a" * 90 + "/" + "b" * 90: b"1"} | ({} if form == tarfile.USTAR_FORMAT else CONTENT)
    unpack(packed(tmp_path / "x.tar", content, form), tmp_path / "out")
    assert files(tmp_path / "out") == content


def test_what_gnu_tar_packs_of_a_folder_comes_out(tmp_path):
    for name, data in CONTENT.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["tar", "-C", tmp_path / "in", "-cf", tmp_path / "x.tar", "."], check=True)
    unpack(tmp_path / "x.tar", tmp_path / "out")
    assert files(tmp_path / "out") == CONTENT


BAD_NAMES = [
    ("../outside.txt", "leads out"),
    ("a/../../outside.txt", "leads out"),
    ("/tmp/outside.txt", "absolute"),
    ("C:/outside.txt", "absolute"),
    ("C:outside.txt", "absolute"),
    ("..\\outside.txt", "backslash"),
    ("\\\\server\\share", "backslash"),
    ("a\nb", "control characters"),
    ("./", "empty|no files"),
    ("x" * 256, "too long"),
    ("a/" * 40 + "b", "too long"),
    ("/".join(["x" * 200] * 6), "too long"),
]


@pytest.mark.parametrize("ending", [".zip", ".tar"])
@pytest.mark.parametrize(("name", "message"), BAD_NAMES)
def test_fault_29_a_member_with_a_bad_name_is_named_and_nothing_is_written(tmp_path, ending, name, message):
    refused(packed(tmp_path / f"x{ending}", {"good.txt": b"1", name: b"2"} if name != "./" else {name: b""}), message)


CLASHES = [
    ("a/1.txt", "a/1.txt"),
    ("a/1.txt", "./a//1.txt"),
    ("a/1.txt", "a/1.TXT"),
    ("a/1.txt", "A/2.txt"),  # one folder on macOS and Windows, two classes here
    ("caf\u00e9", "cafe\u0301"),
    ("stra\u00dfe", "STRASSE"),
    ("a", "a/1.txt"),
    ("a/1.txt", "a"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("ending", [".zip", ".tar"])
@pytest.mark.parametrize(("first", "second"), CLASHES)
def test_fault_29_two_members_that_may_be_one_file_are_refused(tmp_path, ending, first, second):
    archive = tmp_path / f"x{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr(first, b"1")
            writer.writestr(second, b"2")
    else:
        with tarfile.open(archive, "w") as writer:
            for name in (first, second):
                member = tarfile.TarInfo(name)
                member.size = 1
                writer.addfile(member, io.BytesIO(b"1"))
    refused(archive, "name of an earlier one|collides")


TAR_TYPES = [
    (tarfile.SYMTYPE, "a symbolic link"),
    (tarfile.LNKTYPE, "a hard link"),
    (tarfile.CHRTYPE, "a device"),
    (tarfile.BLKTYPE, "a device"),
    (tarfile.FIFOTYPE, "a fifo"),
    (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    (b"V", "unknown type b'V'"),
]


@pytest.mark.parametrize(("kind", "message"), TAR_TYPES)
def test_fault_29_only_regular_files_leave_a_tar(tmp_path, kind, message):
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("good.txt"))
        member = tarfile.TarInfo("bad")
        member.type, member.linkname = kind, "../../../secret"
        archive.addfile(member)
    refused(tmp_path / "x.tar", f"'bad' is .*{message}")


@pytest.mark.parametrize(
    ("mode", "message"), [(0o120777, "symbolic link"), (0o010644, "device or fifo"), (0o060644, "device")]
)
def test_fault_29_only_regular_files_leave_a_zip(tmp_path, mode, message):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        member = zipfile.ZipInfo("bad")
        member.external_attr = mode << 16
        archive.writestr(member, "../../secret")
    refused(tmp_path / "x.zip", f"'bad' is .*{message}")


def patched(path, old, new, count=-1):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, count))
    return path


def test_a_name_with_a_nul_or_bytes_that_are_no_text_is_refused(tmp_path):
    refused(
        patched(packed(tmp_path / "x.zip", {"a.txt#.jpg": b"1"}), b"a.txt#.jpg", b"a.txt\0.jpg"), "control characters"
    )
    archive = patched(
        packed(tmp_path / "x.tar", {"caf\u00e9": b"1"}, tarfile.GNU_FORMAT), "caf\u00e9".encode(), b"caf\xe9\0"
    )
    data = bytearray(archive.read_bytes())
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    archive.write_bytes(data)
    refused(archive, "not UTF-8")


def test_an_encrypted_member_and_an_unusual_compression_are_refused(tmp_path):
    archive = packed(tmp_path / "x.zip", {"a": b"1"})
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "'a' is encrypted")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as writer:
        writer.writestr("a", b"1")
    refused(archive, "compressed by method 14. Allowed: stored")


@pytest.mark.parametrize("ending", archives.FORMATS)
def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path, ending):
    data = packed(tmp_path / f"whole{ending}", {"a/1.txt": bytes(range(256)) * 4, "b/2.txt": b"xyz"}).read_bytes()
    end = 4096 if ending == ".tar" else len(data)  # then come the zeros of the end; one block is enough
    (tmp_path / "cut").mkdir()
    archive = tmp_path / f"cut/x{ending}"
    for length in range(0, end, max(1, end // 25)):
        archive.write_bytes(data[:length])
        refused(archive, "cut off|damaged|no zip archive")


@pytest.mark.parametrize("ending", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_no_flipped_byte_changes_what_comes_out_or_leaves_a_traceback(tmp_path, ending):
    content = {"a/1.txt": bytes(range(256)) * 4, "b/2.txt": b"xyz"}
    data = packed(tmp_path / f"x{ending}", content).read_bytes()
    outcomes = []
    for place in range(0, len(data), max(1, len(data) // 60)):
        flipped = bytearray(data)
        flipped[place] ^= 0x21
        archive, target = tmp_path / f"{place}{ending}", tmp_path / f"out{place}"
        archive.write_bytes(flipped)
        try:
            unpack(archive, target)
        except InputRefusedError:
            assert not target.exists()
            outcomes.append("refused")
        else:
            assert sorted(files(target).values()) == sorted(content.values())
            outcomes.append("read")
    assert outcomes.count("refused") > outcomes.count("read")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    for ending in archives.FORMATS:
        (tmp_path / f"x{ending}").write_bytes(b"<html>404 not found</html>" * 100)
        refused(tmp_path / f"x{ending}", "damaged|no zip archive|no tar archive")
    (tmp_path / "x.zip").write_bytes(b"PK\5\6" + bytes(18))
    refused(tmp_path / "x.zip", "has no files")


def test_members_that_share_bytes_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", bytes(10**6))
        for number in range(1, 1000):  # a gigabyte, from one kilobyte
            again = zipfile.ZipInfo(str(number))
            for field in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(again, field, getattr(archive.filelist[0], field))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    refused(tmp_path / "x.zip", "overlaps another")


def test_too_many_members_too_large_ones_and_too_much_in_all_are_refused(tmp_path, monkeypatch):
    archive = {ending: packed(tmp_path / f"x{ending}") for ending in (".zip", ".tar.gz")}
    monkeypatch.setattr(archives, "MEMBERS", 3)
    refused(archive[".zip"], "more than 3 members")
    refused(archive[".tar.gz"], "more than 3 members")
    monkeypatch.setattr(archives, "MEMBERS", 4)
    unpack(archive[".zip"], tmp_path / "enough")
    monkeypatch.setattr(archives, "MEMBER_BYTES", 100_000)
    refused(archive[".zip"], "'neg/2.txt' has over 0 GiB")
    monkeypatch.undo()
    monkeypatch.setattr("stages.ingest.formats.compressed.TOTAL_BYTES", 100_000)
    refused(archive[".zip"], "unpacks to more than 0 GiB")
    refused(archive[".tar.gz"], "unpacks to more than 0 GiB")


def test_a_small_archive_of_equal_lines_is_no_bomb(tmp_path):
    content = {"a.txt": b"the same again\n" * 2**20}  # 15 MiB from 15 KiB
    unpack(packed(tmp_path / "x.tar.xz", content), tmp_path / "out")
    assert (tmp_path / "x.tar.xz").stat().st_size * 1000 < (tmp_path / "out/a.txt").stat().st_size


def zeros(compressor, megabytes):
    """Returns so many megabytes of zeros, compressed."""
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(megabytes)) + compressor.flush()


def tar_header(size, kind=tarfile.REGTYPE, name="x"):
    """Returns the header of a member that announces ``size`` bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(content):
    """Returns an extended header."""
    return tar_header(len(content), tarfile.XHDTYPE) + content + bytes(-len(content) % 512)


@pytest.mark.slow
def test_fault_30_bombs_end_within_10_seconds_and_512_mb_and_leave_nothing(tmp_path):
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = tar_header(2**34)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(head) + zeros(deflate, 70))
    (tmp_path / "x.tar.bz2").write_bytes(bz2.compress(head) + zeros(bz2.BZ2Compressor(), 70))
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(head) + zeros(lzma.LZMACompressor(preset=0), 70))
    packed(tmp_path / "x.zip", {"zeros": bytes(70 * 2**20)})
    packed(tmp_path / "nested.zip", {f"{n}.txt": bytes(10 * 2**20) for n in range(7)})
    many = zlib.compressobj(9, zlib.DEFLATED, 31)
    headers = b"".join(tar_header(0, name=f"{number:05d}") for number in range(20_000))
    (tmp_path / "many.tar.gz").write_bytes(many.compress(headers) + many.flush())
    # A header that asks for a dictionary of 4 GiB: byte 16 is its size (The .xz File Format 1.2.1, section 5.3.1).
    greedy = bytearray(lzma.compress(head))
    greedy[16] = 40
    end = 12 + greedy[12] * 4
    greedy[end : end + 4] = struct.pack("<L", zlib.crc32(greedy[12:end]))
    (tmp_path / "greedy.tar.xz").write_bytes(greedy)
    # Headers that announce 8 GB of further header, or take 32 records each to be read (CVE-2024-6232 is about those).
    extended = tar_header(2**33, tarfile.XHDTYPE)
    (tmp_path / "header.tar.gz").write_bytes(gzip.compress(extended) + zeros(zlib.compressobj(9, 8, 31), 70))
    (tmp_path / "digits.tar.gz").write_bytes(gzip.compress((pax(b"1" * 512) + pax(b"9 a=1111\n" * 32)) * 50_000))
    script = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_AS, (512 * 10**6, 512 * 10**6))\n"
        "from convoy.errors import InputRefusedError\n"
        "from stages.ingest.formats.archives import unpack\n"
        "for name in sys.argv[1:]:\n"
        "    start = time.monotonic()\n"
        "    try:\n"
        "        unpack(Path(name), Path('target'))\n"
        "    except InputRefusedError as refusal:\n"
        "        assert not Path('target').exists()\n"
        "        assert time.monotonic() - start < 10\n"
        "        print(refusal)\n"
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    run = subprocess.run(
        [sys.executable, "-c", script, *names],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    said = dict(line.split(" ", 1) for line in run.stdout.replace(":", "").splitlines())
    assert sorted(said) == names
    assert "more than 16,384 members" in said.pop("many.tar.gz")
    assert "pax header" in said.pop("digits.tar.gz")
    assert "extended header of 8,589,934,592 bytes" in said.pop("header.tar.gz")
    assert "Memory usage limit exceeded" in said.pop("greedy.tar.xz")
    assert all("as a decompression bomb does; stopped after 64 MiB" in message for message in said.values())


def test_a_gz_file_is_read_within_the_budget(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"text,label\n") + gzip.compress(b"a,b\n"))
    assert open_bytes(tmp_path / "x.csv.gz").read() == b"text,label\na,b\n"
    (tmp_path / "bomb.csv.gz").write_bytes(zeros(zlib.compressobj(9, zlib.DEFLATED, 31), 70))
    with pytest.raises(InputRefusedError, match="bomb.csv.gz unpacks to more than 200 times"):
        for _ in iter(lambda: stream.read(2**16), b"") if (stream := open_bytes(tmp_path / "bomb.csv.gz")) else ():
            pass
    (tmp_path / "cut.csv.gz").write_bytes((tmp_path / "x.csv.gz").read_bytes()[:-9])
    with pytest.raises(InputRefusedError, match="cut.csv.gz is damaged or cut off"):
        open_bytes(tmp_path / "cut.csv.gz").read()


def test_xz_of_several_streams_is_read_whole(tmp_path):
    (tmp_path / "x.xz").write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert open_bytes(tmp_path / "x.xz").read() == b"one two"


def test_litter_of_macos_and_names_in_its_utf8_are_understood(tmp_path):
    content = {
        "caf\u00e9/1.txt": b"1",
        "__MACOSX/caf/._1.txt": b"2",
        "caf\u00e9/.DS_Store": b"3",
        "caf\u00e9/._1.txt": b"4",
    }
    archive = packed(tmp_path / "x.zip", content)
    data = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):  # without the flag that says UTF-8, as macOS writes
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + place] &= ~0x08
    archive.write_bytes(data)
    unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {"caf\u00e9/1.txt": b"1"}


# prepared -------------------------------------------------------------------------------------------------------------


def unpacked(tmp_path, *, raw):
    """Returns the files that ingest would see of the archives and files ``raw``."""
    for name, content in raw.items():
        if isinstance(content, dict):
            packed(tmp_path / "raw" / name, content)
        else:
            (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / name).write_bytes(content)
    before = files(tmp_path / "raw")
    folder = prepared(tmp_path / "raw", tmp_path / "scratch/unpacked")
    assert files(tmp_path / "raw") == before
    return sorted(files(folder))


def test_a_folder_without_archives_is_used_as_it_is(tmp_path):
    (tmp_path / "raw/cat").mkdir(parents=True)
    assert prepared(tmp_path / "raw", tmp_path / "scratch") == tmp_path / "raw"
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(InputRefusedError, match="nothing is missing"):
        prepared(tmp_path / "nothing", tmp_path / "scratch")


ALONE = [
    ({"aclImdb/train/pos/1.txt": b"1", "aclImdb/README": b"2", "aclImdb/test/pos/1.txt": b"3"}, None),
    ({"101_ObjectCategories/cat/1.jpg": b"1", "101_ObjectCategories/dog/1.jpg": b"2"}, ["cat/1.jpg", "dog/1.jpg"]),
    ({"a/b/cat/1.jpg": b"1", "a/b/dog/1.jpg": b"2"}, ["cat/1.jpg", "dog/1.jpg"]),
    ({"cat/1.jpg": b"1", "cat/2.jpg": b"2"}, ["cat/1.jpg", "cat/2.jpg"]),  # one class, which ingest says
    ({"cat/1.jpg": b"1", "dog/2.jpg": b"2"}, ["cat/1.jpg", "dog/2.jpg"]),
    ({"rt/rt.pos": b"1", "rt/rt.neg": b"2", "rt/rt.README.txt": b""}, ["rt.README.txt", "rt.neg", "rt.pos"]),
    ({"cifar/data_batch_1.bin": b"1"}, ["data_batch_1.bin"]),
    ({"data/inner.zip": b"PK"}, ["inner.zip"]),  # not unpacked in its turn
]


@pytest.mark.parametrize(("content", "expected"), ALONE)
def test_an_archive_alone_is_its_content_without_wrapping_folders(tmp_path, content, expected):
    raw = {"x.tar.gz": content, "SHA256SUMS": b"", "LICENSE": b"", "README.md": b"", ".gitignore": b""}
    expected = expected or ["README", "test/pos/1.txt", "train/pos/1.txt"]
    assert unpacked(tmp_path, raw=raw) == expected


def test_several_archives_become_folders_named_by_their_stems(tmp_path):
    raw = {
        "train.zip": {"train/cat/1.jpg": b"1", "train/dog/1.jpg": b"2"},
        "test.tar.gz": {"cat/1.jpg": b"3", "dog/2.jpg": b"4"},
    }
    assert unpacked(tmp_path, raw=raw) == ["test/cat/1.jpg", "test/dog/2.jpg", "train/cat/1.jpg", "train/dog/1.jpg"]


def test_class_archives_become_class_folders(tmp_path):
    assert unpacked(tmp_path, raw={"cat.zip": {"1.jpg": b"1"}, "dog.zip": {"2.jpg": b"1"}}) == [
        "cat/1.jpg",
        "dog/2.jpg",
    ]


def test_a_table_beside_an_archive_lies_beside_its_folder(tmp_path):
    raw = {"images.zip": {"images/1.jpg": b"1"}, "labels.csv": b"file,label\n", "README": b""}
    assert unpacked(tmp_path, raw=raw) == ["images/1.jpg", "labels.csv"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"train.zip": {"a": b"1"}, "cat/1.jpg": b"1"}, "beside them the folder cat. Unpack"),
        ({"train.zip": {"a": b"1"}, "Train.tar": {"a": b"1"}}, "have the same stem"),
        ({"data.rar": b"Rar!"}, "data.rar cannot be unpacked here. Allowed: .zip, .tar"),
        ({"train.zip": {"../a": b"1"}, "labels.csv": b""}, "train.zip: its member '../a' is refused"),
    ],
)
def test_what_cannot_be_prepared_is_refused(tmp_path, raw, message):
    with pytest.raises(InputRefusedError, match=message):
        unpacked(tmp_path, raw=raw)
