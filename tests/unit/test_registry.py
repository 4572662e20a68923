"""What is checked is what is loaded; an alias may stand on anything, and each way in says what to do then."""

import shutil
from pathlib import Path

import pytest
import stored

from convoy.errors import ConfigurationError, IntegrityError
from convoy.tracking import registry, store
from flows.serve import serve as serving
from flows.serve.predict import predict
from flows.serve.serve import serve
from flows.session import free_port
from stages import lineage


@pytest.fixture
def version(workspace, tmp_path_factory):
    """Version 1 of d, which is whole; champion."""
    made = stored.register(tmp_path_factory.mktemp("files"), tags={"parity": "1 test example"})
    registry.promote(made)
    return made


def files(name):
    """Returns where the store has files of that name."""
    return sorted(Path("mlartifacts").rglob(name))


def alter(name="code/__init__.py"):
    for file in files(Path(name).name):
        file.write_text(file.read_text() + "\nraise SystemExit('altered code ran')\n")


@pytest.mark.slow
def test_fault_42_what_is_altered_between_the_check_and_the_load_is_not_loaded(version, monkeypatch):
    check = registry._is_as_registered

    def checks_and_alters(registered, folder):
        found = check(registered, folder)
        alter()
        alter("weights.txt")
        return found

    monkeypatch.setattr(registry, "_is_as_registered", checks_and_alters)
    with registry.checked(version) as folder:
        [code], [weights] = folder.rglob("code/code/__init__.py"), folder.rglob("weights.txt")
        assert "altered" not in code.read_text()
        assert weights.read_text() == "weights"
        assert not folder.is_relative_to(Path.cwd())
        assert folder.stat().st_mode & 0o777 == 0o700  # nobody else can alter it
    assert not folder.exists()
    with pytest.raises(IntegrityError, match="are not those that were registered"), registry.checked(version):
        pass


@pytest.mark.slow
def test_fault_42_bytecode_beside_stored_code_is_neither_loaded_nor_a_reason_to_refuse(version):
    cache = next(folder for folder in Path("mlartifacts").rglob("code") if folder.is_dir()) / "code/__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"altered code")  # Python runs it where its source is unchanged
    with registry.checked(version) as folder:
        assert not [*folder.rglob("*.pyc")]


@pytest.mark.slow
def test_fault_42_what_is_served_was_checked(version, monkeypatch):
    served = []

    def keep(command, *_, **__):
        folder = Path(command[command.index("-m") + 1])
        alter()
        served.append((folder, registry.fingerprint(folder)))
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.session, "keep", keep)
    serve("d", free_port())
    [(folder, digest)] = served
    assert digest == version.tags[registry.STORED]
    assert not folder.exists()
    with pytest.raises(IntegrityError):
        serve("d", free_port())


def foreign(alias="champion"):
    """Has another tool register version 2 of d, and give it an alias."""
    client = store.connect()
    made = client.create_model_version("d", "s3://bucket/model", tags={"framework": "other"})
    client.set_registered_model_alias("d", alias, made.version)
    return made


@pytest.mark.slow
def test_fault_44_a_champion_of_another_tool_is_named_with_the_way_out(version):
    made = foreign()
    for use in (
        lambda: serve("d", free_port()),
        lambda: predict("d", Path("in.csv"), Path("out.csv")),
        lambda: lineage.rollback("d", made.version, "it looks good"),
    ):
        with pytest.raises(
            ConfigurationError, match=r"version 2 of d was not registered by convoy.* convoy rollback d@1"
        ):
            use()
    lineage.rollback("d", "1", "another tool took the alias")
    assert registry.needed_champion("d").version == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["altered", "gone"])
def test_fault_44_rollback_refuses_a_version_whose_files_are_damaged(version, tmp_path_factory, damage):
    second = stored.register(tmp_path_factory.mktemp("more"), content="others")
    registry.promote(second)
    [file] = (file for file in files("weights.txt") if file.read_text() == "weights")
    if damage == "altered":
        file.write_text("other weights")
    else:
        shutil.rmtree(next(folder for folder in file.parents if (folder / "MLmodel").exists()))
    said = {"altered": "are not those that were registered", "gone": "are gone"}[damage]
    with pytest.raises(IntegrityError, match=f"d version 1, .* {said}.*Version 2 is whole"):
        lineage.rollback("d", "1", "the second is bad")
    assert registry.champion("d").version == second.version
