"""A registered version knows where it comes from, and the way back is open after everything else was cleaned."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import NO_ENTRIES, ROOT
from PIL import Image

import stages.__main__
from convoy.errors import ConfigurationError, IntegrityError
from convoy.machine import guard
from convoy.repo.objects import open_repo
from convoy.tracking import registry, retention, store
from flows import cli
from stages import lineage

ENTRY = "{dataset: bars, architecture: plain_cnn, sizes: {width: 0.1}, learning_rate: 0.01, epochs: %d, seed: %d}"
PARAMS = """
fetch: {bars: {path: %s}}
ingest: {bars: {kind: images, size: [12, 12], mode: grey, val: 0.3, test: 0.3}}
augment: {bars: {copies: 1, seed: 0, shift: 1}}
train: {model: %s}
register: {bars: {alpha: 0.99}}
"""


def sh(*words, **settings):
    done = subprocess.run(words, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(folder, epochs, seed):
    (folder / "params.yaml").write_text(PARAMS % (folder.parent / "pictures", ENTRY % (epochs, seed)))
    env = {key: value for key, value in guard.environment().items() if key != "MLFLOW_TRACKING_URI"}
    sh(sys.executable, "-m", "dvc", "repro", "-q", cwd=folder, env=env)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git checkout of this code in which version 1 (committed) and 2 (epochs and seed not committed) were made."""
    top = tmp_path_factory.mktemp("lineage")
    rng = np.random.default_rng(0)
    for number in range(60):
        picture = rng.integers(0, 60, (12, 12), np.uint8)
        picture[(2 + number % 8, slice(None)) if number % 2 else (slice(None), 2 + number % 8)] = 255
        folder = top / "pictures" / ("down", "across")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    folder = top / "checkout"
    for package in ("convoy", "stages"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "data").mkdir()
    (folder / "data/.gitkeep").touch()
    (folder / "params.yaml").write_text(PARAMS % (top / "pictures", ENTRY % (12, 0)))
    sh("git", "init", "-q", cwd=folder)
    for key, value in {"user.name": "a", "user.email": "a@b.c", "core.hooksPath": "none"}.items():
        sh("git", "config", key, value, cwd=folder)
    sh(sys.executable, "-m", "dvc", "init", "-q", cwd=folder)
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", "all", cwd=folder)
    repro(folder, 12, 0)
    repro(folder, 30, 1)
    return folder


@pytest.fixture
def inside(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return checkout


def test_trace_prints_the_chain(inside, capsys):
    assert cli.main(["trace", "bars@1"]) == 0
    said = capsys.readouterr().out
    commit = sh("git", "rev-parse", "HEAD").strip()
    recorded = json.loads(registry.text_of(registry.find_version("bars", "1"), lineage.LINEAGE))
    [raw] = recorded["lock"]["stages"]["fetch@bars"]["outs"]
    for part in (f"commit {commit}", raw["md5"][:12], "61 files", "ingest.bars = ",
                 "data/augment/bars", '"epochs": 12', "keras ", "accuracy ", "the first champion"):  # fmt: skip
        assert part in said
    assert "uncommitted patch" not in said
    cli.main(["trace", "bars@2"])
    assert "uncommitted patch of params.yaml" in capsys.readouterr().out
    assert cli.main(["trace", "bars@7"]) == ConfigurationError.status
    assert "Versions of bars: 2, 1; aliases: champion" in capsys.readouterr().err
    assert cli.main(["trace", "bars"]) == ConfigurationError.status


def test_rebuild_takes_the_patch_too_and_gives_the_same_bytes(inside, capsys):
    assert cli.main(["rebuild", "bars@2"]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "with its patch" in said
    assert "equal, byte by byte" in said
    assert sh("git", "status", "--porcelain", "stages") == ""


def test_rebuild_says_what_is_otherwise(inside, monkeypatch):
    found = registry.find_version("bars", "1")
    other = dict(found.tags) | {"model_sha256": "0" * 64}
    monkeypatch.setattr(type(found), "tags", property(lambda self: other))
    monkeypatch.setattr(lineage, "version", lambda library: "9.9")
    with pytest.raises(IntegrityError, match="registered is 0000.*keras is 9.9, was"):
        lineage.rebuild("bars@1")


def test_fault_25_rollback_is_kept_and_not_undone_by_register(inside, capsys):
    if str(registry.champion("bars").version) == "1":  # by chance the gate did not take 2, the model of the workspace
        assert cli.main(["rollback", "bars@2", "--reason", "to begin with"]) == 0
    assert cli.main(["rollback", "bars@2", "--reason", "x"]) == ConfigurationError.status
    assert cli.main(["rollback", "bars@1", "--reason", ""]) == ConfigurationError.status
    assert cli.main(["rollback", "bars@1", "--reason", "wrong in the dark"]) == 0
    now = registry.champion("bars")
    assert str(now.version) == "1"
    assert now.tags["decision"] == json.dumps("went back to it from version 2: wrong in the dark")
    assert registry.find_version("bars", "2").tags["rolled_back"] == "wrong in the dark"

    assert stages.__main__.main("register", "bars") == 0  # 2 is the best of the workspace
    assert str(registry.champion("bars").version) == "1"
    decision = json.loads(Path("data/register/bars/decision.json").read_text())
    assert (decision["version"], decision["promoted"]) == (2, False)
    assert decision["reason"] == "version 2 was taken back: wrong in the dark"
    assert cli.main(["rollback", "bars@2", "--reason", "it was the lamp"]) == 0
    assert "rolled_back" not in registry.find_version("bars", "2").tags


def test_fault_14_clean_leaves_what_a_copy_under_another_name_needs(inside):
    client = store.connect()
    client.copy_model_version("models:/bars/2", "production")
    cli.main(["rollback", "bars@1", "--reason", "so that 2 may go"])
    _, go = retention.unneeded(["bars"], 0, kept_runs=())
    assert [str(one.version) for one in go.versions] == ["2"]
    assert (go.models, go.runs) == ([], [])
    client.delete_registered_model("production")
    _, go = retention.unneeded(["bars"], 0, kept_runs=())
    assert (len(go.models), len(go.runs)) == (1, 1)


def test_fault_14_clean_leaves_what_an_alias_needs(inside, capsys, caplog):
    cli.main(["rollback", "bars@1", "--reason", "to have an old champion"])
    Path("data/old").write_text("of a data set that nobody has any more")
    sh(sys.executable, "-m", "dvc", "add", "-q", "data/old")
    Path("data/old.dvc").unlink()
    client = store.connect()
    client.create_registered_model("of somebody else")
    client.create_model_version("of somebody else", "s3://elsewhere/model", tags={"model": "theirs"})
    other = client.create_run(
        client.create_experiment("theirs"), tags={"model": "theirs", "stage": "train"}
    ).info.run_id
    client.set_terminated(other)
    theirs = mlflow.create_external_model(
        "without a run", experiment_id=client.get_experiment_by_name("bars").experiment_id
    )
    capsys.readouterr()
    cache = Path(".dvc/cache/files")
    (cache / "md5/00").mkdir(exist_ok=True)
    (cache / "md5/00/.gcQsRgbcFiI-IrrRJz0X8g.tmp").write_text("half-written by a run that was killed")
    before = {path for path in cache.rglob("*") if path.is_file()}
    for model in ("model", "gone"):
        Path(f"data/train/.cache/checkpoints/bars/{model}/key").mkdir(parents=True)
    assert cli.main(["clean", "--keep-last", "1"]) == ConfigurationError.status
    assert "refused, nothing was removed: bars@1 (model) would go, to which an alias" in capsys.readouterr().err
    assert cli.main(["clean", "--keep-last", "0", "--keep-champions", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would go: bars version 2 (model)" in said
    assert "would go: checkpoints of gone on bars, which params.yaml has no more" in said
    assert "missing version info" not in caplog.text  # DVC's warning of every output that no commit has
    assert {path for path in cache.rglob("*") if path.is_file()} == before
    assert registry.find_version("bars", "2")

    stored = Path("mlartifacts/bars/models")
    assert len(list(stored.glob("*/artifacts/MLmodel"))) == 3
    assert cli.main(["clean", "--keep-last", "0", "--keep-champions"]) == 0
    left = {f"models:/{file.parts[-3]}" for file in stored.glob("*/artifacts/MLmodel")}
    assert left == {registry.champion("bars").source, theirs.model_uri}  # that of 2 went, though its run stays
    assert [path.name for path in Path("data/train/.cache/checkpoints/bars").iterdir()] == ["model"]
    assert len(before - {path for path in cache.rglob("*") if path.is_file()}) == 2
    assert "2 objects of DVC's cache" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"no bars@2"):
        registry.find_version("bars", "2")
    assert client.get_model_version("of somebody else", "1").tags["model"] == "theirs"
    assert client.get_run(other).info.lifecycle_stage == "active"
    cached = ("fetch@bars", "ingest@bars", "augment@bars", "train@model", "evaluate@model")
    sh(sys.executable, "-m", "dvc", "status", "-q", *cached)  # the workspace's data is all there
    shutil.rmtree("data/ingest/bars")
    sh(sys.executable, "-m", "dvc", "checkout", "-q", "data/ingest/bars")
    _, takes = registry.load_model(registry.champion("bars"))
    assert takes["classes"] == ["across", "down"]
    assert cli.main(["rebuild", "bars@champion"]) == 0
    assert "equal, byte by byte" in capsys.readouterr().out  # version 1 had no patch
    assert cli.main(["clean", "--keep-last", "all"]) == ConfigurationError.status


@pytest.fixture
def left_params(inside):
    """The checkout after its data set was taken out of params.yaml; put back in the end."""
    before = Path("params.yaml").read_text()
    Path("params.yaml").write_text(json.dumps(NO_ENTRIES))
    yield inside
    Path("params.yaml").write_text(before)


def cached():
    return {path for path in Path(".dvc/cache/files").rglob("*") if path.is_file()}


def test_fault_40_clean_keeps_what_a_champion_needs_whose_data_set_left_params(left_params, capsys):
    client, before = store.connect(), cached()
    client.create_registered_model("old")
    client.create_model_version("old", str(left_params / "gone"), tags={"model": "m", "model_sha256": "0"})
    client.set_registered_model_alias("old", "production", "1")
    assert cli.main(["clean", "--keep-last", "0"]) == ConfigurationError.status
    assert "refused, nothing was removed: what old@1 (alias production) needs is not known" in capsys.readouterr().err
    assert cached() == before
    client.delete_registered_model("old")
    versions = {one.version for one in client.search_model_versions("name = 'bars'")}

    assert cli.main(["clean", "--keep-last", "0"]) == 0
    assert "gone: 0 versions, 0 runs, 0 stored models" in capsys.readouterr().out
    assert {one.version for one in client.search_model_versions("name = 'bars'")} == versions
    with open_repo() as repo:
        for version in versions:
            recorded = json.loads(registry.text_of(registry.find_version("bars", version), lineage.LINEAGE))
            outs = [out["md5"] for stage in recorded["lock"]["stages"].values() for out in stage["outs"]]
            assert [out for out in outs if not repo.cache.local.exists(out)] == []
    assert cli.main(["rebuild", "bars@champion"]) == 0
    assert "equal, byte by byte" in capsys.readouterr().out


def test_fault_40_rebuild_without_its_data_names_them_and_where_they_may_be(left_params, capsys):
    cache = Path(".dvc/cache")
    cache.rename("elsewhere")
    try:
        assert cli.main(["rebuild", "bars@champion"]) == ConfigurationError.status
        said = capsys.readouterr().err
        sh(
            sys.executable,
            "-m",
            "dvc",
            "remote",
            "add",
            "--local",
            "--default",
            "other",
            str(Path("elsewhere").resolve()),
        )
        assert cli.main(["rebuild", "bars@champion"]) == 0
        sh(sys.executable, "-m", "dvc", "remote", "remove", "--local", "other")
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        Path("elsewhere").rename(cache)
    assert "data/augment/bars, data/ingest/bars are neither in DVC's cache nor in a remote" in said
    assert "dvc remote add --default other CLONE/.dvc/cache" in said


def test_clean_leaves_versions_that_params_does_not_mention(left_params):
    client = store.connect()
    number = client.copy_model_version("models:/bars@champion", "production").version
    stay, go = retention.unneeded([], 0, kept_runs=())
    assert ("production", number) in {(one.name, one.version) for one in stay}
    assert not any(one.name == "of somebody else" for one in stay)
    assert go == retention.Unneeded([], [], [])
    client.delete_registered_model("production")
