"""Damage in the workspace, in DVC's cache and in a remote is named, stays where it is, and can be mended as told."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from dvc.repo import Repo

from convoy.errors import ConfigurationError, IntegrityError, ServiceError
from convoy.repo.transfer import pull, push
from convoy.repo.verify import verify
from flows import cli

GRAPH = """\
stages:
  copy:
    cmd: mkdir data/copy && cp data/raw/[012].txt data/copy && echo 1 > data/score.json
    deps: [data/raw]
    outs: [data/copy]
    metrics: [data/score.json: {cache: false}]
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A checkout with a tracked folder and one stage, beside the folder that it was pushed to."""
    base = tmp_path_factory.mktemp("pushed")
    checkout = base / "checkout"
    (checkout / "data/raw").mkdir(parents=True)
    (checkout / "data/.gitignore").write_text("/raw\n/copy\n")
    (checkout / "dvc.yaml").write_text(GRAPH)
    for number in range(4):
        (checkout / f"data/raw/{number}.txt").write_text(f"line {number}\n" * 1000)
    dvc(checkout, "init", "--no-scm", "-q")
    shipped = (ROOT / ".dvc/config").read_text()
    (checkout / ".dvc/config").write_text(shipped.replace("[core]\n", "[core]\n    no_scm = true\n"))
    dvc(checkout, "add", "-q", "data/raw")
    dvc(checkout, "repro", "-q")
    dvc(checkout, "push", "-q")
    return base


@pytest.fixture
def checkout(pushed, tmp_path, monkeypatch):
    """A copy of both, with the checkout as the working directory."""
    shutil.copytree(pushed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "checkout")
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "checkout"


@pytest.fixture
def clone(checkout, monkeypatch):
    """A second checkout of the same commit, without any data, beside the same remote."""
    folder = checkout.parent / "clone"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns("raw", "copy", "score.json", "cache", "tmp"))
    monkeypatch.chdir(folder)
    return folder


def settings(folder):
    """DVC keeps notes on each checkout outside of it; here they go away with the test."""
    return {"DVC_SITE_CACHE_DIR": str(folder / "site"), "DVC_NO_ANALYTICS": "1"}


def dvc(folder, *words):
    environment = os.environ | settings(folder.parent)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cached(folder, path):
    """The cache object of a file of the workspace."""
    return stored(folder / ".dvc/cache", folder / path)


def stored(store, path):
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    return store / "files/md5" / digest[:2] / digest[2:]


def alter(path, *, flip=100, cut=None):
    """Flips one bit or cuts the file; mode and times stay, by which DVC would notice."""
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[flip] ^= 1
    path.write_bytes(content if cut is None else content[:cut])
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(function, *arguments, **options):
    """The message with which a function says that something is damaged."""
    with pytest.raises(IntegrityError) as caught:
        function(*arguments, **options)
    assert caught.value.status == 4
    return str(caught.value)


@pytest.mark.slow
def test_whole_data_passes_and_the_three_places_are_named(checkout, capsys):
    verify()
    verify("storage")
    assert capsys.readouterr().out.splitlines()[:3] == [
        "cache: read 7 objects; notes of earlier runs: 1",
        "workspace: read 8 files",
        "remote storage: read 6 objects",
    ]


@pytest.mark.slow
def test_fault_11_an_altered_cache_object_is_named_and_nothing_is_pushed(checkout):
    remote = checkout.parent / "convoy-storage"
    shutil.rmtree(remote)
    bad = cached(checkout, "data/raw/2.txt")
    alter(bad)
    assert dvc(checkout, "status").endswith("up to date.\n")  # what DVC itself says
    for message in (refused(verify), refused(push)):
        assert f"cache: {bad.relative_to(checkout)} was altered" in message
        assert "data/raw/2.txt" in message
        assert "dvc commit --force data/raw" in message
    assert not remote.exists()
    bad.unlink()
    dvc(checkout, "commit", "--force", "data/raw")
    push()
    verify("storage")


def test_fault_12_a_truncated_object_in_the_remote_stops_the_pull_and_leaves_the_workspace(clone, checkout):
    bad = stored(checkout.parent / "convoy-storage", checkout / "data/raw/1.txt")
    alter(bad, cut=50)
    old = clone / "data/raw"  # dvc pull would delete it
    old.mkdir()
    (old / "0.txt").write_text("from an older commit")
    before = tree(clone / "data")
    message = refused(pull)
    assert f"remote storage: {bad} was altered" in message
    assert "data/raw/1.txt" in message
    assert "Nothing was checked out" in message
    assert tree(clone / "data") == before
    assert f"remote storage: {bad} was altered" in refused(verify, "storage")
    assert f"remote storage: {bad} was altered" in refused(verify)


@pytest.mark.slow
def test_fault_13_a_missing_member_of_a_folder_in_the_remote_is_listed(clone, checkout):
    bad = stored(checkout.parent / "convoy-storage", checkout / "data/raw/3.txt")
    bad.unlink()
    for message in (refused(pull), refused(verify), refused(verify, "storage")):
        assert message.splitlines()[1:-2] == [f"  remote storage: {bad} is missing: data/raw/3.txt"]
    assert not (clone / "data/raw").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "listing"])
def test_push_repair_mends_the_remote_from_a_whole_clone(clone, checkout, monkeypatch, damage):
    remote = checkout.parent / "convoy-storage"
    bad = stored(remote, checkout / "data/raw/0.txt")
    if damage == "missing":
        bad.unlink()
    elif damage == "listing":
        alter(next(remote.rglob("*.dir")), flip=5)
    else:
        alter(bad, cut=7 if damage == "cut" else None)
    refused(verify, "storage")
    monkeypatch.chdir(checkout)
    push()  # DVC's own push takes existing files for whole
    refused(verify, "storage")
    push(repair=True)
    verify("storage")
    monkeypatch.chdir(clone)
    pull()
    verify()
    assert tree(clone / "data/raw") == tree(checkout / "data/raw")


@pytest.mark.slow
def test_a_clone_without_the_data_cannot_repair_and_deletes_nothing(clone, checkout):
    remote = checkout.parent / "convoy-storage"
    alter(stored(remote, checkout / "data/raw/0.txt"))
    before = tree(remote)
    assert "in a clone that has it whole" in refused(push, repair=True)
    assert tree(remote) == before


@pytest.mark.slow
@pytest.mark.parametrize("path", ["data/raw/1.txt", "data/copy/2.txt", "data/score.json"])
def test_a_flip_in_the_workspace_is_named_though_its_time_is_kept(checkout, path):
    alter(checkout / path, flip=0)
    message = refused(verify)
    assert f"workspace: {path} was altered" in message
    if path != "data/score.json":  # which is not cached, so its stage has to run again
        output = path.rsplit("/", 1)[0]
        assert f"{output}: delete the files named, then `dvc checkout {output}`" in message
        (checkout / path).unlink()
        dvc(checkout, "checkout", output)
        verify()
    else:
        assert "dvc repro --force --single-item copy" in message
        dvc(checkout, "repro", "--force", "--single-item", "copy")
        verify()


def test_missing_and_added_files_of_the_workspace_are_named(checkout):
    (checkout / "data/raw/1.txt").unlink()
    (checkout / "data/copy/more.txt").write_text("mine")
    message = refused(verify)
    assert "workspace: data/raw/1.txt is missing" in message
    assert "workspace: data/copy/more.txt is not recorded" in message
    assert message.startswith("2 damaged or missing.")


def test_a_damaged_listing_does_not_hide_the_damage_of_its_folder(checkout):
    shutil.rmtree(checkout.parent / "convoy-storage")
    for listing in (checkout / ".dvc/cache").rglob("*.dir"):
        alter(listing, flip=5)
    alter(checkout / "data/raw/1.txt")
    message = refused(verify)
    assert ".dir was altered" in message
    assert "workspace: data/raw is not as data/raw.dvc left it" in message


def test_a_note_of_an_earlier_run_is_checked_too(checkout):
    note = next(path for path in (checkout / ".dvc/cache/runs").rglob("*") if path.is_file())
    note.write_text(note.read_text().replace("md5: ", "md5: 0", 1))
    assert f"cache: {note.relative_to(checkout)} was altered" in refused(verify)


def test_what_dvc_left_half_written_when_it_was_ended_is_no_damage(checkout, capsys):
    cached(checkout, "data/raw/2.txt").with_name(".gcQsRgbcFiI-IrrRJz0X8g.tmp").write_text("")
    verify()
    assert "half-written by runs that were ended, and no data: 1 files of the cache" in capsys.readouterr().out


def test_the_message_of_the_command_has_a_line_for_each_damage(checkout, capsys):
    (checkout / "data/raw/2.txt").write_text("new\n")
    assert cli.main(["verify"]) == IntegrityError.status
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: 1 damaged or missing."
    assert "data/raw/2.txt" in said[1]
    assert said[2] == "What to do:"


@pytest.mark.slow
def test_objects_of_other_commits_are_read_as_well(checkout):
    bad = cached(checkout, "data/raw/2.txt")
    (checkout / "data/raw/2.txt").write_text("new\n")
    dvc(checkout, "add", "-q", "data/raw")
    dvc(checkout, "repro", "-q")
    verify()
    alter(bad)
    assert f"{bad.relative_to(checkout)} was altered: the md5 of its bytes is " in refused(verify)


def test_outputs_not_pushed_or_pulled_yet_are_reported_and_no_damage(checkout, clone, capsys, monkeypatch):
    verify()
    assert "not in this clone: 2 of 2 outputs, e.g. data/copy (convoy pull brings them)" in capsys.readouterr().out
    monkeypatch.chdir(checkout)
    shutil.rmtree(checkout.parent / "convoy-storage")
    verify()
    assert "is empty: nothing was pushed yet (convoy push)" in capsys.readouterr().out
    monkeypatch.chdir(clone)
    for message in (refused(verify, "storage"), refused(pull)):  # asked for, it has to be there
        assert "has none of the" in message
    assert not (clone / "data/raw").exists()


def test_a_long_list_is_cut_and_counted(checkout):
    for number in range(30):
        (checkout / f"data/raw/more-{number:02d}.txt").write_text("")
    message = refused(verify)
    assert message.startswith("30 damaged or missing.")
    assert "... and 10 more" in message
    assert len(message.splitlines()) == 1 + 20 + 1 + 1 + 1


def test_without_a_remote_it_is_told_that_none_was_looked_at(checkout, capsys):
    dvc(checkout, "remote", "default", "--unset")
    verify()
    assert "remote: not looked at, there is no default remote (dvc remote default NAME)" in capsys.readouterr().out


@pytest.mark.parametrize("function", [verify, push, pull])
def test_an_unknown_remote_is_a_wrong_configuration(checkout, function):
    with pytest.raises(ConfigurationError, match="there is no remote 'nowhere'. Remotes: storage."):
        function("nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("function", [verify, push, pull])
def test_an_unreachable_remote_is_a_failed_service(clone, function):
    dvc(clone, "remote", "modify", "--local", "storage", "url", "ssh://127.0.0.1:1/nowhere")
    with pytest.raises(ServiceError, match="remote storage cannot be read: "):
        function()


def test_a_place_without_data_version_control_is_a_wrong_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="DVC cannot read this checkout"):
        verify()


@pytest.mark.slow
def test_the_shipped_remote_checks_what_arrives_wherever_it_is_moved(checkout):
    dvc(checkout, "remote", "modify", "--local", "storage", "url", "s3://bucket/folder")
    dvc(checkout, "remote", "modify", "--local", "storage", "endpointurl", "http://127.0.0.1:1")
    with Repo() as repo:
        remote = repo.config["remote"]["storage"]
    assert remote["verify"] is True
    assert remote["url"] == "s3://bucket/folder"
    assert remote["endpointurl"] == "http://127.0.0.1:1"
