import json

import numpy as np
import pytest
from PIL import Image

from convoy.data.shards import INDEX, Shards, ShardWriter, write_shards
from convoy.errors import BusyError, InputRefusedError, IntegrityError
from convoy.files import read_sealed, scratch_folder, write_sealed
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest


@pytest.fixture
def example(tmp_path):
    """100 examples in 7 shards, written in uneven blocks."""
    x = np.random.default_rng(0).integers(0, 256, (100, 4, 3, 1), np.uint8)
    y = np.arange(100)
    parts = np.split(np.arange(100), [1, 20, 21, 80])
    write_shards(tmp_path / "s", ({"x": x[part], "y": y[part]} for part in parts), shard_bytes=15 * (12 + 8))
    return tmp_path / "s", x, y


def test_reads_any_rows_in_any_order(example):
    folder, x, y = example
    shards = Shards(folder)
    rows = np.random.default_rng(1).integers(-100, 100, 500)
    assert len(shards) == 100
    assert shards.shape("x") == (4, 3, 1)
    assert len(list(folder.glob("x-*.npy"))) == 7
    np.testing.assert_array_equal(shards[rows]["x"], x[rows])
    np.testing.assert_array_equal(shards[rows]["y"], y[rows])
    np.testing.assert_array_equal(shards[10:50:3]["y"], y[10:50:3])
    np.testing.assert_array_equal(np.concatenate([block["x"] for block in shards.blocks(33)]), x)
    np.testing.assert_array_equal(shards.column("y"), y)
    assert shards[-1]["y"] == 99
    assert shards[[]]["x"].shape == (0, 4, 3, 1)


@pytest.mark.parametrize("row", [100, -101])
def test_refuses_rows_that_do_not_exist(example, row):
    with pytest.raises(IndexError, match="100 rows"):
        Shards(example[0])[[row]]


def test_equal_content_gives_equal_bytes(example, tmp_path):
    folder, x, y = example
    write_shards(tmp_path / "again", [{"x": x, "y": y}], shard_bytes=15 * (12 + 8))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_fault_34_a_flipped_bit_or_a_cut_in_any_file_is_found(example):
    folder, *_ = example
    for path in sorted(folder.glob("*.npy")):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(IntegrityError, match=path.name):
                Shards(folder)
        path.write_bytes(whole[:-1])
        with pytest.raises(IntegrityError, match=path.name):
            Shards(folder, verify=False)
        path.write_bytes(whole)
    Shards(folder)


def test_a_folder_whose_writer_did_not_finish_is_refused(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s") as writer:
        writer.append({"x": np.zeros((5, 2))})
        raise RuntimeError
    with pytest.raises(InputRefusedError, match="index.json is missing: run the stage"):
        Shards(tmp_path / "s")


def test_a_damaged_index_and_a_missing_file_are_named(example):
    folder, *_ = example
    (folder / "x-00003.npy").unlink()
    with pytest.raises(IntegrityError, match="x-00003.npy is missing"):
        Shards(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(IntegrityError, match="index.json is damaged"):
        Shards(folder)


def test_a_block_of_another_kind_is_refused(tmp_path):
    with ShardWriter(tmp_path / "s") as writer:
        writer.append({"x": np.zeros((5, 2), np.uint8)})
        for block in ({"x": np.zeros((5, 3), np.uint8)}, {"x": np.zeros((5, 2))}, {"y": np.zeros((5, 2), np.uint8)}):
            with pytest.raises(ValueError, match="among"):
                writer.append(block)


def test_objects_are_never_unpickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_shards(tmp_path / "s", [{"x": np.array([{}, []], dtype=object)}])


def test_texts_of_any_length_and_script_are_stored(tmp_path, monkeypatch):
    texts = np.array(["", "zwei", "naïve\u0085 \x00", "日本語" * 50, "🙂"] * 9, object)
    write_shards(tmp_path / "s", [{"text": part} for part in np.split(texts, [1, 20])], shard_bytes=700)
    shards = Shards(tmp_path / "s")
    assert shards.column("text").tolist() == texts.tolist()
    monkeypatch.setattr("convoy.data.shards.TEXTS", 3)
    assert list(shards.texts("text")) == texts.tolist()
    assert shards.text_bytes("text").tolist() == [len(text.encode()) for text in texts]
    rows = [44, 0, 3, 3, 21]
    assert shards[rows]["text"].tolist() == texts[rows].tolist()
    assert shards[7]["text"] == texts[7]
    assert len(list((tmp_path / "s").glob("*-ends.npy"))) > 2
    write_shards(tmp_path / "t", [{"text": texts}], shard_bytes=700)
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "t").iterdir()
    }


def test_a_shard_of_empty_texts_can_be_read(tmp_path):
    write_shards(tmp_path / "s", [{"text": np.array(["", ""], object)}])
    assert Shards(tmp_path / "s").column("text").tolist() == ["", ""]


def test_every_flipped_bit_of_the_index_is_found(example):
    path = example[0] / INDEX
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place, bit in zip(rng.integers(0, len(whole), 300), rng.integers(0, 8, 300), strict=True):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        try:
            index = read_sealed(path)
        except IntegrityError:
            continue
        # A flip in the white space between two numbers changes nothing that is read.
        assert {**index, "sha256": json.loads(whole)["sha256"]} == json.loads(whole)


def test_batches_hold_every_example_once_in_an_order_that_follows_from_the_seed(example):
    folder, x, y = example
    shards = Shards(folder)
    first, again, other = (np.concatenate([b["y"] for b in shards.batches(32, seed=seed)]) for seed in (1, 1, [1, 2]))
    assert sorted(first) == y.tolist()
    assert first.tolist() == again.tolist() != other.tolist()
    for block in shards.batches(32, seed=3):
        np.testing.assert_array_equal(block["x"], x[block["y"]])


def test_tensorflow_reads_shuffled_batches(example):
    tf = pytest.importorskip("tensorflow")
    folder, _, y = example
    shards = Shards(folder)
    data = tf.data.Dataset.from_generator(
        lambda: shards.batches(32, seed=1),
        output_signature={"x": tf.TensorSpec((None, 4, 3, 1), tf.uint8), "y": tf.TensorSpec((None,), tf.int64)},
    )
    rows = np.concatenate([batch["y"].numpy() for batch in data])
    assert sorted(rows) == y.tolist()


def test_a_loader_in_pytorchs_manner_reads_it(example):
    """What torch.utils.data.DataLoader asks of a map-style dataset: len, [i], and __getitems__ for a batch."""
    shards = Shards(example[0])
    assert len(shards) == 100
    batch = shards.__getitems__([7, 3])
    assert [example["y"] for example in batch] == [7, 3]
    np.testing.assert_array_equal(batch[1]["x"], shards[3]["x"])


def test_the_manifest_is_joined_in_the_order_of_the_rows(pictures):
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    augment("bars", Augment(copies=1, seed=0, shift=1))
    train = Shards("data/ingest/bars/train")
    table = train.table()
    assert (table["split"] == "train").all()
    for row in (0, 7, len(train) - 1):
        stored = np.asarray(Image.open(pictures / table["path"][row]))
        np.testing.assert_array_equal(train[row]["image"][..., 0], stored)
    twice = Shards("data/augment/bars/train").table()
    assert twice["path"].tolist() == [*table["path"], *table["path"]]


def test_a_sealed_file_says_when_it_was_changed(tmp_path):
    write_sealed(tmp_path / "a.json", {"classes": ["ä", "b"], "share": 0.1, "none": None})
    assert read_sealed(tmp_path / "a.json") == {"classes": ["ä", "b"], "share": 0.1, "none": None}
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("0.1", "0.2"))
    with pytest.raises(IntegrityError, match="a.json was changed"):
        read_sealed(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(IntegrityError, match="a.json was changed"):
        read_sealed(tmp_path / "a.json")


def test_one_process_at_a_time_works_in_a_folder_and_leaves_nothing_there(tmp_path):
    with pytest.raises(RuntimeError), scratch_folder(tmp_path / ".cache/a") as scratch:
        (scratch / "half").write_text("x")
        with pytest.raises(BusyError, match="a is being written by another run"), scratch_folder(tmp_path / ".cache/a"):
            pass
        raise RuntimeError
    with scratch_folder(tmp_path / ".cache/a") as scratch:
        assert list(scratch.iterdir()) == []
