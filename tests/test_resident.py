"""What TensorFlow holds gives the batches that are read from the shards."""

import keras
import numpy as np
import pytest

from stages.shards import Shards
from stages.train import resident
from stages.train.batches import Labelled
from stages.train.train import train

ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 3, "learning_rate": 0.01}


@pytest.mark.parametrize("outputs", [["output"], ["output", "aux1"]])
def test_every_epoch_has_the_batches_of_the_shards_in_their_order(ready, outputs):
    shards = Shards(ready / "augment/bars/train")
    weights = np.array([1.0, 2.0], np.float32)
    batches = Labelled(shards, "image", outputs=outputs, class_weights=weights, batch=32, seed=3)
    data = resident.dataset(batches, shards.column("image"))
    assert len(data) == len(batches) == 3
    seen = []
    for epoch in (0, 1):
        batches.reorder(epoch)
        found = list(data.as_numpy_iterator())
        expected = [batches[number] for number in range(len(batches))]
        assert [len(one[0]) for one in found] == [32, 32, 16]
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
        seen.append(found[0][0])
    assert not np.array_equal(*seen)


def test_it_trains_the_same_model_byte_for_byte(ready, monkeypatch):
    content = []
    for most in (resident.MOST, 0):
        monkeypatch.setattr(resident, "MOST", most)
        train("one", **ENTRY | {"batch": 9})
        folder = ready / "train/bars/one"
        content.append([(folder / name).read_bytes() for name in ("model.keras", "history.csv")])
    assert content[0] == content[1]


def test_only_what_fits_is_held_by_tensorflow_alone_on_one_device(ready, monkeypatch):
    shards = Shards(ready / "augment/bars/train")
    size = len(shards) * 12 * 12
    assert resident.held(shards, "image", 1) == size
    assert resident.held(shards, "image", 2) == 0
    assert resident.held(shards, None, 1) == 0
    monkeypatch.setattr(resident, "MOST", size - 1)
    assert resident.held(shards, "image", 1) == 0
    monkeypatch.setattr(resident, "MOST", size)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert resident.held(shards, "image", 1) == 0
