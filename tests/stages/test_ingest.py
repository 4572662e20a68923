import hashlib
import json
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from convoy.data.shards import Shards
from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError
from convoy.kinds import images
from stages.ingest import ingest as ingest_module
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.ingest.reading import Found
from stages.ingest.splits import choose_splits, split_of

OPTIONS = {"kind": "images", "size": (12, 12), "mode": "grey"}


def splits(dataset="bars"):
    table = pd.read_parquet(f"data/ingest/{dataset}/manifest.parquet")
    return dict(zip(table["path"], table["split"], strict=True))


def test_shards_hold_the_pixels_and_labels_of_the_files(pictures):
    ingest("bars", Ingest(**OPTIONS))
    table = pd.read_parquet("data/ingest/bars/manifest.parquet")
    about = json.loads((pictures.parents[1] / "ingest/bars/about.json").read_text())
    assert about["classes"] == ["across", "down"]
    assert len(table) == 60
    for split in ("train", "val", "test"):
        shards = Shards(pictures.parents[1] / "ingest/bars" / split)
        assert len(shards) == (table["split"] == split).sum() == sum(about["counts"][split].values())
        rows = table[table["split"] == split]
        for block, (_, row) in zip(shards.blocks(1), rows.iterrows(), strict=True):
            assert row["label"] == about["classes"][block["label"][0]]
            np.testing.assert_array_equal(block["image"][0, ..., 0], np.asarray(Image.open(pictures / row["path"])))


def test_equal_input_gives_equal_bytes(pictures):
    folder = pictures.parents[1] / "ingest/bars"
    ingest("bars", Ingest(**OPTIONS))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ingest("bars", Ingest(**OPTIONS))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_tables_are_written_however_late_the_shards_begin(pictures, monkeypatch):
    tables, write, written = ingest_module.write_tables, ingest_module.write_split, Event()

    def late(*arguments):
        assert written.wait(30)
        return write(*arguments)

    def first(*arguments):
        tables(*arguments)
        written.set()

    monkeypatch.setattr(ingest_module, "write_split", late)
    monkeypatch.setattr(ingest_module, "write_tables", first)
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    assert len(pd.read_parquet("data/ingest/bars/manifest.parquet")) == 60


def test_adding_removing_and_renaming_moves_no_example_to_another_split(pictures):
    ingest("bars", Ingest(**OPTIONS))
    before = splits()
    rng = np.random.default_rng(9)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(pictures / "down" / f"a{number}.png")
    for path in sorted((pictures / "across").iterdir())[:5]:
        path.unlink()
    after_paths = {}
    for path in sorted((pictures / "across").iterdir()):
        path.rename(path.with_name("moved-" + path.name))
        after_paths[f"across/{path.name}"] = f"across/moved-{path.name}"
    ingest("bars", Ingest(**OPTIONS))
    after = splits()
    kept = [path for path in before if after_paths.get(path, path) in after]
    assert len(kept) == 55
    assert all(before[path] == after[after_paths.get(path, path)] for path in kept)


def test_every_class_is_split_at_the_asked_shares():
    for label in "abcdefgh":
        contents = [hashlib.sha256(f"{label}{n}".encode()).digest() for n in range(2000)]
        found = pd.Series([split_of(content, val=0.15, test=0.2) for content in contents]).value_counts() / 2000
        for split, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
            assert abs(found[split] - share) < 4 * np.sqrt(share * (1 - share) / 2000)  # 4 standard deviations


def split_in_groups(size, count):
    """Returns content -> split of ``count`` groups of ``size`` near copies, in order, at the usual shares."""
    contents = [hashlib.sha256(f"{n}".encode()).digest() for n in range(size * count)]
    found = Found(paths=[""] * len(contents), given=[None] * len(contents), contents=contents)
    near = [(first, first + copy) for first in range(0, len(contents), size) for copy in range(1, size)]
    pairs = np.array(near, np.int64).reshape(-1, 2)
    found_splits, left_out = choose_splits(found, list(range(len(contents))), pairs, val=0.15, test=0.2)
    assert not left_out
    return dict(zip(contents, found_splits, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 50])
def test_groups_of_near_copies_of_every_size_are_split_at_the_asked_shares(size):
    count = 2000
    groups = np.array([*split_in_groups(size, count).values()]).reshape(count, size)
    assert (groups == groups[:, :1]).all()
    for split, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        deviation = np.sqrt(share * (1 - share) / count)
        assert abs((groups[:, 0] == split).mean() - share) < 4 * deviation, split


def test_a_first_near_copy_moves_an_example_no_more_often_than_it_must():
    """One of two decides for both, each as likely: half of 1 - (0.65^2 + 0.15^2 + 0.2^2) = 25.75 % move."""
    count = 4000
    before, after = split_in_groups(1, 2 * count), split_in_groups(2, count)
    moved = np.array([before[content] != after[content] for content in before])[::2].mean()
    assert abs(moved - 0.2575) < 4 * np.sqrt(0.2575 * 0.7425 / count)
    assert all(split_of(content, val=0.15, test=0.2) == split for content, split in before.items())


def test_fault_36_an_exact_duplicate_is_kept_once_and_listed(pictures):
    shutil.copy(pictures / "down/01.png", pictures / "down/99.png")
    Image.open(pictures / "down/03.png").save(pictures / "across/03.bmp")  # the same pixels, another file and label
    ingest("bars", Ingest(**OPTIONS))
    quarantine = pd.read_csv("data/ingest/bars/quarantine.csv").set_index("path")["reason"]
    assert quarantine["down/99.png"] == "same content as down/01.png"
    assert quarantine["down/03.png"] == "same content as across/03.bmp under the label 'across'"
    assert len(pd.read_parquet("data/ingest/bars/manifest.parquet")) == 60
    about = json.loads((pictures.parents[1] / "ingest/bars/about.json").read_text())
    assert (about["duplicates"], about["duplicates_under_another_label"]) == (2, 1)


def test_fault_31_unreadable_files_are_listed_with_the_reason_and_refused_above_max_bad(pictures):
    whole = (pictures / "down/01.png").read_bytes()
    (pictures / "down/cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "down/empty.png").write_bytes(b"")
    (pictures / "down/text.png").write_text("hello")
    with pytest.raises(InputRefusedError, match=r"3 of 63 files cannot be read, more than max_bad = 0.01\. .*down/cut"):
        ingest("bars", Ingest(**OPTIONS))
    ingest("bars", Ingest(**OPTIONS, max_bad=0.1))
    reasons = pd.read_csv("data/ingest/bars/quarantine.csv").set_index("path")["reason"]
    assert reasons["down/cut.png"].startswith("damaged")
    assert reasons["down/empty.png"].startswith("not a picture")
    assert reasons["down/text.png"].startswith("not a picture")


RAISED = [
    TypeError("Cannot handle this data type"),
    ValueError("height and width must be > 0"),
    OverflowError("Python integer 255 out of bounds for int8"),
    ZeroDivisionError("division by zero"),
    SystemError("tile cannot extend outside image"),
    KeyError("<u2"),
    RecursionError("maximum recursion depth exceeded"),
    struct.error("unpack requires a buffer of 4 bytes"),
    Image.DecompressionBombError("too many pixels"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RuntimeError("two\nlines, half a sign \ud800 and " + "much " * 200),
]


def raising(monkeypatch, files, error):
    """Has the reader of pictures raise ``error`` at the bytes of ``files``."""
    decode, contents = images.KIND.decode, {file.read_bytes() for file in files}

    def decode_or_raise(data, **options):
        if data[0] in contents:
            raise error
        return decode(data, **options)

    monkeypatch.setattr(images, "KIND", replace(images.KIND, decode=decode_or_raise))


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_fault_31_whatever_a_reader_raises_leaves_out_that_example_with_the_reason(
    pictures, monkeypatch, capsys, error
):
    raising(monkeypatch, [pictures / "down/07.png"], error)
    ingest("bars", Ingest(**OPTIONS, max_bad=0.02))
    [row] = pd.read_csv("data/ingest/bars/quarantine.csv").to_dict("records")
    assert row["path"] == "down/07.png"
    assert row["reason"].startswith(f"cannot be decoded ({type(error).__name__}): ")
    assert "\n" not in row["reason"]
    assert len(row["reason"]) < 300
    assert sum(len(Shards(f"data/ingest/bars/{split}")) for split in ("train", "val", "test")) == 59
    said = capsys.readouterr().out
    assert f"warning: 1 example raised what no reader expects, e.g. {row['path']}: {row['reason']}" in said


def test_a_defect_of_the_code_does_not_vanish_in_the_quarantine(pictures, monkeypatch):
    raising(monkeypatch, list(pictures.rglob("*.png")), TypeError("of our own"))
    with pytest.raises(InputRefusedError, match=r"60 of 60 files cannot be read.*\(TypeError\): of our own"):
        ingest("bars", Ingest(**OPTIONS))


def test_too_little_memory_is_no_property_of_an_example(pictures, monkeypatch):
    raising(monkeypatch, [pictures / "down/07.png"], MemoryError())
    with pytest.raises(MemoryError):
        ingest("bars", Ingest(**OPTIONS, max_bad=0.5))


def test_a_served_model_refuses_what_a_reader_raises_with_the_reason(pictures, monkeypatch):
    file = pictures / "down/07.png"
    raising(monkeypatch, [file], TypeError("Cannot handle this data type"))
    takes = {"kind": "images", "array": "image", "size": (12, 12), "mode": "grey", "fit": "stretch"}
    with pytest.raises(InputRefusedError, match=r"cannot be decoded \(TypeError\): Cannot handle this data type"):
        images.KIND.prepare(file.read_bytes(), takes)


def test_split_folders_of_the_raw_data_are_kept_and_val_comes_out_of_train(pictures):
    for split, files in (("train", slice(0, 25)), ("test", slice(25, 30))):
        for label in ("across", "down"):
            folder = pictures.parent / "given" / split / label
            folder.mkdir(parents=True)
            for path in sorted((pictures / label).iterdir())[files]:
                shutil.copy(path, folder)
    ingest("given", Ingest(**OPTIONS, val=0.3))
    found = splits("given")
    assert {split for path, split in found.items() if path.startswith("test/")} == {"test"}
    assert {split for path, split in found.items() if path.startswith("train/")} == {"train", "val"}


def test_removing_a_test_picture_leaves_the_training_shards_as_they_are(pictures):
    ingest("bars", Ingest(**OPTIONS))
    train = pictures.parents[1] / "ingest/bars/train"
    before = {path.name: path.read_bytes() for path in train.iterdir()}
    (pictures / next(path for path, split in splits().items() if split == "test")).unlink()
    ingest("bars", Ingest(**OPTIONS))
    assert {path.name: path.read_bytes() for path in train.iterdir()} == before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda raw: None, "is missing: fetch it"),
        (lambda raw: save(raw / "1.png", 0), "no picture in a class folder"),
        (lambda raw: (raw / "cat").mkdir(parents=True), "cat is an empty class folder"),
        (lambda raw: save(raw / "cat/1.png", 0), "found the classes \\['cat'\\]; at least two"),
        (
            lambda raw: [save(raw / f"{label}/1.png", n) for n, label in enumerate("ab")],
            "too few examples: .* none of a, b. .* Left out: 0",
        ),
    ],
)
def test_fault_37_too_little_data_is_refused_with_a_plain_message(workspace, prepare, message):
    prepare(workspace / "data/raw/pets")
    with pytest.raises(InputRefusedError, match=message):
        ingest("pets", Ingest(**OPTIONS))


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 12), value).save(path)


def test_shares_that_leave_nothing_to_train_on_are_refused(pictures):
    with pytest.raises(ConfigurationError, match=r"val 0.5 \+ test 0.5"):
        ingest("bars", Ingest(**OPTIONS, val=0.5, test=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "images", "size": None, "mode": "grey"}, r"kind images needs size: \[height, width\]"),
        ({"kind": "images", "size": (8, 8, 8), "mode": "grey"}, r"got size = \(8, 8, 8\)"),
        ({"kind": "volumes", "size": (8, 8), "mode": "grey"}, r"size: \[depth, height, width\]"),
        ({"kind": "volumes", "size": (8, 8, 8), "mode": None}, "mode: grey or colour"),
        ({"kind": "text", "size": (8, 8), "mode": None}, "kind text has no size"),
    ],
)
def test_options_that_do_not_fit_the_kind_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Ingest(**options, val=0.1, test=0.1).check("ingest.x", "x")


def scene(seed, size=64):
    """A picture with corners and texture, as photos have them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return Image.blend(coarse, Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)), 0.1)


@pytest.fixture
def scenes(workspace):
    """data/raw/scenes: 40 pictures in two classes; the files 0 and 1 have near copies of other quality."""
    raw = workspace / "data/raw/scenes"
    for number in range(40):
        folder = raw / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        scene(number).save(folder / f"{number:02d}.png")
    for number in (0, 1):
        for copy in range(6):
            scene(number).point(lambda value, copy=copy: value * (1 - 0.03 * copy)).save(
                raw / "ab"[number % 2] / f"copy-{number}-{copy}.jpg", quality=90 - 5 * copy
            )
    return raw


COLOUR = {"kind": "images", "size": (32, 32), "mode": "colour", "test": 0.4}


def test_fault_36_near_copies_share_one_split_and_are_listed(scenes):
    ingest("scenes", Ingest(**COLOUR))
    table = pd.read_parquet("data/ingest/scenes/manifest.parquet")
    assert len(table) == 52
    for number in (0, 1):
        group = table[table["path"].str.contains(rf"copy-{number}-|/{number:02d}.png")]
        assert len(group) == 7
        assert group["split"].nunique() == 1
        assert set(group["near"]) == {group["sha256"].iloc[0]}
    assert (table["near"] == "").sum() == 38
    pairs = pd.read_csv("data/ingest/scenes/duplicates.csv")
    assert set(pairs["how"]) == {"near"}
    assert json.loads((scenes.parents[1] / "ingest/scenes/about.json").read_text())["near_duplicates"] == len(pairs)


def test_near_copies_are_not_looked_for_where_that_is_switched_off(scenes):
    ingest("scenes", Ingest(**COLOUR, near_duplicates=False))
    assert (pd.read_parquet("data/ingest/scenes/manifest.parquet")["near"] == "").all()
    ingest("scenes", Ingest(**COLOUR))
    assert (pd.read_parquet("data/ingest/scenes/manifest.parquet")["near"] != "").sum() == 14


def told(dataset):
    about = json.loads(Path(f"data/ingest/{dataset}/about.json").read_text())
    return about["near_duplicates"], about["near_compared"]


def test_of_pictures_without_detail_it_is_told_that_they_were_not_compared(scenes, capsys):
    for number in range(5):
        save(scenes / "a" / f"flat{number}.png", 40 * number)
    ingest("scenes", Ingest(**COLOUR))
    pairs, compared = told("scenes")
    assert pairs > 0
    assert compared == 52  # of 57
    assert "not looked for" not in capsys.readouterr().out
    ingest("scenes", Ingest(**COLOUR))  # nothing is new
    assert told("scenes") == (pairs, 52)


def test_where_nobody_looks_for_near_copies_nothing_is_told_of_them(scenes, capsys):
    ingest("scenes", Ingest(**COLOUR, near_duplicates=False))
    assert told("scenes") == (None, 0)
    assert "near copies were not looked for" in capsys.readouterr().out
    for number in range(40):
        clip = scenes.parent / "clips" / "ab"[number % 2] / f"{number}.npy"
        clip.parent.mkdir(parents=True, exist_ok=True)
        np.save(clip, np.random.default_rng(number // 2).integers(0, 200, (4, 8, 8), np.uint8) + number % 2)
    ingest("clips", Ingest(kind="volumes", size=(4, 8, 8), mode="grey", val=0.3, test=0.3))
    assert told("clips") == (None, 0)
    assert "near copies were not looked for" in capsys.readouterr().out
    assert "Near copies were not looked for." in Path("data/ingest/clips/report.html").read_text()


def test_fault_36_copies_of_test_pictures_are_taken_out_of_train_and_listed(scenes):
    """As in CIFAR-10, of whose test pictures 3.3 % are in its training set (Barz and Denzler 2020)."""
    given = scenes.parent / "given"
    for split in ("train", "test"):
        for label in "ab":
            (given / split / label).mkdir(parents=True)
    for path in sorted(scenes.rglob("*.*")):
        test = path.suffix == ".png" and int(path.stem) < 12
        shutil.copy(path, given / ("test" if test else "train") / path.parent.name)
    shutil.copy(scenes / "a/02.png", given / "train/a/same.png")
    ingest("given", Ingest(**{key: value for key, value in COLOUR.items() if key != "test"}))
    table = pd.read_parquet("data/ingest/given/manifest.parquet")
    reasons = pd.read_csv("data/ingest/given/quarantine.csv").set_index("path")["reason"]
    assert (table["split"] == "test").sum() == 12
    assert not table["path"].str.contains("copy").any()
    assert reasons["train/a/same.png"] == "same content as test/a/02.png"
    for number in (0, 1):
        for copy in range(6):
            reason = reasons[f"train/{'ab'[number]}/copy-{number}-{copy}.jpg"]
            assert (
                reason == f"nearly the same as test/{'ab'[number]}/{number:02d}.png, which the data set gives for test"
            )


def test_a_near_copy_under_another_label_is_reported(scenes, capsys):
    (scenes / "a/copy-0-3.jpg").rename(scenes / "b/copy-0-3.jpg")
    ingest("scenes", Ingest(**COLOUR))
    pairs = pd.read_csv("data/ingest/scenes/duplicates.csv")
    conflicts = pairs[pairs["label"] != pairs["other_label"]]
    assert "b/copy-0-3.jpg" in {*conflicts["path"], *conflicts["same_as"]}
    assert "equal or nearly equal examples have two labels" in capsys.readouterr().out


def sums(folder):
    paths = sorted(path for path in folder.rglob("*.*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in paths]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def test_a_file_that_is_not_what_sha256sums_says_is_named_and_nothing_is_changed(pictures):
    sums(pictures)
    ingest("bars", Ingest(**OPTIONS))
    before = {path: path.read_bytes() for path in (pictures.parents[1] / "ingest/bars").rglob("*.*")}
    path = pictures / "down/07.png"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"down/07.png (was changed|is missing): it does not match SHA256SUMS"):
            ingest("bars", Ingest(**OPTIONS))
        path.write_bytes(whole)
    assert {path: path.read_bytes() for path in (pictures.parents[1] / "ingest/bars").rglob("*.*")} == before
    (pictures / "SHA256SUMS").write_text("what is this\n")
    with pytest.raises(IntegrityError, match="SHA256SUMS, line 1: .* is not"):
        ingest("bars", Ingest(**OPTIONS))


def test_all_refused_files_are_listed_when_they_are_too_many(pictures):
    for number in range(20):
        (pictures / f"down/bad{number:02d}.png").write_bytes(b"x")
    with pytest.raises(InputRefusedError, match="20 of 80 files cannot be read.*refused.csv"):
        ingest("bars", Ingest(**OPTIONS))
    assert len(pd.read_csv("data/ingest/.cache/bars/refused.csv")) == 20


def test_sentences_are_stored_and_read_back(workspace):
    raw = workspace / "data/raw/opinions"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["film", "plot", "actor", "scene", "music", "pace", "story", "camera", "light", "end", "joke", "role"]
    for label in ("good", "bad"):
        texts = [f"{label} " + " ".join(rng.permutation(words)[:6]) for _ in range(40)]
        (raw / f"{label}.txt").write_text("\n".join(texts) + "\n")
    ingest("opinions", Ingest(kind="text"))
    train = Shards("data/ingest/opinions/train")
    table = train.table()
    stored = (raw / "good.txt").read_text().split("\n") + (raw / "bad.txt").read_text().split("\n")
    assert set(train.column("text")) <= set(stored)
    for row in range(len(train)):
        assert train[row]["text"].split()[0] == table["label"][row]


def test_pairs_have_no_classes(workspace):
    raw = workspace / "data/raw/numbers"
    raw.mkdir(parents=True)
    (raw / "all.en").write_text("".join(f"number {n}\n" for n in range(60)))
    (raw / "all.fr").write_text("".join(f"nombre {n}\n" for n in range(60)))
    ingest("numbers", Ingest(kind="translation", columns={"source": "en", "target": "fr"}, near_duplicates=False))
    block = Shards("data/ingest/numbers/train")[:]
    assert sorted(block) == ["content", "source", "target"]
    for source, target in zip(block["source"], block["target"], strict=True):
        assert source.replace("number", "nombre") == target


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_share_of_nothing_is_refused_before_anything_is_decoded(pictures, monkeypatch, split):
    monkeypatch.setattr("stages.ingest.reading.decode_block", None)
    with pytest.raises(InputRefusedError, match=f"{split} = 0, and the data gives no {split} split"):
        ingest("bars", Ingest(**OPTIONS, **{split: 0}))


@pytest.mark.parametrize("pattern", ["./held/*/*", "held//*/*", "held/./*/*"])
def test_patterns_may_be_written_as_a_shell_takes_them(pictures, pattern):
    for label in ("across", "down"):
        (pictures / "held" / label).mkdir(parents=True)
        (pictures / "rest" / label).mkdir(parents=True)
        for number, path in enumerate(sorted((pictures / label).iterdir())):
            path.rename(pictures / ("held" if number < 6 else "rest") / label / path.name)
        (pictures / label).rmdir()
    ingest("bars", Ingest(**OPTIONS, files={"test": pattern, "train": "./rest/*/*"}))
    assert len(Shards("data/ingest/bars/test")) == 12
    assert set(Shards("data/ingest/bars/test").table()["label"]) == {"across", "down"}


def test_an_option_without_effect_is_named(pictures, capsys):
    ingest("bars", Ingest(**OPTIONS, encoding="latin-1", columns={"label": "kind"}))
    said = capsys.readouterr().out
    assert "warning: encoding = latin-1 says nothing about class folders" in said
    assert "warning: columns = {'label': 'kind'} says nothing about class folders" in said


def test_a_parquet_file_that_arrow_cannot_name_is_named(workspace):
    raw = workspace / "data/raw/odd"
    raw.mkdir(parents=True)
    pd.DataFrame({"image": [b"x"], "label": ["a"]}).to_parquet(raw / "plain.parquet")
    (raw / "plain.parquet").rename(raw / os.fsdecode(b"\xff.parquet"))
    with pytest.raises(InputRefusedError, match=r"odd/\\xff.parquet: its name is not valid UTF-8: rename it"):
        ingest("odd", Ingest(**OPTIONS))
