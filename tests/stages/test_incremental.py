"""A run after an edit decodes and changes what is new, and gives the bytes of a run that starts from nothing."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from convoy import dependencies
from stages.augment import augment as augment_module
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest import ingest as ingest_module
from stages.ingest import reading
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest

CHANGES = {"copies": 2, "seed": 1, "shift": 2, "rotate": 10, "elastic": 1, "flip": ["down"], "erase": 0.1, "noise": 5}


@pytest.fixture
def bars(pictures, monkeypatch):
    """The folder of pictures, a function that runs both stages, and what it decoded and changed."""
    work = {"decoded": 0, "changed": 0}
    decode_block, change = reading.decode_block, augment_module._change

    def counting(items, *arguments):
        work["decoded"] += len(items)
        return decode_block(items, *arguments)

    def changing(block, *arguments):
        work["changed"] += len(block[0])
        return change(block, *arguments)

    monkeypatch.setattr(reading, "decode_block", counting)
    monkeypatch.setattr(augment_module, "_change", changing)

    def run(fresh=False, **options):
        if fresh:
            for stage in ("ingest", "augment"):
                shutil.rmtree(pictures.parents[1] / stage, ignore_errors=True)
        work.update(decoded=0, changed=0)
        ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey", max_bad=0.5, **options))
        augment("bars", Augment(**CHANGES))
        return content(pictures.parents[1])

    return pictures, run, work


def content(data):
    files = [path for stage in ("ingest", "augment") for path in (data / stage / "bars").rglob("*") if path.is_file()]
    return {str(path.relative_to(data)): path.read_bytes() for path in files}


def paint(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(path)


def edit(folder, rng):
    """One random change of a folder of pictures."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    other = folder / ("down" if path.parent.name == "across" else "across")
    match rng.integers(8):
        case 0:
            paint(path.parent / f"new{rng.integers(10**9)}.png", rng)
        case 1:
            path.unlink()
        case 2:
            path.rename(other / path.name)  # another label
        case 3:
            paint(path, rng)  # another picture of the same name
        case 4:
            path.touch()
        case 5:
            shutil.copy(path, other / f"copy{rng.integers(10**9)}{path.suffix}")  # the same under two labels
        case 6:
            (path.parent / f"broken{rng.integers(10**9)}.png").write_bytes(path.read_bytes()[:-20])
        case 7:
            path.rename(path.with_name(f"moved{rng.integers(10**9)}{path.suffix}"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_after_random_edits_the_bytes_are_those_of_a_run_from_nothing(bars, seed):
    folder, run, _ = bars
    rng = np.random.default_rng(seed)
    run()
    for _ in range(3):
        for _ in range(rng.integers(1, 6)):
            edit(folder, rng)
        after = run()
        assert after == run(fresh=True)


@pytest.mark.slow
def test_a_group_of_near_copies_that_grows_and_shrinks_has_the_split_of_a_run_from_nothing(bars):
    folder, run, _ = bars
    rng = np.random.default_rng(4)
    scene = Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    scene = Image.blend(scene, Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)), 0.1)
    paths = [folder / "down" / f"copy-{copy}.png" for copy in range(4)]
    manifest = folder.parents[1] / "ingest/bars/manifest.parquet"
    for copy, path in enumerate(paths):
        scene.point(lambda value, copy=copy: value * (1 - 0.05 * copy)).save(path)
        assert run() == run(fresh=True)
        assert (pd.read_parquet(manifest)["near"] != "").sum() == (copy + 1 if copy else 0)
    for path in paths[:3]:
        path.unlink()
        assert run() == run(fresh=True)
    assert (pd.read_parquet(manifest)["near"] == "").all()


def test_what_is_remembered_depends_on_the_code_that_decodes_and_that_finds_near_copies():
    code = "\n".join(map(str, map(dependencies.file, dependencies.of(ingest_module.REMEMBERED))))
    for file in ("ingest/decoding.py", "ingest/near/pictures.py", "ingest/near/texts.py", "ingest/previous.py"):
        assert f"stages/{file}" in code
    assert "convoy/kinds/images.py" in code
    assert "report" not in code


def test_nothing_is_decoded_or_changed_twice(bars, monkeypatch):
    folder, run, work = bars
    monkeypatch.setattr("stages.ingest.previous.COARSE", -(10**18))  # however young the files are
    first = run()
    assert work["decoded"] == 60
    assert run() == first
    assert work == {"decoded": 0, "changed": 0}
    rng = np.random.default_rng(5)
    for number in range(3):
        paint(folder / "down" / f"new{number}.png", rng)
    run()
    assert work["decoded"] == 3
    assert work["changed"] <= 3 * CHANGES["copies"]


def test_a_file_of_the_same_size_and_time_with_other_content_is_seen(bars):
    """Its inode was written to: that time cannot be set back."""
    folder, run, _ = bars
    path = folder / "down/01.bmp"
    Image.new("L", (12, 12), 10).save(path)
    run()
    before = path.stat()
    Image.new("L", (12, 12), 200).save(path)
    import os

    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert run() == run(fresh=True)


def test_a_file_that_was_only_touched_is_read_but_not_decoded(bars):
    folder, run, work = bars
    first = run()
    for path in folder.rglob("*.png"):
        path.touch()
    assert run() == first
    assert work["decoded"] == 0


def test_other_shares_of_the_splits_decode_nothing(bars):
    _, run, work = bars
    run()
    after = run(val=0.3)
    assert work["decoded"] == 0
    assert after == run(fresh=True, val=0.3)


@pytest.mark.parametrize("lost", ["ingest/.cache", "ingest/bars/train", "augment/bars", "ingest/bars/key.json"])
def test_whatever_is_lost_of_the_last_run_is_made_again(bars, lost):
    folder, run, _ = bars
    first = run()
    path = folder.parents[1] / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run() == first


@pytest.mark.slow
def test_a_flipped_bit_in_what_is_known_or_was_written_is_never_taken_over(bars):
    folder, run, _ = bars
    first = run()
    data = folder.parents[1]
    rng = np.random.default_rng(0)
    for _ in range(25):
        files = [path for stage in ("ingest", "augment") for path in (data / stage).rglob("*.*") if path.is_file()]
        path = sorted(files)[rng.integers(len(files))]
        whole = path.read_bytes()
        place = rng.integers(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        assert run() == first, path


def test_an_example_left_out_of_train_comes_back_when_its_twin_in_test_goes(bars, monkeypatch):
    folder, run, _ = bars
    for split, rows in (("train", slice(0, 25)), ("test", slice(25, 30))):
        for label in ("across", "down"):
            (folder / split / label).mkdir(parents=True)
            for path in sorted((folder / label).glob("*.png"))[rows if split == "train" else slice(0, 5)]:
                path.rename(folder / split / label / path.name)
    for label in ("across", "down"):
        shutil.rmtree(folder / label)
    shutil.copy(folder / "test/down/51.png", folder / "train/down/twin.png")
    run()
    (folder / "test/down/51.png").unlink()
    after = run()
    assert "train/down/twin.png" in set(pd.read_parquet(folder.parents[1] / "ingest/bars/manifest.parquet")["path"])
    assert after == run(fresh=True)


@pytest.mark.parametrize("other", [{"fit": "pad"}, {"size": (10, 9)}, {"mode": "colour"}])
def test_copies_of_the_same_pictures_stored_otherwise_are_made_again(workspace, other):
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = workspace / "data/raw/wide" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 14), np.uint8)).save(folder / f"{number}.png")
    options = {"kind": "images", "size": (12, 12), "mode": "grey"}

    def run(options):
        ingest("wide", Ingest(**options))
        augment("wide", Augment(copies=1, seed=1, shift=2))
        return (workspace / "data/augment/wide/train/index.json").read_bytes()

    run(options)
    after = run(options | other)
    shutil.rmtree(workspace / "data/augment")
    assert run(options | other) == after
