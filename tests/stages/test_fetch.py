import os
import shutil
import socket
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_digits

from convoy import checksums
from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError, ServiceError
from stages.fetch import folders
from stages.fetch.entry import Fetch
from stages.fetch.fetch import fetch


def listing(folder):
    """Relative paths of the files and folders in it, but for the list of checksums."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "SHA256SUMS")


def signature(path):
    """Changes with the file, its content or its place; reading it leaves this as it is."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def is_as_listed(folder):
    """Whether coreutils agrees with the list, and the list has every file."""
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return done.returncode == 0 and len(done.stdout.splitlines()) == len(files) - 1


@pytest.fixture
def photos(workspace):
    """A folder of 200 small files in 4 class folders, an hour old."""
    source = workspace / "photos"
    for number in range(200):
        file = source / "abcd"[number % 4] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"picture %d" % number)
        os.utime(file, ns=(10**18 + number, 10**18 + number))
    return source


@pytest.fixture
def target(workspace):
    return workspace / "data/raw/pets"


def test_digits_are_the_1797_pictures_of_scikit_learn_in_class_folders(workspace):
    fetch("digits", Fetch(sample="digits"))
    files = sorted((workspace / "data/raw/digits").rglob("*.png"))
    pictures, labels = load_digits(return_X_y=True)
    assert len(files) == 1797
    for file in files[::97]:
        number = int(file.stem)
        picture = np.asarray(Image.open(file))
        assert file.parent.name == str(labels[number])
        np.testing.assert_array_equal(np.rint(picture / 255 * 16), pictures[number].reshape(8, 8))
    assert is_as_listed(workspace / "data/raw/digits")
    assert not (workspace / "data/raw/.partial").exists()


def test_a_local_folder_is_copied_and_replaces_what_was_there(photos, target):
    (target / "dog").mkdir(parents=True)
    (target / "dog/1.png").write_bytes(b"1")
    (photos / "nothing yet").mkdir()
    fetch("pets", Fetch(path=photos))
    assert listing(target) == listing(photos)
    assert is_as_listed(target)


def test_a_local_file_such_as_an_archive_is_copied_as_it_is(workspace, target):
    (workspace / "pets.zip").write_bytes(b"not looked into")
    fetch("pets", Fetch(path=workspace / "pets.zip"))
    assert listing(target) == ["pets.zip"]
    assert is_as_listed(target)


def test_files_that_did_not_change_stay_the_very_same_and_are_not_read(photos, target, capsys, monkeypatch):
    fetch("pets", Fetch(path=photos))
    before = {name: signature(target / name) for name in listing(target)}
    (photos / "a/000.png").write_bytes(b"changed")
    os.utime(photos / "b/001.png", ns=(5, 5))  # only its time
    (photos / "a/new.png").write_bytes(b"new")
    (photos / "c/002.png").unlink()
    read = []
    monkeypatch.setattr(folders, "sha256", lambda file: read.append(file.name) or checksums.sha256(file))
    fetch("pets", Fetch(path=photos))
    assert "200 files, 2.1 kB; 3 new, 1 taken away" in capsys.readouterr().out
    assert sorted(read) == ["000.png", "001.png", "new.png"]
    after = {name: signature(target / name) for name in listing(target)}
    same = {name for name in before.keys() & after.keys() if before[name] == after[name]}
    assert {name for name in before if "." in name} - same == {"a/000.png", "b/001.png", "c/002.png"}
    assert (target / "a/000.png").read_bytes() == b"changed"
    assert is_as_listed(target)


def test_nothing_at_all_is_touched_when_nothing_changed(photos, target):
    fetch("pets", Fetch(path=photos))
    before = {path: signature(path) for path in [target, *target.rglob("*")]}
    fetch("pets", Fetch(path=photos))
    assert {path: signature(path) for path in [target, *target.rglob("*")]} == before


def test_a_link_of_dvc_into_its_cache_is_replaced_and_never_written_into(photos, target, workspace):
    fetch("pets", Fetch(path=photos))
    for number, name in enumerate(("a/000.png", "b/001.png")):
        cached = workspace / f"cache{number}"
        (target / name).rename(cached)
        cached.chmod(0o444)
        (target / name).hardlink_to(cached) if number else (target / name).symlink_to(cached)
        (photos / name).write_bytes(b"changed")
    fetch("pets", Fetch(path=photos))
    assert [(workspace / f"cache{number}").read_bytes() for number in (0, 1)] == [b"picture 0", b"picture 1"]
    assert not (target / "a/000.png").is_symlink()
    assert is_as_listed(target)


def test_a_file_becomes_a_folder_and_a_folder_a_file(workspace, photos, target):
    fetch("pets", Fetch(path=photos))
    shutil.rmtree(photos / "a")
    (photos / "a").write_bytes(b"file")
    (photos / "b/001.png").unlink()
    (photos / "b/001.png").mkdir()
    (photos / "b/001.png/x").write_bytes(b"x")
    fetch("pets", Fetch(path=photos))
    assert listing(target) == listing(photos)
    assert is_as_listed(target)


@pytest.mark.parametrize("moment", ["copy", "move", "list"])
def test_a_killed_run_is_repaired_by_the_next(photos, target, monkeypatch, moment):
    fetch("pets", Fetch(path=photos))
    kept = signature(target / "d/003.png")
    for number in range(0, 40, 4):
        (photos / f"a/{number:03d}.png").write_bytes(b"changed %d" % number)

    class Kill(BaseException):
        pass

    calls = []

    def killed(function):
        def run(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 5 or moment == "list":
                raise Kill
            return function(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        if moment == "copy":
            patch.setattr(shutil, "copy2", killed(shutil.copy2))
        if moment == "move":
            patch.setattr(type(target), "replace", killed(type(target).replace))
        if moment == "list":
            patch.setattr(checksums, "write", killed(checksums.write))
        with pytest.raises(Kill):
            fetch("pets", Fetch(path=photos))
    assert (target / "SHA256SUMS").exists() == (moment == "copy")
    fetch("pets", Fetch(path=photos))
    assert listing(target) == listing(photos)
    assert (target / "a/036.png").read_bytes() == b"changed 36"
    assert signature(target / "d/003.png") == kept
    assert is_as_listed(target)
    assert not target.with_name(".partial").exists()


def test_links_inside_the_folder_are_copied_as_what_they_point_to(photos, target):
    (photos / "a/link.png").symlink_to("../b/001.png")
    (photos / "e").symlink_to(photos / "d")
    fetch("pets", Fetch(path=photos))
    assert (target / "a/link.png").read_bytes() == b"picture 1"
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert len(list((target / "e").iterdir())) == 50
    before = signature(target / "a/link.png")
    fetch("pets", Fetch(path=photos))
    assert signature(target / "a/link.png") == before


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda path: path.symlink_to("/etc/hostname"), "a/odd is a link to /etc/hostname, outside"),
        (lambda path: path.symlink_to("gone"), "a/odd is a link to gone, which does not exist"),
        (lambda path: path.symlink_to(".."), "a/odd is a link to .*photos, a folder that it lies in"),
        (lambda path: path.symlink_to("odd"), "a/odd is a link to odd, which does not exist"),
        (os.mkfifo, "a/odd is a pipe, not a file"),
        (make_socket, "a/odd is a socket, not a file"),
    ],
    ids=["outside", "broken", "circle", "itself", "pipe", "socket"],
)
def test_what_is_no_file_of_the_folder_is_named_and_refused(photos, target, put, message):
    fetch("pets", Fetch(path=photos))
    before = {path: signature(path) for path in target.rglob("*")}
    put(photos / "a/odd")
    with pytest.raises(InputRefusedError, match=message):
        fetch("pets", Fetch(path=photos))
    assert {path: signature(path) for path in target.rglob("*")} == before
    assert not target.with_name(".partial").exists()


def test_a_list_of_checksums_in_the_folder_is_held_against_its_files_and_completed(photos, target):
    published = checksums.sha256(photos / "a/000.png")
    (photos / "SHA256SUMS").write_text(f"{published.upper()} *./a/000.png\n\n")
    fetch("pets", Fetch(path=photos))
    assert is_as_listed(target)
    assert len((target / "SHA256SUMS").read_text().splitlines()) == 200


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("{0}  a/000.png\n{1}  b/001.png\n", IntegrityError, r"SHA256SUMS: b/001\.png: SHA-256 is \w{64}, not 1111"),
        ("{0}  a/000.png\n{0}  a/gone.png\n", IntegrityError, r"a/gone\.png: missing\. Get the files again"),
        ("{0}  a/000.png\nabc  b/001.png\n", InputRefusedError, r"SHA256SUMS, line 2: 'abc  b/001.png' is not"),
    ],
)
def test_a_list_that_its_folder_does_not_agree_with_is_refused(photos, target, lines, error, message):
    fetch("pets", Fetch(path=photos))
    before = {path: signature(path) for path in target.rglob("*")}
    (photos / "SHA256SUMS").write_text(lines.format(checksums.sha256(photos / "a/000.png"), "1" * 64))
    (photos / "a/new.png").write_bytes(b"new")
    with pytest.raises(error, match=message):
        fetch("pets", Fetch(path=photos))
    assert {path: signature(path) for path in target.rglob("*")} == before
    assert not target.with_name(".partial").exists()


def test_the_list_can_name_any_file(photos, target):
    for name in ("ä b.png", "back\\slash", "line\nfeed", "  spaces", os.fsdecode(b"\xff")):
        (photos / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    fetch("pets", Fetch(path=photos))
    assert is_as_listed(target)
    assert checksums.read(target) == {
        path.relative_to(target).as_posix(): checksums.sha256(path)
        for path in target.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }


def test_what_dvc_leaves_out_is_left_out(photos, target):
    (photos / ".DS_Store").write_bytes(b"")
    (photos / "a/__pycache__").mkdir()
    fetch("pets", Fetch(path=photos))
    assert len(listing(target)) == 204
    patterns = [line for line in (ROOT / ".dvcignore").read_text().splitlines() if line and not line.startswith("#")]
    anywhere = [pattern for pattern in patterns if "/" not in pattern]
    assert all(checksums.is_ignored(pattern.replace("*", "x")) for pattern in anywhere)
    assert [pattern for pattern in patterns if pattern not in anywhere] == ["/data/evaluate/*/*/measured.js"]


def test_damaged_checksum_list_is_made_again(photos, target):
    fetch("pets", Fetch(path=photos))
    (target / "SHA256SUMS").write_text("damaged")
    fetch("pets", Fetch(path=photos))
    assert is_as_listed(target)


def test_a_file_that_changes_while_it_is_copied_is_not_taken(photos, target, monkeypatch):
    copy2 = shutil.copy2

    def copy_and_change(source, copy):
        copy2(source, copy)
        source.write_bytes(b"longer than before")

    monkeypatch.setattr(shutil, "copy2", copy_and_change)
    with pytest.raises(ServiceError, match="000.png changed while it was copied. Run again"):
        fetch("pets", Fetch(path=photos))
    assert not target.exists()


def test_fault_10_lack_of_room_is_reported_before_anything_is_copied(photos, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ServiceError, match=r"needs 2\.1 kB in .*, which has 1\.0 kB left"):
        fetch("pets", Fetch(path=photos))
    assert not target.exists()


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({}, ConfigurationError, "one of sample .digits.*, path, urls or catalogue .*; got none"),
        ({"sample": "digits", "path": "x"}, ConfigurationError, "one of sample .* got sample and path"),
        ({"sample": "digit"}, ConfigurationError, "unknown sample 'digit'. Samples: digits"),
        ({"path": "nowhere"}, InputRefusedError, "nowhere.* does not exist"),
        ({"path": "data"}, ConfigurationError, "lie in each other"),
        ({"path": "data/raw/pets"}, ConfigurationError, "needs no fetch entry but `dvc add data/raw/pets`"),
        ({"path": "data/raw/pets/photos"}, ConfigurationError, "lie in each other"),
    ],
)
def test_refuses_what_it_cannot_fetch_and_leaves_the_raw_data_alone(workspace, source, error, message):
    kept = workspace / "data/raw/pets/cat.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"1")
    with pytest.raises(error, match=message):
        fetch("pets", Fetch(**{key: workspace / value if key == "path" else value for key, value in source.items()}))
    assert kept.exists()
