import io
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.errors import InputRefusedError
from convoy.kinds import volumes
from stages.ingest.finders import volumes as finder
from stages.ingest.records import Source

RNG = np.random.default_rng(0)


def found(folder, **options):
    return list(finder.find(Source(Path(folder), **options)))


def voxels(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


def decode(data, size=(4, 6, 5), mode="grey", fit="stretch"):
    return volumes.decode(data, size=size, mode=mode, fit=fit)


def read(folder, item, **options):
    return decode([(folder / file).read_bytes() for file in item.files], **options)


def frames_of(volume, kind="PNG", **options):
    """Returns one file per frame, or all frames in one file."""
    pictures = [Image.fromarray(frame) for frame in volume]
    if kind != "PNG":
        options |= {"save_all": True, "append_images": pictures[1:]}
    files = []
    for picture in pictures if kind == "PNG" else pictures[:1]:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return [file.getvalue()]


def test_adrenalmnist3d_is_read(datasets):
    items = found(datasets / "adrenalmnist3d")
    counts = Counter((item.split, item.label) for item in items)
    assert (counts["train", "0"], counts["train", "1"]) == (929, 259)  # datasets/README.md
    assert Counter(item.split for item in items) == {"train": 1188, "val": 98, "test": 298}
    with np.load(datasets / "adrenalmnist3d/adrenalmnist3d.npz") as file:
        for item, expected in zip(items[:20], file["train_images"], strict=False):
            example = decode(item.payload, size=(28, 28, 28))
            np.testing.assert_array_equal(example.arrays["volume"][..., 0], expected)
    assert example.facts == {"depth": 28, "height": 28, "width": 28, "mode": "L", "format": "array"}
    assert items[0].path == "adrenalmnist3d.npz[train_images]#0"


def test_files_and_folders_in_class_folders_are_volumes(tmp_path):
    for split in ("train", "test"):
        for label in ("fall", "run"):
            folder = tmp_path / split / label
            (folder / "clip").mkdir(parents=True)
            (folder / "a.npy").write_bytes(npy(voxels(3, 6, 5))[0])
            (folder / "b.gif").write_bytes(frames_of(voxels(3, 6, 5), "GIF")[0])
            for number in (1, 2, 10):
                Image.fromarray(voxels(6, 5)).save(folder / f"clip/frame{number}.png")
    items = found(tmp_path)
    assert [(item.path, item.label, item.split) for item in items[:3]] == [
        ("test/fall/a.npy", "fall", "test"),
        ("test/fall/b.gif", "fall", "test"),
        ("test/fall/clip", "fall", "test"),
    ]
    assert len(items) == 12
    assert items[2].files == tuple(f"test/fall/clip/frame{number}.png" for number in (1, 2, 10))  # in natural order
    for item in items:
        assert read(tmp_path, item).arrays["volume"].shape == (4, 6, 5, 1)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda raw: None, "is missing: fetch it"),
        (lambda raw: raw.mkdir(), r"has no volume in a class folder. Allowed: .npz .* It has: nothing"),
        (lambda raw: (raw / "cat").mkdir(parents=True), "cat is an empty class folder. Put volumes into it"),
        (
            lambda raw: (raw.mkdir(), np.savez(raw / "a.npz", x=voxels(2, 5, 5), y=[0, 1])),
            r"has the shape \(2, 5, 5\). Allowed: \(examples, depth, height, width\)",
        ),
    ],
)
def test_what_is_no_layout_is_refused_with_a_plain_message(tmp_path, prepare, message):
    prepare(tmp_path / "raw")
    with pytest.raises(InputRefusedError, match=message):
        found(tmp_path / "raw")


def test_a_frame_whose_name_is_not_utf_8_is_a_problem_of_its_clip(tmp_path):
    (tmp_path / "cat/clip").mkdir(parents=True)
    (tmp_path / "cat/clip" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/1.npy").touch()
    item, _ = found(tmp_path)
    assert (item.path, item.problem) == ("cat/clip", "cat/clip/\\xff.png: its name is not valid UTF-8: rename it")


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_equal_voxels_are_equal_content_in_frames_arrays_and_stacks(channels):
    volume = voxels(3, 6, 5, *channels)
    examples = [decode(data) for data in (frames_of(volume), frames_of(volume, "TIFF"), npy(volume), volume)]
    assert len({example.content for example in examples}) == 1
    for example in examples:
        np.testing.assert_array_equal(example.arrays["volume"], examples[0].arrays["volume"])
        assert list(example.facts) == ["depth", "height", "width", "mode", "format"]
        assert example.fingerprint is None
    assert decode(volume[::-1]).content != examples[0].content
    assert decode(volume.transpose(0, 2, 1, *range(3, volume.ndim))).content != examples[0].content


def test_every_frame_of_a_gif_counts():
    volume = np.stack([np.full((6, 5), value, np.uint8) for value in (0, 100, 200)])
    example = decode(frames_of(volume, "GIF"), size=(3, 6, 5))
    np.testing.assert_array_equal(example.arrays["volume"][..., 0], volume)
    assert (example.facts["depth"], example.facts["format"]) == (3, "GIF")


DEPTHS = [  # rule, depth asked for, grey levels of the frames; given are 10, 20, 30, 40
    ("stretch", 4, [10, 20, 30, 40]),
    ("stretch", 2, [16, 34]),  # a triangle over two old frames to both sides: weights 3, 3, 1 of 7, then 1 of 7
    ("stretch", 8, [10, 13, 18, 23, 28, 33, 38, 40]),  # linear between the middles of the frames
    ("pad", 7, [0, 10, 20, 30, 40, 0, 0]),
    ("pad", 2, [16, 34]),  # squeezed
    ("crop", 2, [20, 30]),
    ("crop", 3, [10, 20, 30]),
    ("crop", 8, [10, 13, 18, 23, 28, 33, 38, 40]),
]


@pytest.mark.parametrize(("fit", "depth", "expected"), DEPTHS)
def test_depth_is_stretched_padded_or_cropped(fit, depth, expected):
    volume = np.repeat(np.array([10, 20, 30, 40], np.uint8), 30).reshape(4, 6, 5)
    result = decode(volume, size=(depth, 6, 5), fit=fit).arrays["volume"]
    assert result.shape == (depth, 6, 5, 1)
    assert np.abs(result[:, 2, 2, 0].astype(int) - expected).max() <= 1
    assert (result == result[:, :1, :1]).all()


def test_height_and_width_follow_the_rule_for_pictures():
    wide = np.full((2, 8, 18), 255, np.uint8)
    padded = decode(wide, size=(2, 9, 9), fit="pad").arrays["volume"]
    assert (padded[0] == 255).sum() == 9 * 4
    assert decode(wide, size=(2, 9, 9), mode="colour").arrays["volume"].shape == (2, 9, 9, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0, 1.0], np.float32), [0, 255]),
        (np.array([0, 200], np.float64), [0, 200]),
        (np.array([False, True]), [0, 255]),
        (np.array([0, 65535], np.uint16), [0, 255]),
    ],
)
def test_numbers_of_an_array_become_bytes(array, expected):
    volume = decode(npy(array.repeat(30).reshape(2, 6, 5)), size=(2, 6, 5)).arrays["volume"]
    assert volume[:, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frames_of(voxels(2, 6, 5)) + frames_of(voxels(1, 5, 6)), "frame 2 has 6 x 5 pixels, frame 0 5 x 6"),
        ([frames_of(voxels(1, 6, 5))[0], b"x"], "frame 1: not a picture"),
        ([frames_of(voxels(1, 6, 5))[0], frames_of(voxels(1, 6, 5))[0][:-3]], "frame 1: damaged"),
        (frames_of(voxels(1, 6, 5)), "a volume of 1 frame"),
        ([b""], "not a picture"),
        (npy(voxels(6, 5)), r"an array of the shape \(6, 5\). Allowed: \(depth, height, width"),
        (npy(voxels(3, 6, 5, 2)), "has the shape"),
        (npy(np.full((2, 6, 5), -1)), "the array holds int64 from -1 to -1: no known range"),
        (npy(np.array([[[None]]], object)), "contains Python objects; refused"),
        ([npy(voxels(3, 6, 5))[0][:-1]], "90 bytes, and has 89"),
        ([b"II*\0" + b"\xff" * 99], "not a picture"),
    ],
)
def test_damaged_volumes_are_refused(data, message):
    with pytest.raises(InputRefusedError, match=message):
        decode(data)


def test_cut_and_flipped_stacks_are_refused_or_read(capfd):
    for kind in ("GIF", "TIFF", "WEBP"):
        whole = frames_of(voxels(3, 20, 20), kind)[0]
        for place in np.linspace(0, len(whole) - 1, 25).astype(int):
            for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 129]) + whole[place + 1 :]):
                try:
                    decode([data])
                except InputRefusedError:
                    continue
    assert capfd.readouterr().err == ""


def test_a_small_file_full_of_frames_stops_at_the_budget(monkeypatch):
    data = frames_of(np.arange(60, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2), "GIF")
    assert decode(data).facts["depth"] == 60
    monkeypatch.setattr(volumes, "VOXELS", 50 * volumes.LEAST)
    start = time.perf_counter()
    with pytest.raises(InputRefusedError, match="too large: over .* voxels at frame 50"):
        decode(data)
    assert time.perf_counter() - start < 2


def test_decode_runs_in_other_processes():
    volume = voxels(3, 6, 5)
    with ProcessPoolExecutor(1) as executor:
        [there] = executor.map(partial(volumes.decode, size=(4, 6, 5), mode="grey", fit="pad"), [volume])
    assert there.content == decode(volume).content
