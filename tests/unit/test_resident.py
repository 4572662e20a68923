"""What TensorFlow holds gives the batches that are read from the shards."""

import keras
import numpy as np
import pytest

from convoy.data.shards import Shards, write_shards
from convoy.data.vocabulary import SPECIAL, Ragged
from stages.train.entry import Train
from stages.train.fit import resident
from stages.train.fit.batches import Labelled, Pairs
from stages.train.train import train

ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 3, "learning_rate": 0.01}


def equal(batches, examples):
    """Asserts that two epochs have the batches of ``batches``; returns the inputs of the first of each."""
    held, seen = resident.Held(batches, examples), []
    assert len(held.data) == len(batches)
    for epoch in (0, 1):
        held.reorder(epoch)
        found = list(held.data.as_numpy_iterator())
        expected = [batches[number] for number in range(len(batches))]
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
        seen.append(keras.tree.flatten(found[0])[0])
    return seen


@pytest.mark.parametrize("outputs", [["output"], ["output", "aux1"]])
def test_every_epoch_has_the_batches_of_the_shards_in_their_order(ready, outputs):
    shards = Shards(ready / "augment/bars/train")
    weights = np.array([1.0, 2.0], np.float32)
    batches = Labelled(shards, "image", outputs=outputs, class_weights=weights, batch=32, seed=3)
    first, second = equal(batches, shards.column("image"))
    assert [len(rows) for rows in batches.order()] == [32, 32, 16]
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("length", [None, 24])
def test_texts_are_filled_up_as_those_that_are_read(workspace, length):
    rng = np.random.default_rng(0)
    texts = Ragged.of([rng.integers(SPECIAL, 99, size) for size in [*[0] * 40, *rng.integers(0, 25, 300)]], None)
    write_shards(workspace / "texts", [{"label": np.arange(len(texts)) % 2}])
    batches = Labelled(
        Shards(workspace / "texts"), None, tokens=texts, length=length, outputs=["output"],
        class_weights=np.array([1.0, 2.0], np.float32), batch=16, seed=3,
    )  # fmt: skip
    equal(batches, None)
    assert len({batches[number][0].shape[1] for number in range(len(batches))}) == (1 if length else 6)


def test_both_sides_of_pairs_are_filled_up_as_those_that_are_read():
    rng = np.random.default_rng(0)
    source, target = (
        Ragged.of([rng.integers(SPECIAL, 99, size) for size in rng.integers(1, 40, 100)], None) for _ in range(2)
    )
    equal(Pairs(source, target, batch=16, seed=3), None)


@pytest.mark.parametrize("devices", [1, 3])
def test_pictures_are_streamed_several_batches_at_a_time(ready, monkeypatch, devices):
    shards, reads = Shards(ready / "augment/bars/train"), []
    batches = Labelled(
        shards, "image", outputs=["output"], class_weights=np.ones(2, np.float32), batch=16, seed=3, devices=devices
    )
    batches.reorder(1)
    expected = [batches[number] for number in range(len(batches))]
    monkeypatch.setattr("stages.train.fit.batches.TOGETHER", 2 * 16 * 12 * 12)
    monkeypatch.setattr(shards, "take", lambda *given: reads.append(given) or Shards.take(shards, *given))
    found = list(resident.streamed(batches).as_numpy_iterator())
    assert len(reads) == 2 + 3  # two tell the sizes, and five batches are read two by two
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_it_trains_the_same_model_byte_for_byte(ready, monkeypatch):
    content = []
    for most in (resident.MOST, 0):
        monkeypatch.setattr(resident, "MOST", most)
        train("one", Train(**ENTRY | {"batch": 9}))
        folder = ready / "train/bars/one"
        content.append([(folder / name).read_bytes() for name in ("model.keras", "history.csv")])
    assert content[0] == content[1]


def test_only_what_fits_is_held_by_tensorflow_alone_on_one_device(ready, monkeypatch):
    shards = Shards(ready / "augment/bars/train")
    size = len(shards) * 12 * 12
    assert resident.held(shards, "image", 1) == size
    assert resident.held(shards, "image", 2) == 0
    monkeypatch.setattr(resident, "MOST", size - 1)
    assert resident.held(shards, "image", 1) == 0
    monkeypatch.setattr(resident, "MOST", size)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert resident.held(shards, "image", 1) == 0
