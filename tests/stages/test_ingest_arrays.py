import gzip
import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import Counter
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest

from convoy.errors import ConfigurationError, InputRefusedError
from convoy.kinds import arrays, images, volumes
from stages.ingest.finders import images as finder
from stages.ingest.finders import volumes as volume_finder
from stages.ingest.formats import cifar, containers
from stages.ingest.records import Source

RNG = np.random.default_rng(0)


def found(folder, **options):
    return list(finder.find(Source(folder, **options)))


def pixels(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


@contextmanager
def within_the_budget():
    """512 MB and 10 s are allowed (shared/faults.md); what we read has to stay far below."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
        assert time.perf_counter() - start < 5
    finally:
        tracemalloc.stop()


# IDX -------------------------------------------------------------------------------------------------------------


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.mark.parametrize("style", ["{}-images-idx3-ubyte.gz", "{}-images-idx3-ubyte", "MNIST/raw/{}-images.idx3-ubyte"])
def test_idx_files_are_read_with_their_own_test_split(tmp_path, style):
    pictures, labels = pixels(70, 8, 6), np.arange(70).astype(np.uint8) % 10
    for prefix, rows in (("train", slice(0, 50)), ("t10k", slice(50, 70))):
        path = tmp_path / style.format(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        pack = gzip.compress if path.suffix == ".gz" else bytes
        path.write_bytes(pack(idx(pictures[rows])))
        path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")).write_bytes(
            pack(idx(labels[rows]))
        )
    items = sorted(found(tmp_path), key=lambda item: item.split != "train")
    assert items[0].path == f"{style.format('train')}#0"
    assert [item.split for item in items] == ["train"] * 50 + ["test"] * 20
    assert [int(item.label) for item in items] == labels.tolist()
    np.testing.assert_array_equal([item.payload for item in items], pictures)


DAMAGE = {
    "short": ({"images": idx(pixels(9, 8, 8))[:-1]}, "is cut off at row 0"),
    "long": ({"images": idx(pixels(9, 8, 8)) + b"x"}, "holds more than that"),
    "counts": ({"labels": idx(np.zeros(8, np.uint8))}, "ubyte.gz has 9 examples, .* 8 labels"),
    "type": ({"images": b"\0\0\x0d\3" + idx(pixels(9, 8, 8))[4:]}, "is not an IDX file of bytes with 3 axes"),
    "axes": ({"labels": idx(pixels(9, 2, 2))}, "is not an IDX file of bytes with 1 axes"),
    "negative": ({"images": b"\0\0\x08\3" + struct.pack(">3i", 9, -8, 8)}, "no negatives"),
    "bomb": ({"images": b"\0\0\x08\3" + struct.pack(">3i", 2**31 - 1, 99, 99)}, "announces 21,047,.*Allowed"),
    "empty": ({"images": b""}, "is not an IDX file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_fault_34_a_damaged_idx_file_is_named(tmp_path, damage):
    change, message = DAMAGE[damage]
    content = {"images": idx(pixels(9, 8, 8)), "labels": idx(np.zeros(9, np.uint8))} | change
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content["images"]))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content["labels"]))
    with within_the_budget(), pytest.raises(InputRefusedError, match=f"train-(images|labels)-idx.*{message}"):
        found(tmp_path)


def test_flipped_and_cut_gzip_is_named_or_harmless(tmp_path):
    labels = gzip.compress(idx(np.zeros(9, np.uint8)))
    whole = gzip.compress(idx(pixels(9, 8, 8)), mtime=0)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(whole)
    expected = np.array([item.payload for item in found(tmp_path)])
    for place in range(0, len(whole), 9):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :]):
            path.write_bytes(content)
            try:
                np.testing.assert_array_equal([item.payload for item in found(tmp_path)], expected)
            except InputRefusedError as refusal:
                assert "train-images-idx3-ubyte.gz" in str(refusal)


def test_idx_files_of_other_names_need_to_be_said_what_they_are(tmp_path):
    for kind in ("letters", "digits"):
        (tmp_path / f"emnist-{kind}-images-idx3-ubyte").write_bytes(idx(pixels(3, 4, 4)))
        (tmp_path / f"emnist-{kind}-labels-idx1-ubyte").write_bytes(idx(np.arange(3).astype(np.uint8)))
    with pytest.raises(InputRefusedError, match=r"emnist-digits-images-idx3-ubyte: its name must begin with .*t10k"):
        found(tmp_path)
    items = found(tmp_path, files={"train": "emnist-letters-images*", "test": "emnist-digits-images*"})
    assert Counter(item.split for item in items) == {"train": 3, "test": 3}
    (tmp_path / "emnist-digits-labels-idx1-ubyte").unlink()
    with pytest.raises(InputRefusedError, match="has no labels: emnist-digits-labels-idx1-ubyte is missing"):
        found(tmp_path, files={"test": "emnist-digits-images*"})


def test_mnist_itself_is_read(datasets):
    items = found(datasets / "mnist")
    assert len(items) == 70_000
    assert Counter(item.label for item in items if item.split == "train")["1"] == 6742  # LeCun


# CIFAR -----------------------------------------------------------------------------------------------------------


def batch(count, **labels):
    return {b"data": pixels(count, 3072)} | {key.encode(): value for key, value in labels.items()}


def python_2(content):
    """Returns a pickle as Python 2 wrote it: the originals have byte texts and numpy's old module names."""
    return pickle.dumps(content, 2, fix_imports=True).replace(b"numpy._core", b"numpy.core")


def cifar10(folder, dump):
    batches = {f"data_batch_{n}": batch(4, labels=[0, 1, 2, 1]) for n in range(1, 6)}
    batches["test_batch"] = batch(3, labels=[2, 1, 0])
    (folder / "cifar-10-batches-py").mkdir()
    for name, content in batches.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(dump(content))
    (folder / "cifar-10-batches-py/batches.meta").write_bytes(dump({b"label_names": [b"plane", b"car", b"bird"]}))
    (folder / "cifar-10-batches-py/readme.html").write_text("<html>")
    return batches


@pytest.mark.parametrize("dump", [python_2, pickle.dumps, lambda content: pickle.dumps(content, 5)])
def test_cifar_10_for_python_is_read(tmp_path, dump):
    batches = cifar10(tmp_path, dump)
    items = found(tmp_path)
    assert Counter(item.split for item in items) == {"train": 20, "test": 3}
    assert [item.label for item in items[:4]] == ["plane", "car", "bird", "car"]
    assert items[1].path == "cifar-10-batches-py/data_batch_1#1"
    second = batches["data_batch_1"][b"data"][1].reshape(3, 32, 32)
    np.testing.assert_array_equal(items[1].payload[..., 2], second[2])  # red, then green, then blue
    example = images.decode(items[1].payload, size=(32, 32), mode="colour", fit="stretch")
    np.testing.assert_array_equal(example.arrays["image"], second.transpose(1, 2, 0))


@pytest.mark.parametrize("column", ["fine_labels", "coarse_labels"])
def test_cifar_100_has_fine_and_coarse_classes(tmp_path, column):
    for name in ("train", "test"):
        content = batch(3, fine_labels=[0, 1, 2], coarse_labels=[0, 0, 1])
        (tmp_path / name).write_bytes(python_2(content))
        rows = np.concatenate([np.array([[0, 0], [0, 1], [1, 2]], np.uint8), content[b"data"]], axis=1)
        (tmp_path / "binary").mkdir(exist_ok=True)
        (tmp_path / "binary" / f"{name}.bin").write_bytes(rows.tobytes())
    names = {b"fine_label_names": [b"apple", b"pear", b"bee"], b"coarse_label_names": [b"fruit", b"insect"]}
    (tmp_path / "meta").write_bytes(python_2(names))
    for key, values in names.items():
        (tmp_path / "binary" / f"{key.decode()}.txt").write_text("\n".join(map(bytes.decode, values)) + "\n\n")
    columns = {} if column == "fine_labels" else {"label": column}
    expected = ["apple", "pear", "bee"] if column == "fine_labels" else ["fruit", "fruit", "insect"]
    items = found(tmp_path, columns=columns)
    assert [item.label for item in items] == expected * 4
    np.testing.assert_array_equal(items[0].payload, items[6].payload)  # test.bin and test
    with pytest.raises(ConfigurationError, match="columns.label = 'labels'. .* fine_labels, coarse_labels"):
        found(tmp_path, columns={"label": "labels"})


def test_cifar_10_in_binary_is_read_block_by_block(tmp_path):
    rows = np.concatenate([np.array([[1], [0]], np.uint8).repeat(1000, 0), pixels(2000, 3072)], axis=1)
    (tmp_path / "data_batch_1.bin").write_bytes(rows.tobytes())
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\n")
    items = found(tmp_path)
    assert Counter(item.label for item in items) == {"plane": 1000, "car": 1000}
    np.testing.assert_array_equal(items[-1].payload[..., 0].ravel(), rows[-1, 1:1025])
    (tmp_path / "data_batch_1.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(InputRefusedError, match="data_batch_1.bin has 6,145,999 bytes, which is no multiple of 3073"):
        found(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"\7" + bytes(3072))
    with pytest.raises(InputRefusedError, match=r"data_batch_1.bin#0 has the label 7; there are 2 names"):
        found(tmp_path)


class Canary:
    """Creates a file when a pickle of it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def hostile_pickles(canary):
    """What must not run, and what must not take memory."""
    evil = {b"data": Canary(canary), b"labels": [0]}
    huge = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + pickle.dumps((10**12,), 2)[2:-1]
        + b"\x86R."
    )
    return {
        "code": pickle.dumps(evil),
        "code of Python 2": pickle.dumps(evil, 2),
        "global": b"cos\nsystem\n(S'mkdir " + str(canary).encode() + b"'\ntR.",
        "builtins": b"cbuiltins\neval\n(S'1'\ntR.",
        "numpy": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\nS'{}'\ntR.",
        "load": b"cnumpy\nload\n(S'x'\ntR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"S'x'\nQ.",
        "object array": pickle.dumps({b"data": np.array([1, "a", None], object), b"labels": [0]}),
        "numbers": pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [0]}),
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "length": b"\x80\x02T\xff\xff\xff\x7fabc.",
        "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "huge": huge,
        "nested": b"\x80\x02" + b"N" + b"\x85" * 200_000 + b"}" + b".",
        "set attributes": b"\x80\x02c_codecs\nencode\n}S'__code__'\nNs\x86b.",
        "list": pickle.dumps([1, 2]),
        "cut": pickle.dumps(batch(1, labels=[0]))[:-20],
        "empty": b"",
        "text": b"hello",
        "labels": pickle.dumps(batch(2, labels=[0])),
        "label names": pickle.dumps(batch(1, labels=["cat"])),
        "no data": pickle.dumps({b"labels": [0]}),
    }


@pytest.mark.parametrize("name", hostile_pickles("x"))
def test_fault_32_pickles_of_anything_else_are_refused_and_nothing_runs(tmp_path, name):
    canary = tmp_path / "canary"
    content = hostile_pickles(canary)[name]
    (tmp_path / "data_batch_1").write_bytes(content)
    with within_the_budget(), pytest.raises(InputRefusedError, match="data_batch_1 "):
        found(tmp_path)
    assert not canary.exists()
    if name.startswith("code"):
        with pytest.raises(InputRefusedError, match="contains Python objects; refused: .*mkdir"):
            found(tmp_path)
        pickle.loads(content)
        assert canary.exists()  # the pickle would have done it


def test_flipped_pickles_are_refused_or_read():
    whole = python_2(batch(1, labels=[0]))
    for place in [*range(120), *range(len(whole) - 120, len(whole))]:
        for bit in (1, 16, 128):
            content = bytearray(whole)
            content[place] ^= bit
            try:
                cifar.load(bytes(content), "data_batch_1")
            except InputRefusedError as refusal:
                assert str(refusal).startswith("data_batch_1 ")


# .npz and .npy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),  # Keras
        ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
        ("X_train", "y_train", "X_val", "y_val"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npz compressed", "npy"])
def test_pairs_of_arrays_are_found_by_their_names(tmp_path, names, kind):
    values = (pixels(6, 5, 4), np.arange(6) % 3, pixels(3, 5, 4), np.arange(3)[:, None])
    content = dict(zip(names, values, strict=True))
    if kind == "npy":
        for name, value in content.items():
            np.save(tmp_path / f"{name}.npy", value)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(tmp_path / "data.npz", **content)
    items = sorted(found(tmp_path), key=lambda item: item.split != "train")
    assert [item.label for item in items] == list("012012012")
    assert [item.split for item in items] == ["train"] * 6 + ["val" if "val" in names[2] else "test"] * 3
    np.testing.assert_array_equal([item.payload for item in items], np.concatenate([values[0], values[2]]))
    assert items[0].path == (f"{names[0]}.npy#0" if kind == "npy" else f"data.npz[{names[0]}]#0")


def test_one_npz_per_split_and_without_splits(tmp_path):
    np.savez(tmp_path / "train.npz", images=pixels(4, 3, 3), labels=["a", "b", "a", "b"])
    np.savez(tmp_path / "test.npz", X=pixels(2, 3, 3), y=[b"a", b"b"])
    assert [(i.split, i.label) for i in found(tmp_path)] == [("test", c) for c in "ab"] + [("train", c) for c in "abab"]
    (tmp_path / "test.npz").rename(tmp_path / "other.npz")
    assert {item.split for item in found(tmp_path)} == {None, "train"}
    assert {item.split for item in found(tmp_path, files={"test": "other.npz"})} == {"test"}


def test_npy_per_class_as_in_quick_draw(tmp_path):
    np.save(tmp_path / "train.npy", pixels(3, 784))  # a class of Quick Draw, not a split
    np.save(tmp_path / "cat.npy", pixels(2, 784))
    items = found(tmp_path)
    assert [(item.path, item.label, item.split) for item in items[1:3]] == [
        ("cat.npy#1", "cat", None),
        ("train.npy#0", "train", None),
    ]
    assert items[0].payload.shape == (28, 28)


def test_pictures_in_folders_come_before_a_stray_array(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(b"not read yet")
    np.save(tmp_path / "means.npy", np.zeros(3))
    assert [item.path for item in found(tmp_path)] == ["a/1.png", "b/1.png"]


NUMBERS = [  # an array, the bytes that it becomes
    (np.array([0, 7, 255], np.uint8), [0, 7, 255]),
    (np.array([False, True, True]), [0, 255, 255]),
    (np.array([0, 0.5, 1]), [0, 128, 255]),
    (np.array([0, 0.5, 1], np.float16), [0, 128, 255]),
    (np.array([0, 127.6, 255], np.float32), [0, 128, 255]),
    (np.array([0, 7, 200], np.int64), [0, 7, 200]),
    (np.array([0, 7, 200], ">i4"), [0, 7, 200]),
    (np.array([0, 257, 65535], np.uint16), [0, 1, 255]),
    (np.array([0, 257, 65535], ">u2"), [0, 1, 255]),
]


@pytest.mark.parametrize(("values", "expected"), NUMBERS)
@pytest.mark.parametrize("fortran", [True, False])
def test_numbers_become_bytes_by_a_rule_for_the_whole_array(tmp_path, values, expected, fortran):
    x = np.stack([values, values[::-1], values]).reshape(3, 1, 3)
    np.save(tmp_path / "x.npy", np.asfortranarray(x) if fortran else x)
    np.save(tmp_path / "y.npy", [0.0, 1.0, 1.0])
    items = found(tmp_path)
    assert [item.label for item in items] == ["0", "1", "1"]
    decoded = [images.decode(item.payload, size=(1, 3), mode="grey", fit="stretch").arrays["image"] for item in items]
    assert [pixels.ravel().tolist() for pixels in decoded] == [expected, expected[::-1], expected]


def test_the_range_of_all_splits_decides(tmp_path):
    bright, dark = np.array([[[0, 255.0]]]), np.array([[[0, 1.0]]])
    np.savez(tmp_path / "a.npz", x_train=bright, y_train=[0], x_test=dark, y_test=[0])
    assert [item.payload.tolist() for item in found(tmp_path)] == [[[0, 255]], [[0, 1]]]


@pytest.mark.parametrize(
    ("shape", "payload"),
    [
        ((2, 5, 6), (5, 6)),
        ((2, 5, 6, 1), (5, 6, 1)),
        ((2, 5, 6, 3), (5, 6, 3)),
        ((2, 5, 6, 4), (5, 6, 4)),
        ((2, 3, 5, 6), (5, 6, 3)),  # channels first, because 6 are none
        ((2, 1, 5, 6), (5, 6, 1)),
        ((2, 49), (7, 7)),
    ],
)
def test_shapes_become_height_width_channels(tmp_path, shape, payload):
    x = pixels(*shape)
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1])
    items = found(tmp_path)
    assert items[0].payload.shape == payload
    images.decode(items[0].payload, size=(4, 4), mode="colour", fit="stretch")
    if shape == (2, 3, 5, 6):
        np.testing.assert_array_equal(items[1].payload[2, 4], x[1, :, 2, 4])


REFUSED = {
    "objects": ({"x": np.array([[None, 1]], object)}, r"x\] contains Python objects; refused"),
    "object labels": ({"y": np.array([None, "a"], object)}, r"y\] contains Python objects; refused"),
    "complex": ({"x": np.zeros((2, 4, 4), complex)}, "is of type complex128. Allowed"),
    "dates": ({"x": np.zeros((2, 4, 4), "M8[s]")}, "is of type datetime64"),
    "records": ({"x": np.zeros(2, [("a", "u1")])}, "is of type .*Allowed"),
    "texts": ({"x": np.full((2, 4, 4), "a")}, r"x\] holds texts"),
    "negative": ({"x": np.full((2, 4, 4), -1.0)}, "from -1.0 to -1.0: no known range. Allowed: 0 to 1, 0 to 255"),
    "large": ({"x": np.full((2, 4, 4), 256)}, "holds int64 from 256 to 256: no known range"),
    "nan": ({"x": np.full((2, 4, 4), np.nan)}, "no known range"),
    "infinite": ({"x": np.full((2, 4, 4), np.inf)}, "no known range"),
    "shape": ({"x": pixels(2, 5, 6, 7)}, r"has the shape \(2, 5, 6, 7\). Allowed"),
    "flat": ({"x": pixels(2, 50)}, r"has the shape \(2, 50\). Allowed"),
    "scalar": ({"x": np.uint8(3)}, r"announces the shape \(\)"),
    "no pixels": ({"x": pixels(2, 0, 3)}, r"announces the shape \(2, 0, 3\)"),
    "counts": ({"y": [0, 1, 2]}, r"x\] has 2 examples, .*y\] 3 labels"),
    "one-hot": ({"y": np.eye(2)}, r"y\] has the shape \(2, 2\). Allowed: one label per example, \(2,\) or \(2, 1\)"),
    "fractions": ({"y": [0.5, 1]}, "no class labels"),
    "infinite labels": ({"y": [np.inf, 1]}, "no class labels"),
    "no labels": ({"y": [np.nan, 1]}, "no class labels"),
    "names": ({"x": None, "pictures": pixels(2, 3, 3)}, r"has y: images are missing. Allowed: x_train with y_train"),
    "none": ({"x": None, "y": None, "a": pixels(2)}, r"holds \['a'\]. Allowed: x_train"),
    "twice": ({"images": pixels(2, 3, 3)}, "x and images both say images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_no_pictures_are_refused(tmp_path, name):
    change, message = REFUSED[name]
    content = {"x": pixels(2, 3, 3), "y": [0, 1]} | change
    np.savez(tmp_path / "a.npz", **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(InputRefusedError, match=f"a.npz.*{message}"):
        found(tmp_path)


FRAMES = {(4, 5): 1, (4, 5, 1): 1, (4, 5, 3): 3, (4, 5, 4): 4}  # shapes of a picture, and their channels
ALLOWED = {"images": FRAMES | {(3, 4, 5): 3, (1, 4, 5): 1, (4,): 1}, "volumes": FRAMES}
NUMBER_TYPES = [
    "?",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "longdouble",
    ">u2",
    ">i4",
    ">f8",
]
OTHER_TYPES = {"c8": 1, "c16": 1, "M8[s]": 1, "m8[s]": 1, "S3": b"a", "U3": "a", "V3": b"a", "u1,u1": 1, "O": None}


def read_pair(folder, kind, dtype, shape, value):
    """Returns what two examples of one number each, 0 and ``value``, are stored as; a volume has two such frames."""
    x = np.zeros((2, *((2, *shape) if kind == "volumes" else shape)), dtype)
    x[1] = value
    np.savez(folder / "a.npz", x=x, y=[0, 1])
    kinds = {"images": (finder, images, "image", (4, 5)), "volumes": (volume_finder, volumes, "volume", (2, 4, 5))}
    layouts, reader, name, size = kinds[kind]
    items = layouts.find(Source(folder))
    return [reader.decode(item.payload, size=size, mode="colour", fit="stretch").arrays[name] for item in items]


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("dtype", NUMBER_TYPES)
def test_numbers_of_every_type_and_shape_become_bytes_or_are_refused_in_words(tmp_path, kind, dtype):
    dtype = np.dtype(dtype)
    for top, shape in product((1, 100), [*ALLOWED["images"], (4, 5, 2), (2, 4, 5), (5, 4, 5, 3)]):
        high, white = {"bool": (1, 255), "uint8": (top, top), "uint16": (65535, 255)}.get(
            dtype.name, (top, 255 if top == 1 else top)
        )
        if shape not in ALLOWED[kind]:
            with pytest.raises(InputRefusedError, match="has the shape"):
                read_pair(tmp_path, kind, dtype, shape, high)
            continue
        dark, bright = read_pair(tmp_path, kind, dtype, shape, high)
        if ALLOWED[kind][shape] == 4:  # the fourth says how far white shines through
            assert (dark == 255).all(), shape
            assert np.abs(bright - (white * white / 255 + 255 - white)).max() < 1, shape
        else:
            assert (dark == 0).all(), shape
            assert (bright == white).all(), shape


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
@pytest.mark.parametrize("dtype", OTHER_TYPES)
def test_what_is_no_number_is_refused_in_words(tmp_path, kind, shape, dtype):
    with pytest.raises(InputRefusedError, match=r"is of type|holds texts|contains Python objects"):
        read_pair(tmp_path, kind, dtype, shape, OTHER_TYPES[dtype])


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_16_bits_is_divided_by_257_as_grey_is(channels):
    values = np.arange(65536, dtype=np.uint16)[:: 65535 // 255 - 1].repeat(channels).reshape(1, -1, channels)
    values[..., 3:] = 65535
    found = images.decode(values, size=(1, values.shape[1]), mode="colour", fit="stretch").arrays["image"]
    assert found[0].tolist() == [[round(int(value) / 257)] * 3 for value in values[0, :, 0]]


def test_fault_32_no_code_of_a_pickled_array_runs(tmp_path):
    canary = tmp_path / "canary"
    np.savez(tmp_path / "a.npz", x=np.array([Canary(canary)], object), y=[0])
    with pytest.raises(InputRefusedError, match="contains Python objects; refused"):
        found(tmp_path)
    assert not canary.exists()


def npy(shape, descr="|u1", content=b"", version=1):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((7 * 2**40,)), "announces .* 7,696,581,394,432 bytes, and has 0"),  # 7 TiB
        (npy((2, -3, 3), content=bytes(18)), "no negatives"),
        (npy((2**70, 3, 3)), "announces"),
        (npy((2, 3, 3), content=bytes(17)), "18 bytes, and has 17"),
        (npy((2, 3, 3), content=bytes(19)), "18 bytes, and has 19"),
        (npy((2, 3, 3), "|O", bytes(144)), "contains Python objects; refused"),
        (npy((2, 3, 3), "<f9"), "is not a .npy file"),
        (npy((2, 3, 3), version=2), r"version \(2, 0\)"),
        (npy("x"), "is not a .npy file: shape is not valid"),
        (npy((2, 3, 3))[:40], "is not a .npy file"),
        (b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535, "is not a .npy file"),
        (npy((4, 8, 8)).replace(b"}", b"O"), "is not a .npy file: .*EOF in multi-line statement"),  # found by fuzzing
        (b"", "is not a .npy file"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_fault_30_the_header_of_an_array_is_checked_before_anything_is_allocated(tmp_path, content, message, inside):
    if inside:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", content)
            archive.writestr("y.npy", npy((2,), content=b"\0\1"))
    else:
        (tmp_path / "x.npy").write_bytes(content)
        (tmp_path / "y.npy").write_bytes(npy((2,), content=b"\0\1"))
    with within_the_budget(), pytest.raises(InputRefusedError, match=message):
        found(tmp_path)


@pytest.mark.slow
def test_fault_30_a_zip_bomb_stops_at_the_budget(tmp_path):
    zeros = bytes(2**20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as file:
            file.write(npy((300, 1024, 1024)))
            for _ in range(300):
                file.write(zeros)
        archive.writestr("y.npy", npy((300,), content=bytes(300)))
    with within_the_budget(), pytest.raises(InputRefusedError, match="a.npz has .* bytes and announces 314,573,"):
        found(tmp_path)


def test_fault_30_overlapping_members_of_a_zip_are_counted(tmp_path):
    """One stored block of zeros that a hundred entries of the directory name (Fifield 2019)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((4 * 2**20,), content=bytes(4 * 2**20)))
        for number in range(100):
            info = zipfile.ZipInfo(f"x{number}.npy")
            first = archive.filelist[0]
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.compress_size, info.file_size, info.compress_type = first.compress_size, first.file_size, 8
            archive.filelist.append(info)
    (tmp_path / "a.npz").write_bytes(file.getvalue())
    with within_the_budget(), pytest.raises(InputRefusedError, match="announces 423,"):
        found(tmp_path)


def test_a_zip_that_announces_less_than_it_holds_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=pixels(9, 9, 9), y=np.zeros(9))
    content = (tmp_path / "a.npz").read_bytes()
    for size in (200, 10):
        wrong = content.replace(struct.pack("<I", 9 * 81 + 128), struct.pack("<I", size))
        (tmp_path / "a.npz").write_bytes(wrong)
        with pytest.raises(InputRefusedError, match="a.npz"):
            found(tmp_path)


def test_flipped_and_cut_npz_files_are_refused_or_read_right(tmp_path):
    x, y = pixels(4, 3, 3), np.arange(4)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    whole = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :]):
            (tmp_path / "a.npz").write_bytes(content)
            try:
                items = found(tmp_path)
            except InputRefusedError as refusal:
                assert "a.npz" in str(refusal)
                refused += 1
            else:
                np.testing.assert_array_equal([item.payload for item in items], x)
                assert [item.label for item in items] == list("0123")
    assert refused > len(whole) // 3


def test_large_arrays_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 100)
    x = pixels(50, 3, 3)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(50))
    np.testing.assert_array_equal([item.payload for item in found(tmp_path)], x)
    monkeypatch.setattr(arrays, "WHOLE", 200)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    stored = arrays.open_npy(tmp_path / "x.npy", "x.npy")
    with pytest.raises(InputRefusedError, match="x.npy: in Fortran order, 450 bytes at once; up to 200 are read"):
        list(stored.blocks())


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("x_train", ("images", "train")),
        ("test_labels", ("labels", "test")),
        ("Y", ("labels", None)),
        ("val_images", ("images", "val")),
        ("train", None),
        ("x_train_test", None),
        ("class_names", None),
    ],
)
def test_names_say_what_an_array_is(name, role):
    assert containers.role(name) == role
