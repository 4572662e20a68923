import gzip
import hashlib
import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.errors import ConfigurationError, InputRefusedError
from stages.ingest import images
from stages.ingest.ingest import ingest, split_of
from stages.shards import Shards

OPTIONS = {"kind": "images", "size": (12, 12), "mode": "grey"}


def splits(dataset="bars"):
    table = pd.read_parquet(f"data/ingest/{dataset}/manifest.parquet")
    return dict(zip(table["path"], table["split"], strict=True))


def test_shards_hold_the_pixels_and_labels_of_the_files(pictures):
    ingest("bars", **OPTIONS)
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
    ingest("bars", **OPTIONS)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ingest("bars", **OPTIONS)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_adding_removing_and_renaming_moves_no_example_to_another_split(pictures):
    ingest("bars", **OPTIONS)
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
    ingest("bars", **OPTIONS)
    after = splits()
    kept = [path for path in before if after_paths.get(path, path) in after]
    assert len(kept) == 55
    assert all(before[path] == after[after_paths.get(path, path)] for path in kept)


def test_every_class_is_split_at_the_asked_shares():
    for label in "abcdefgh":
        contents = [hashlib.sha256(f"{label}{n}".encode()).hexdigest() for n in range(2000)]
        found = pd.Series([split_of(content, val=0.15, test=0.2) for content in contents]).value_counts() / 2000
        for split, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
            assert abs(found[split] - share) < 4 * np.sqrt(share * (1 - share) / 2000)  # 4 standard deviations


def test_an_exact_duplicate_is_kept_once_and_listed(pictures):
    shutil.copy(pictures / "down/01.png", pictures / "down/99.png")
    Image.open(pictures / "down/03.png").save(pictures / "across/03.bmp")  # the same pixels, another file and label
    ingest("bars", **OPTIONS)
    quarantine = pd.read_csv("data/ingest/bars/quarantine.csv").set_index("path")["reason"]
    assert quarantine["down/99.png"] == "same content as down/01.png"
    assert quarantine["down/03.png"] == "same content as across/03.bmp under the label 'across'"
    assert len(pd.read_parquet("data/ingest/bars/manifest.parquet")) == 60
    about = json.loads((pictures.parents[1] / "ingest/bars/about.json").read_text())
    assert (about["duplicates"], about["duplicates_under_another_label"]) == (2, 1)


def test_unreadable_files_are_listed_with_the_reason_and_refused_above_max_bad(pictures):
    whole = (pictures / "down/01.png").read_bytes()
    (pictures / "down/cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "down/empty.png").write_bytes(b"")
    (pictures / "down/text.png").write_text("hello")
    with pytest.raises(InputRefusedError, match=r"3 of 63 files cannot be read, more than max_bad = 0.01\. .*down/cut"):
        ingest("bars", **OPTIONS)
    ingest("bars", **OPTIONS, max_bad=0.1)
    reasons = pd.read_csv("data/ingest/bars/quarantine.csv").set_index("path")["reason"]
    assert reasons["down/cut.png"].startswith("damaged")
    assert reasons["down/empty.png"].startswith("not a picture")
    assert reasons["down/text.png"].startswith("not a picture")


def test_split_folders_of_the_raw_data_are_kept_and_val_comes_out_of_train(pictures):
    for split, files in (("train", slice(0, 25)), ("test", slice(25, 30))):
        for label in ("across", "down"):
            folder = pictures.parent / "given" / split / label
            folder.mkdir(parents=True)
            for path in sorted((pictures / label).iterdir())[files]:
                shutil.copy(path, folder)
    ingest("given", **OPTIONS, val=0.3)
    found = splits("given")
    assert {split for path, split in found.items() if path.startswith("test/")} == {"test"}
    assert {split for path, split in found.items() if path.startswith("train/")} == {"train", "val"}


def test_removing_a_test_picture_leaves_the_training_shards_as_they_are(pictures):
    ingest("bars", **OPTIONS)
    train = pictures.parents[1] / "ingest/bars/train"
    before = {path.name: path.read_bytes() for path in train.iterdir()}
    (pictures / next(path for path, split in splits().items() if split == "test")).unlink()
    ingest("bars", **OPTIONS)
    assert {path.name: path.read_bytes() for path in train.iterdir()} == before


def test_split_folders_are_known_in_other_spellings_too(pictures):
    raw = pictures.parent / "given"
    for split in ("Training", "TEST"):
        shutil.copytree(pictures, raw / split)
    assert {item.split for item in images.find(raw)} == {"train", "test"}
    (raw / "predict").mkdir()
    with pytest.raises(InputRefusedError, match=r"split folders .* and beside them \['predict'\]"):
        images.find(raw)


def test_a_class_may_be_called_train(pictures):
    (pictures / "down").rename(pictures / "train")
    assert {(item.label, item.split) for item in images.find(pictures)} == {("across", None), ("train", None)}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def test_idx_files_are_read_with_their_own_test_split(workspace):
    raw = workspace / "data/raw/mnist"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (70, 8, 8), np.uint8), np.arange(70).astype(np.uint8) % 10
    for prefix, rows in (("train", slice(0, 50)), ("t10k", slice(50, 70))):
        (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[rows])))
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[rows])))
    ingest("mnist", kind="images", size=(8, 8), mode="grey", val=0.2)
    test = Shards(workspace / "data/ingest/mnist/test")
    np.testing.assert_array_equal(test[:]["image"][..., 0], pixels[50:])
    np.testing.assert_array_equal(test[:]["label"], labels[50:])


@pytest.mark.parametrize("damage", ["short", "counts", "type", "gzip"])
def test_a_damaged_idx_file_is_named(workspace, damage):
    raw = workspace / "data/raw/mnist"
    raw.mkdir(parents=True)
    pixels, labels = np.zeros((9, 8, 8), np.uint8), np.zeros(9 if damage != "counts" else 8, np.uint8)
    content = gzip.compress(idx(pixels)[:-1] if damage == "short" else idx(pixels))
    if damage == "type":
        content = gzip.compress(b"\x00\x00\x0d\x03" + idx(pixels)[4:])
    (raw / "train-images-idx3-ubyte.gz").write_bytes(content[:-5] if damage == "gzip" else content)
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(InputRefusedError, match="train-images-idx3-ubyte.gz"):
        ingest("mnist", **OPTIONS)


def test_mnist_itself_is_read(datasets):
    items = images.find(datasets / "mnist")
    assert len(items) == 70_000
    assert pd.Series([item.label for item in items if item.split == "train"]).value_counts()["1"] == 6742  # LeCun


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
def test_too_little_data_is_refused_with_a_plain_message(workspace, prepare, message):
    prepare(workspace / "data/raw/pets")
    with pytest.raises(InputRefusedError, match=message):
        ingest("pets", **OPTIONS)


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 12), value).save(path)


def test_shares_that_leave_nothing_to_train_on_are_refused(pictures):
    with pytest.raises(ConfigurationError, match=r"val 0.5 \+ test 0.5"):
        ingest("bars", **OPTIONS, val=0.5, test=0.5)


MODES = [  # a picture, the mode asked for, the one value that all its pixels have
    (lambda: Image.new("L", (9, 7), 200), "grey", [200]),
    (lambda: Image.fromarray(np.full((7, 9), 257 * 200, np.uint16)), "grey", [200]),
    (lambda: Image.new("1", (9, 7), 1), "grey", [255]),
    (lambda: Image.new("RGB", (9, 7), (10, 20, 30)), "colour", [10, 20, 30]),
    (lambda: Image.new("RGBA", (9, 7), (10, 20, 30, 0)), "colour", [255, 255, 255]),  # transparent: a white page
    (lambda: Image.new("RGBA", (9, 7), (10, 20, 30, 255)), "colour", [10, 20, 30]),
    (lambda: Image.new("LA", (9, 7), (10, 0)), "grey", [255]),
    (
        lambda: Image.new("RGB", (9, 7), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE),
        "colour",
        [10, 20, 30],
    ),
    (lambda: Image.new("L", (9, 7), 200), "colour", [200, 200, 200]),
]


@pytest.mark.parametrize(("make", "mode", "value"), MODES)
def test_every_mode_becomes_what_a_viewer_shows(make, mode, value, tmp_path):
    make().save(tmp_path / "p.png")
    pixels = images.to_array(images._open(tmp_path / "p.png"), size=(4, 5), mode=mode, fit="stretch")
    assert pixels.shape == (4, 5, len(value))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(value, pixels.shape))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_keep_their_shades_in_either_byte_order(tmp_path, order):
    values = np.array([[0, 10_000, 20_000, 39_900, 65_535]], order)
    mode = {"<u2": "I;16", ">u2": "I;16B"}[order]
    Image.frombytes(mode, (5, 1), values.tobytes()).save(tmp_path / "p.tif")
    pixels = images.to_array(images._open(tmp_path / "p.tif"), size=(1, 5), mode="grey", fit="stretch")
    assert pixels.ravel().tolist() == [0, 39, 78, 155, 255]  # by hand: value / 257


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("F", (4, 4), 0.5), "no known range"),
        (Image.new("I", (4, 4), 70_000), "70000 to 70000, are no 16-bit values"),
    ],
)
def test_pixels_of_no_known_range_are_refused(tmp_path, picture, message):
    picture.save(tmp_path / "p.tif")
    with pytest.raises(InputRefusedError, match=message):
        images._open(tmp_path / "p.tif")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_every_time(tmp_path, monkeypatch):
    save(tmp_path / "p.png", 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 144: above the limit, below twice the limit

    def refused(_):
        with pytest.raises(InputRefusedError, match="too many pixels: 12 x 12"):
            images._open(tmp_path / "p.png")
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(refused, range(400)))


def test_a_turned_photo_is_put_upright(tmp_path):
    picture = Image.fromarray(np.repeat([[0], [255]], 6, axis=1).astype(np.uint8).repeat(3, axis=0))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    picture.save(tmp_path / "p.jpg", exif=exif, quality=100)
    pixels = np.asarray(images._open(tmp_path / "p.jpg"))
    assert pixels[0].mean() > 200 > 50 > pixels[-1].mean()


@pytest.mark.parametrize(("fit", "bright"), [("stretch", 81), ("pad", 9 * 4), ("crop", 81)])
def test_fit_stretches_pads_or_crops(fit, bright):
    wide = Image.new("L", (18, 8), 255)  # to 9x9: stretched, or 9x4 between black margins, or its middle 8x8
    pixels = images.to_array(wide, size=(9, 9), mode="grey", fit=fit)
    assert (pixels == 255).sum() == bright
    assert (pixels == 0).sum() == 81 - bright
