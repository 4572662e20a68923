import json
import os

import pytest

from convoy import files
from convoy.errors import IntegrityError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_keeps_the_permissions_that_new_files_have(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    usual = target.stat().st_mode
    files.write_json(target, {"é": 1}, indent=1)
    assert json.loads(target.read_bytes()) == {"é": 1}
    assert target.stat().st_mode == usual
    assert names(tmp_path) == ["a.json"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replacement(target) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_a_kill_left_is_overwritten(tmp_path):
    (tmp_path / ".a.partial").write_text("much longer than what comes now")
    files.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, (tmp_path / "a").exists())))
    (tmp_path / "aside").mkdir()
    files.write(tmp_path / "a", "text", durable=True, folder=tmp_path / "aside")
    assert seen == [(4, False)]


def test_a_change_breaks_the_seal(tmp_path):
    path = tmp_path / "a.json"
    files.write_sealed(path, {"rows": 1, "name": "ü"})
    assert files.read_sealed(path) == {"rows": 1, "name": "ü"}
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))
    with pytest.raises(IntegrityError, match="does not match its own SHA-256"):
        files.read_sealed(path)


@pytest.mark.parametrize("former", ["folder", "link", "nothing"])
def test_a_finished_folder_takes_the_place_of_the_former_one(former, tmp_path):
    target, output, elsewhere = tmp_path / "target", tmp_path / "scratch", tmp_path / "elsewhere"
    for folder in (output, elsewhere, *([target] if former == "folder" else [])):
        folder.mkdir()
        (folder / folder.name).touch()
    if former == "link":
        target.symlink_to(elsewhere)
    files.swap_folder(output, target)
    assert names(target) == ["scratch"]
    assert names(elsewhere) == ["elsewhere"]
    assert names(tmp_path) == ["elsewhere", "target"]
