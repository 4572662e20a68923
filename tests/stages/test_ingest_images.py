import hashlib
import io
import os
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import images, pictures
from stages.ingest.finders import images as finder
from stages.ingest.records import Source

RNG = np.random.default_rng(0)


def source(folder, **options):
    return Source(Path(folder), **options)


def found(folder, **options):
    return list(finder.find(source(folder, **options)))


def save(path, value=0, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(mode="RGB", size=(29, 33)):
    """Colours that change smoothly, with some noise; nothing in it is symmetric."""
    x, y = np.arange(size[0])[None, :, None], np.arange(size[1])[:, None, None]
    pixels = x * 3 + y * 5 + np.array([0, 40, 90, 30]) + RNG.integers(0, 20, (*size[::-1], 4))
    return Image.fromarray(pixels.astype(np.uint8), "RGBA").convert(mode)


def decode(data, size=(8, 8), mode="colour", fit="stretch", **options):
    return images.decode(data, size=size, mode=mode, fit=fit, **options)


# Folders ---------------------------------------------------------------------------------------------------------


def test_the_folder_is_the_class_and_whole_numbers_come_in_their_order(tmp_path):
    for label in ("10", "2", "cat"):
        save(tmp_path / label / "b.png")
        save(tmp_path / label / "deeper/a.png")
    for other in (
        "cat/.hidden.png",
        ".git/x.png",
        "README.md",
        "LICENSE",
        "SHA256SUMS",
        "cat/Thumbs.db",
        "__MACOSX/x/y",
    ):
        (tmp_path / other).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / other).write_text("no example")
    items = found(tmp_path)
    assert [item.path for item in items] == [f"{c}/{n}" for c in ("2", "10", "cat") for n in ("b.png", "deeper/a.png")]
    assert all(item.files == (item.path,) and item.label == item.path.split("/")[0] for item in items)
    assert {item.split for item in items} == {None}


def test_split_folders_are_known_in_other_spellings_too(tmp_path):
    for split in ("Training", "TEST", "valid"):
        save(tmp_path / split / "cat/1.png")
    raw = source(tmp_path)
    assert {(item.split, item.label) for item in finder.find(raw)} == {(s, "cat") for s in ("train", "val", "test")}
    assert raw.notes["layout"] == "class folders in TEST, Training, valid"
    (tmp_path / "predict").mkdir()
    with pytest.raises(InputRefusedError, match=r"split folders .* and beside them \['predict'\]"):
        found(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    save(tmp_path / "across/1.png")
    save(tmp_path / "train/1.png")
    assert {(item.label, item.split) for item in found(tmp_path)} == {("across", None), ("train", None)}


def test_a_folder_that_only_holds_folders_is_passed_through(tmp_path):
    for label in ("daisy", "rose"):
        save(tmp_path / "flower_photos" / label / "1.png")
    (tmp_path / "LICENSE.txt").write_text("free")
    assert [(item.path, item.label) for item in found(tmp_path)] == [
        ("flower_photos/daisy/1.png", "daisy"),
        ("flower_photos/rose/1.png", "rose"),
    ]


def test_patterns_of_params_yaml_choose_the_split(tmp_path):
    for path in ("seg_train/sea/1.png", "seg_train/ice/2.png", "seg_test/sea/3.png", "seg_pred/4.png"):
        save(tmp_path / path)
    items = found(tmp_path, files={"train": "seg_train/*/*.png", "test": "seg_test/**"})
    assert [(item.path, item.label, item.split) for item in items] == [
        ("seg_test/sea/3.png", "sea", "test"),
        ("seg_train/ice/2.png", "ice", "train"),
        ("seg_train/sea/1.png", "sea", "train"),
    ]
    for files, message in (
        ({"test": "none/*"}, "'none/\\*' matches no file .* It has: seg_pred/, seg_test/, seg_train/"),
        ({"test": "../*"}, "leads out"),
        ({"test": ""}, "is no pattern"),
        ({"train": "seg_train/*/*", "test": "*/sea/*"}, "both match seg_train/sea/1.png"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            found(tmp_path, files=files)
    with pytest.raises(InputRefusedError, match=r"seg_pred/4.png .* does not lie in a class folder"):
        found(tmp_path, files={"train": "seg_pred/*.png"})


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda raw: None, "is missing: fetch it"),
        (lambda raw: save(raw / "1.png"), r"no picture in a class folder. Allowed: .* It has: 1.png"),
        (lambda raw: (raw / "cat").mkdir(parents=True), "cat is an empty class folder"),
        (lambda raw: (save(raw / "cat/1.png"), (raw / "dog").mkdir()), "dog is an empty class folder"),
        (lambda raw: raw.mkdir(), "It has: nothing"),
    ],
)
def test_what_is_no_layout_is_refused_with_a_plain_message(tmp_path, prepare, message):
    prepare(tmp_path / "pets")
    with pytest.raises(InputRefusedError, match=message):
        found(tmp_path / "pets")


def test_links_out_of_the_folder_and_special_files_are_refused(tmp_path):
    raw = tmp_path / "raw"
    save(raw / "cat/1.png")
    save(tmp_path / "secret.png")
    link = raw / "cat/2.png"
    for target, message in ((tmp_path / "secret.png", "link that leads out"), (raw / "cat", "which is no file")):
        link.symlink_to(target)
        with pytest.raises(InputRefusedError, match=f"cat/2.png is a .*{message}"):
            found(raw)
        link.unlink()
    os.mkfifo(link)
    with pytest.raises(InputRefusedError, match="cat/2.png is no regular file \\(p"):
        found(raw)
    link.unlink()
    link.symlink_to("1.png")
    assert len(found(raw)) == 2


def test_a_name_that_is_not_utf_8_is_a_problem_of_that_file(tmp_path):
    save(tmp_path / "cat/1.png")
    (tmp_path / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    save(tmp_path / "dög/1.png")
    problems = {item.path: item.problem for item in found(tmp_path)}
    assert problems == {"cat/1.png": None, "cat/\\xff.png": "its name is not valid UTF-8: rename it", "dög/1.png": None}


# Tables ----------------------------------------------------------------------------------------------------------


def test_a_table_gives_classes_and_splits_to_the_pictures_that_it_names(tmp_path):
    for name in ("1.png", "2.png", "3.png", "4.png"):
        save(tmp_path / "images" / name)
    save(tmp_path / "out.png")
    (tmp_path / "labels.csv").write_text(
        "file_name,label,split\n"
        "1.png,cat,train\n"  # the only picture of that name
        "images/2.png,dog,test\n"
        "3,cat,\n"  # an empty split is none of train, val, test
        "9.png,cat,train\n"
        "../secret.png,cat,train\n"
        "/etc/passwd,cat,train\n"
        "images/2.png,cat,test\n"
        "3,cat,train\n"
        "4.png,,train\n"
    )
    raw = source(tmp_path)
    items = list(finder.find(raw))
    good = [(item.path, item.label, item.split, item.files) for item in items if not item.problem]
    assert good == [
        ("images/1.png", "cat", "train", ("images/1.png",)),
        ("images/2.png", "dog", "test", ("images/2.png",)),
        ("labels.csv#8", "cat", "test", ("images/2.png",)),  # twice, with two labels: ingest will report it
        ("images/3.png", "cat", "train", ("images/3.png",)),
    ]
    problems = {item.path: item.problem for item in items if item.problem}
    assert problems["labels.csv#5"] == "9.png does not exist"
    assert problems["labels.csv#6"] == "../secret.png leads out of the raw folder"
    assert problems["labels.csv#7"] == "/etc/passwd leads out of the raw folder"
    assert problems["images/4.png"] == "line 10: the label is empty"
    assert len(problems) == 5
    assert raw.notes["layout"] == "pictures with a table"
    assert raw.notes["pictures that no row names"] == {"number": 1, "examples": ["out.png"]}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_lie_in_split_folders_too(tmp_path, kind):
    for split in ("train", "test"):
        save(tmp_path / split / "a.png")
        save(tmp_path / split / "b.png")
        table = pa.table({"file_name": ["a.png", "b.png"], "label": [0, 1]})
        path = tmp_path / split / f"metadata.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "jsonl":
            path.write_text('{"file_name": "a.png", "label": 0}\n{"file_name": "b.png", "label": 1}\n')
        else:
            path.write_text("file_name,label\na.png,0\nb.png,1\n".replace(",", "\t" if kind == "tsv" else ","))
    assert [(item.path, item.label, item.split) for item in found(tmp_path)] == [
        ("test/a.png", "0", "test"),
        ("test/b.png", "1", "test"),
        ("train/a.png", "0", "train"),
        ("train/b.png", "1", "train"),
    ]


def test_a_table_without_paths_does_not_hide_class_folders_and_columns_name_others(tmp_path):
    save(tmp_path / "cat/1.png")
    save(tmp_path / "dog/2.png")
    (tmp_path / "notes.csv").write_text("id,breed\n1,tabby\n2,pug\n")
    raw = source(tmp_path)
    assert [item.label for item in finder.find(raw)] == ["cat", "dog"]
    assert raw.notes["tables left out"] == ["notes.csv"]
    items = found(tmp_path, columns={"path": "id", "label": "breed"})
    assert [(item.path, item.label) for item in items] == [("cat/1.png", "tabby"), ("dog/2.png", "pug")]


def test_a_name_that_fits_two_pictures_is_a_problem(tmp_path):
    save(tmp_path / "a/1.png")
    save(tmp_path / "b/1.png")
    (tmp_path / "labels.csv").write_text("path,label\n1.png,cat\nb\\1.png,dog\n")
    first, second = found(tmp_path)
    assert first.problem == "1.png may be a/1.png or b/1.png: say which"
    assert (second.path, second.label) == ("b/1.png", "dog")


@pytest.mark.parametrize("struct_column", [True, False])
def test_pictures_in_parquet_are_read_with_the_class_names_of_hugging_face(tmp_path, struct_column):
    files = [encoded(photo()) for _ in range(5)]
    column = [{"bytes": file, "path": None} for file in files] if struct_column else files
    table = pa.table({"image": column, "label": [0, 1, 1, -1, 0]})
    info = b'{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        path = tmp_path / "data" / f"{name}.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), path, row_group_size=2)
    items = found(tmp_path)
    assert [(item.label, item.split) for item in items[:3]] == [("cat", "test"), ("dog", "test"), ("dog", "test")]
    assert items[3].problem == "row 4: -1 in the column label is none of its 2 classes"
    assert Counter(item.split for item in items if not item.problem) == {"train": 8, "test": 4}
    assert [item.payload for item in items[5:8]] == files[:3]
    assert items[5].path == "data/train-00000-of-00002.parquet#1"
    assert decode(items[0].payload).content == decode([files[0]]).content


def test_parquet_with_links_instead_of_pictures_is_a_problem_per_row(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": None, "path": "1.png"}], kind), "label": ["cat"]})
    pq.write_table(table, tmp_path / "train.parquet")
    [item] = found(tmp_path)
    assert item.problem == "row 1: no bytes of a picture"
    pq.write_table(pa.table({"image": [b"1"], "label": [" "]}), tmp_path / "train.parquet")
    assert [item.problem for item in found(tmp_path)] == ["row 1: the label is empty"]
    pq.write_table(pa.table({"path": [b"1.png"], "label": ["cat"]}), tmp_path / "train.parquet")
    [item] = found(tmp_path, columns={"image": "path"})
    assert (item.payload, item.label) == (b"1.png", "cat")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputRefusedError, match="train.parquet is no Parquet file, or damaged"):
        found(tmp_path)


# What a picture shows --------------------------------------------------------------------------------------------

MODES = [  # a picture, the mode asked for, the one value that all its pixels have
    (lambda: Image.new("L", (9, 7), 200), "grey", [200]),
    (lambda: Image.fromarray(np.full((7, 9), 257 * 200, np.uint16)), "grey", [200]),
    (lambda: Image.new("1", (9, 7), 1), "grey", [255]),
    (lambda: Image.new("RGB", (9, 7), (10, 20, 30)), "colour", [10, 20, 30]),
    (lambda: Image.new("RGBA", (9, 7), (10, 20, 30, 0)), "colour", [255, 255, 255]),  # transparent: a white page
    (lambda: Image.new("RGBA", (9, 7), (10, 20, 30, 255)), "colour", [10, 20, 30]),
    (lambda: Image.new("LA", (9, 7), (10, 0)), "grey", [255]),
    (lambda: Image.new("LA", (9, 7), (10, 255)), "grey", [10]),
    (lambda: Image.new("RGB", (9, 7), (10, 20, 30)).quantize(4), "colour", [10, 20, 30]),
    (lambda: Image.new("L", (9, 7), 200), "colour", [200, 200, 200]),
]


@pytest.mark.parametrize(("make", "mode", "value"), MODES)
def test_every_mode_becomes_what_a_viewer_shows(make, mode, value):
    pixels = decode([encoded(make())], size=(4, 5), mode=mode).arrays["image"]
    assert pixels.shape == (4, 5, len(value))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(value, pixels.shape))


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_becomes_white(kind, transparency):
    if kind == "GIF" and isinstance(transparency, bytes):
        return  # GIF has one transparent colour
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = encoded(picture, kind, transparency=transparency)
    assert decode([data], size=(1, 3)).arrays["image"].tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_a_transparent_grey_level_becomes_white():
    data = encoded(Image.fromarray(np.array([[0, 7, 9]], np.uint8)), transparency=7)
    assert decode([data], size=(1, 3), mode="grey").arrays["image"].ravel().tolist() == [0, 255, 9]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_fault_31_16_bits_keep_their_shades_in_either_byte_order(order):
    values = np.array([[0, 10_000, 20_000, 39_900, 65_535]], order)
    mode = {"<u2": "I;16", ">u2": "I;16B"}[order]
    data = encoded(Image.frombytes(mode, (5, 1), values.tobytes()), "TIFF")
    example = decode([data], size=(1, 5), mode="grey")
    assert example.arrays["image"].ravel().tolist() == [0, 39, 78, 155, 255]  # by hand: value / 257
    assert example.facts["mode"] == mode
    assert example.content == decode(values, size=(1, 5), mode="grey").content


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("F", (4, 4), 0.5), "no known range"),
        (Image.new("I", (4, 4), 70_000), "70000 to 70000, are no 16-bit values"),
    ],
)
def test_pixels_of_no_known_range_are_refused(picture, message):
    with pytest.raises(InputRefusedError, match=message):
        decode([encoded(picture, "TIFF")])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_fault_31_cmyk_keeps_its_colours(kind):  # Adobe writes the numbers of a JPEG inverted, and Pillow does so, too
    colours = Image.fromarray(np.repeat(np.array([[[200, 30, 30], [30, 200, 30], [30, 30, 200]]], np.uint8), 16, 0))
    colours = colours.resize((48, 16), Image.Resampling.NEAREST)
    data = encoded(colours.convert("CMYK"), kind, **({"quality": 95} if kind == "JPEG" else {}))
    example = decode([data], size=(16, 48))
    assert example.facts["mode"] == "CMYK"
    difference = example.arrays["image"][:, 8::16].astype(int) - np.asarray(colours)[:, 8::16]
    assert np.abs(difference).max() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_fault_31_a_photo_is_put_upright(kind, orientation):
    upright = np.array([[0, 0, 60, 60], [0, 0, 60, 60], [120, 120, 255, 255], [120, 120, 255, 255]], np.uint8)
    upright = upright[:, [0, 1, 2, 2, 3, 3]].repeat(8, 0).repeat(8, 1)  # (32, 48), its four corners differ
    stored = {  # what the camera stores, by the definition of EXIF: where the 0th row and column of the file are
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],  # the 0th row is the right side: turn by 90 degrees clockwise to view
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **lossless)
    example = decode([data], size=(32, 48), mode="grey")
    assert (example.facts["height"], example.facts["width"], example.facts["orientation"]) == (32, 48, orientation)
    assert np.abs(example.arrays["image"][..., 0].astype(int) - upright).max() < 6


def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 30)
    assert decode([data]).facts["orientation"] == 1


@pytest.mark.parametrize(("fit", "bright"), [("stretch", 81), ("pad", 9 * 4), ("crop", 81)])
def test_fit_stretches_pads_or_crops(fit, bright):
    wide = encoded(Image.new("L", (18, 8), 255))  # to 9x9: stretched, 9x4 between black margins, or its middle 8x8
    pixels = decode([wide], size=(9, 9), mode="grey", fit=fit).arrays["image"]
    assert (pixels == 255).sum() == bright
    assert (pixels == 0).sum() == 81 - bright


@pytest.mark.parametrize("mode", ["grey", "colour"])
@pytest.mark.parametrize("size", [(1, 10_000), (3, 400), (400, 3), (10_000, 1)])
def test_a_strip_keeps_at_least_one_row_or_column_of_pixels_whatever_the_fit(size, mode):
    """At 32 pixels of height a strip of 3 x 400 is 0.24 pixels wide, which Pillow rounds to none."""
    strip = encoded(Image.new("L", size, 255))
    seen = {}
    for fit in ("stretch", "pad", "crop"):
        seen[fit] = (decode([strip], size=(32, 32), mode=mode, fit=fit).arrays["image"] == 255).all(-1)
    assert seen["stretch"].all()
    assert seen["crop"].all()
    padded = seen["pad"] if size[0] < size[1] else seen["pad"].T
    assert padded[:, 16].all()
    assert padded.sum() == 32


def test_equal_pixels_are_equal_content_in_every_lossless_file():
    picture = photo()
    files = [encoded(picture, kind) for kind in ("PNG", "BMP", "TIFF", "PPM")] + [
        encoded(picture, "WEBP", lossless=True)
    ]
    files += [encoded(picture, "PNG", icc_profile=b"a profile", compress_level=0)]
    contents = {decode([file]).content for file in files} | {
        decode(files[0]).content,
        decode(np.asarray(picture)).content,
    }
    expected = hashlib.sha256(b"RGB (29, 33) " + np.asarray(picture).tobytes()).digest()
    assert contents == {expected}
    turned = picture.transpose(Image.Transpose.ROTATE_180)
    assert decode([encoded(turned)]).content != expected


def test_facts_have_the_same_keys_for_every_example_and_the_first_frame_counts():
    first, second = photo(), photo()
    plain = decode([encoded(first)])
    assert plain.facts == {
        "height": 33, "width": 29, "mode": "RGB", "format": "PNG", "frames": 1, "orientation": 1,
    }  # fmt: skip
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("GIF", {})):
        example = decode([encoded(first, kind, save_all=True, append_images=[second], **options)])
        assert example.facts.keys() == plain.facts.keys()
        assert (example.facts["format"], example.facts["frames"]) == (kind, 2)
        assert kind == "GIF" or example.content == plain.content  # 256 colours


def test_fault_31_the_format_is_what_the_content_says_not_the_name(tmp_path):
    save(tmp_path / "cat/1.png")
    photo().save(tmp_path / "cat/wrong.png", "JPEG")
    item = found(tmp_path)[1]
    assert decode([(tmp_path / item.path).read_bytes()]).facts["format"] == "JPEG"


def test_near_copies_have_near_fingerprints_and_none_is_made_unasked():
    picture = photo(size=(150, 170))
    assert decode([encoded(picture)]).fingerprint is None
    # Of the whole picture, and of the one that is stored where that is large enough.
    prints = [
        decode([encoded(picture, kind)], size=size, mode=mode, fingerprints=True).fingerprint.astype(int)
        for kind, size, mode in (("PNG", (8, 8), "grey"), ("JPEG", (64, 64), "colour"), ("PNG", (96, 64), "grey"))
    ]
    assert max(np.abs(prints[0] - other).mean() for other in prints[1:]) < 2


# Damage ----------------------------------------------------------------------------------------------------------


def samples():
    """Small files of every format and of the kinds that take other ways through Pillow."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "b" * 500, zip=True)
    frames = {"save_all": True, "append_images": [photo(), photo()]}
    files = {f"PNG {mode}": encoded(photo(mode)) for mode in ("1", "L", "P", "RGB", "RGBA", "LA")}
    files |= {f"BMP {mode}": encoded(photo(mode), "BMP") for mode in ("1", "P", "RGB")}
    files |= {f"PPM {mode}": encoded(photo(mode), "PPM") for mode in ("1", "L", "RGB")}
    files |= {f"JPEG {mode}": encoded(photo(mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    files |= {
        f"TIFF {packed}": encoded(photo("1" if packed == "group4" else "RGB"), "TIFF", compression=packed)
        for packed in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits", "group4")
    }
    files |= {f"{kind} frames": encoded(photo(), kind, **frames) for kind in ("PNG", "GIF", "WEBP", "TIFF")}
    files["PNG extras"] = encoded(photo(), exif=exif, pnginfo=text, icc_profile=b"x" * 300)
    files["JPEG progressive"] = encoded(photo(), "JPEG", progressive=True, exif=exif)
    files["WEBP lossless"] = encoded(photo("RGBA"), "WEBP", lossless=True)
    files["PNG 16"] = encoded(Image.fromarray(RNG.integers(0, 65536, (20, 20)).astype(np.uint16)))
    files["GIF"] = encoded(photo("P"), "GIF")
    return files


SAMPLES = samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_cut_anywhere_is_refused_or_lost_nothing_of_its_first_picture(name, capfd):
    whole = SAMPLES[name]
    content = decode([whole]).content
    for length in {len(whole) - 1, len(whole) - 2, len(whole) - 3, *np.linspace(0, len(whole) - 4, 20).astype(int)}:
        try:
            assert decode([whole[:length]]).content == content
        except InputRefusedError:
            continue
        assert name.split()[0] not in ("PNG", "JPEG", "WEBP", "PPM")  # these have an end that can be missed
    assert decode([whole + b"garbage behind the end"]).content == content or name == "PPM"
    assert capfd.readouterr().err == ""  # libtiff would write there


@pytest.mark.parametrize("name", SAMPLES)
def test_hostile_bytes_are_refused_without_a_traceback(name, capfd):
    rng = np.random.default_rng(len(name))
    for number in range(12):
        data = bytearray(SAMPLES[name])
        places = rng.integers(0, min(len(data), 120) if number % 3 else len(data), rng.integers(1, 9))
        for place in places:
            data[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        data = repaired(bytes(data)) if number % 2 else bytes(data)
        try:
            assert decode([data]).arrays["image"].shape == (8, 8, 3)
        except InputRefusedError as refusal:
            assert len(str(refusal)) > 9
    assert capfd.readouterr().err == ""


def repaired(data):
    """Returns a PNG with right checksums, so that what is behind them is reached."""
    data, place = bytearray(data), 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4)
        place = end + 4
    return bytes(data)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_a_flipped_bit_of_a_png_is_seen():
    whole = SAMPLES["PNG RGB"]
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        with pytest.raises(InputRefusedError):
            decode([bytes(flipped)])


def test_fault_31_a_jpeg_cut_by_two_bytes_is_refused_even_with_a_thumbnail_inside():
    exif = Image.Exif()
    exif[0x927C] = encoded(photo(), "JPEG")  # a thumbnail has an end of its own
    whole = encoded(photo(size=(32, 32)), "JPEG", exif=exif)
    assert whole.count(b"\xff\xd9") == 2
    with pytest.raises(InputRefusedError, match="no end-of-image mark"):
        decode([whole[:-2]])
    assert decode([whole + bytes(100)]).content == decode([whole]).content


BOMBS = {
    "pixels": chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b""),
    "text": chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    + chunk(b"IDAT", zlib.compress(bytes(20))),
    "profile": chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))
    + chunk(b"IDAT", zlib.compress(bytes(20))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_a_png_stop_at_the_budget(name):
    data = b"\x89PNG\r\n\x1a\n" + BOMBS[name] + chunk(b"IEND", b"")
    start = time.perf_counter()
    with pytest.raises(InputRefusedError, match=r"too many pixels|too large"):
        decode([data])
    assert time.perf_counter() - start < 5


def test_too_many_scans_of_a_jpeg_are_refused():
    data = SAMPLES["JPEG progressive"]
    scan = data[data.index(b"\xff\xda") : data.rindex(b"\xff\xda")]
    end = data.rindex(b"\xff\xd9")
    with pytest.raises(InputRefusedError, match="more than 100 scans"):
        decode([data[:end] + scan * 40 + data[end:]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a picture in one of the formats PNG"),
        (b"hello", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),  # would start Ghostscript
        (b"8BPS\0\1" + bytes(30), "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
)
def test_other_formats_are_refused(data, message):
    with pytest.raises(InputRefusedError, match=message):
        decode([data])


def test_a_file_above_the_budget_is_refused(monkeypatch):
    monkeypatch.setattr(pictures, "FILE_BYTES", 100)
    with pytest.raises(InputRefusedError, match="too large: .* bytes; up to 100 are read"):
        decode([SAMPLES["PNG RGB"]])


def test_too_many_pixels_are_refused_every_time_in_threads_too(monkeypatch):
    data = encoded(Image.new("L", (12, 12)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 144: above the limit, below twice the limit

    def refused(_):
        with pytest.raises(InputRefusedError, match="too many pixels: 12 x 12"):
            decode([data])
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(refused, range(400)))
    with pytest.raises(InputRefusedError, match="too many pixels: 12 x 12"):
        decode(np.zeros((12, 12), np.uint8))


def test_decode_runs_in_other_processes():
    files = [[SAMPLES[name]] for name in SAMPLES]
    with ProcessPoolExecutor(1) as executor:
        there = list(executor.map(partial(images.decode, size=(8, 8), mode="grey", fit="pad"), files))
    here = [decode(file, mode="grey", fit="pad") for file in files]
    assert [example.content for example in there] == [example.content for example in here]


# Real data -------------------------------------------------------------------------------------------------------


def test_every_photo_of_caltech_is_decoded(datasets):
    folder = datasets / "caltech101-10"
    items = found(folder)
    examples = [decode([(folder / item.files[0]).read_bytes()], size=(32, 32)) for item in items]
    assert len({example.content for example in examples}) == len(items) == 1069
    counts = Counter(item.label for item in items)
    assert (len(counts), counts["watch"], counts["stop_sign"]) == (10, 239, 64)  # datasets/README.md
    assert Counter(example.facts["mode"] for example in examples) == {"RGB": 1049, "L": 20}


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller_and_shows_nearly_the_same(orientation):
    row, column = np.mgrid[:900, :1200]
    waves = np.stack([np.sin(row / 40 + column / 90), np.cos(column / 55), np.sin(row / 25)], axis=-1)
    picture = Image.fromarray(np.rint(waves * 120 + 128).astype(np.uint8))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(file, "JPEG", quality=95, exif=exif)
    shown = picture if orientation == 1 else picture.transpose(Image.Transpose.ROTATE_270)
    for mode, coded in (("colour", "RGB"), ("grey", "L")):
        example = decode([file.getvalue()], size=(60, 80), mode=mode)
        whole = np.asarray(shown.convert(coded).resize((80, 60), Image.Resampling.BILINEAR)).reshape(60, 80, -1)
        assert np.abs(example.arrays["image"].astype(int) - whole).mean() < 1.5
        assert (example.facts["height"], example.facts["width"]) == shown.size[::-1]
        assert example.facts["mode"] == "RGB"
