"""A checkout may be moved and copied: what MLflow stored in it is found, and what is gone is named."""

import shutil
import sqlite3
import subprocess

import pytest
import stored
from conftest import ROOT

from convoy import doctor
from convoy.errors import ConfigurationError, ServiceError
from convoy.tracking import registry, relocation, runs, store
from stages import check


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout with a champion of the data set d, kept elsewhere; and the folder that it was built in."""
    place, kept = tmp_path_factory.mktemp("a place") / "pets 100%", tmp_path_factory.mktemp("kept") / "pets"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, place)
        registry.promote(stored.register(tmp_path_factory.mktemp("files")))
    place.rename(kept)
    return kept, place


@pytest.fixture
def checkout(built, tmp_path, monkeypatch):
    """A checkout with a champion of the data set d; the working directory."""
    (kept, place), own = built, tmp_path / "a place" / "pets 100%"  # of its own: MLflow keeps databases open
    shutil.copytree(kept, own)
    with sqlite3.connect(own / "mlflow.db") as opened:
        for table, column in relocation.ADDRESSES:
            for old, new in ((place.as_uri(), own.as_uri()), (str(place), str(own))):
                opened.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))
    enter(monkeypatch, own)
    return own


def addresses(checkout):
    """Returns every address of files in the database."""
    with sqlite3.connect(checkout / "mlflow.db") as opened:
        return {
            (table, column): [row for (row,) in opened.execute(f"SELECT {column} FROM {table}")]
            for table, column in relocation.ADDRESSES
        }


def enter(monkeypatch, place):
    """Goes to another checkout, as a new process does."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow sets


@pytest.mark.slow
def test_fault_39_a_moved_checkout_works_and_moved_back_it_is_as_before(checkout, monkeypatch, capsys):
    before, moved = addresses(checkout), checkout.with_name("elsewhere")
    checkout.rename(moved)
    enter(monkeypatch, moved)
    champion = registry.champion("d")
    assert f"moved or copied from {checkout}" in capsys.readouterr().err
    assert registry.text_of(champion, "weights.txt") == "weights"
    assert registry.is_whole(champion)
    with runs.run("train@b", "d", {}, {}) as run_id:
        runs.log_file(moved / "mlflow.db.lock")
    assert list(moved.glob(f"mlartifacts/d/{run_id}/artifacts/*"))
    assert not checkout.exists()
    rows = str(addresses(moved))
    assert str(checkout) not in rows
    assert checkout.as_uri() not in rows
    assert capsys.readouterr().err == ""  # one line, once

    store.connect().delete_run(run_id)
    moved.rename(checkout)
    enter(monkeypatch, checkout)
    assert registry.is_whole(registry.champion("d"))
    assert {key: rows[: len(before[key])] for key, rows in addresses(checkout).items()} == before


def test_fault_39_a_copy_has_its_own_files_and_the_first_keeps_its_own(checkout, monkeypatch):
    copy = checkout.with_name("copy")
    shutil.copytree(checkout, copy)
    before = addresses(checkout)
    enter(monkeypatch, copy)
    store.connect()
    shutil.rmtree(checkout / "mlartifacts")
    assert registry.is_whole(registry.champion("d"))
    assert addresses(checkout) == before


def test_fault_39_a_copy_without_its_files_is_told_what_to_copy(checkout, monkeypatch):
    copy = checkout.with_name("copy")
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns("mlartifacts"))
    before = addresses(copy)
    enter(monkeypatch, copy)
    with pytest.raises(ConfigurationError, match=f"cp -r {checkout}/mlartifacts {copy}/mlartifacts"):
        registry.champion("d")
    assert addresses(copy) == before


def test_the_same_checkout_under_another_name_stays_as_it_is(checkout, monkeypatch):
    before, other = addresses(checkout), checkout.with_name("other")
    other.mkdir()
    (other / "mlflow.db").hardlink_to(checkout / "mlflow.db")  # as a second mount of the same disk shows it
    (other / "mlartifacts").symlink_to(checkout / "mlartifacts")
    enter(monkeypatch, other)
    with runs.run("train@b", "d", {}, {}):
        pass
    assert registry.is_whole(registry.champion("d"))
    assert {key: rows[: len(before[key])] for key, rows in addresses(checkout).items()} == before


def test_addresses_elsewhere_are_left_alone(checkout, monkeypatch):
    client = store.connect()
    client.create_experiment("far", artifact_location="s3://bucket/mlartifacts/far")
    client.create_experiment("near", artifact_location=checkout.with_name("pets 100% more").as_uri())
    moved = checkout.with_name("elsewhere")
    checkout.rename(moved)
    relocation.follow(moved)
    found = addresses(moved)["experiments", "artifact_location"]
    assert "s3://bucket/mlartifacts/far" in found
    assert checkout.with_name("pets 100% more").as_uri() in found


def test_a_copy_inside_the_checkout_is_moved_once_though_two_processes_see_it(checkout):
    inner = checkout / "inner"
    shutil.copytree(checkout, inner, ignore=shutil.ignore_patterns("inner"))
    for _ in range(2):
        relocation._move(inner / "mlflow.db", checkout, inner)
    found = addresses(inner)["experiments", "artifact_location"]
    assert (inner / "mlartifacts/d").as_uri() in found


@pytest.mark.parametrize(
    "address", ["file:///tmp", "file:///", "s3://bucket/a/b", "/a/plain/path", "", "mlflow-artifacts:/1"]
)
def test_any_address_can_be_asked_about(checkout, address):
    assert not relocation.is_same(address, checkout / "mlartifacts/d")


def test_a_database_that_cannot_be_written_is_named(checkout, monkeypatch):
    moved = checkout.with_name("elsewhere")
    checkout.rename(moved)
    with sqlite3.connect(moved / "mlflow.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(relocation, "LOCK_SECONDS", 0)
        with pytest.raises(ServiceError, match="cannot be changed: database is locked"):
            relocation.follow(moved)


def test_fault_39_files_of_a_champion_that_are_gone_are_named_before_anybody_needs_them(checkout, capsys):
    (checkout / "params.yaml").write_text("fetch: {}\ningest: {}\naugment: {}\ntrain: {}\nregister: {}\n")
    assert list(doctor.registry()) == []
    shutil.rmtree(checkout / "mlartifacts")
    [problem] = doctor.registry()
    assert "the files of d version 1 (champion) are gone" in problem
    assert "dvc repro --force --single-item register@d" in problem
    check.check()
    assert problem in capsys.readouterr().err


def test_fault_39_the_programs_of_a_moved_checkout_are_found(tmp_path):
    programs = tmp_path / "R&D now/.venv/bin"
    programs.mkdir(parents=True)
    (programs / "dvc").write_text("#!/was/here/.venv/bin/python\nprint(1)\n")
    (programs / "activate").write_text('VIRTUAL_ENV="/was/here/.venv"\n')
    (programs.parent / "pyvenv.cfg").write_text("version = 3.11.7\ncommand = /usr/bin/python -m venv /was/here/.venv\n")
    command = ["make", "-s", "-f", ROOT / "Makefile", "moved"]
    said = [
        subprocess.run(command, cwd=tmp_path / "R&D now", capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert (programs / "dvc").read_text() == f"#!{programs}/python\nprint(1)\n"
    assert (programs / "activate").read_text() == f'VIRTUAL_ENV="{programs.parent}"\n'
    assert "moved or copied" in said[0]
    assert said[1] == ""
