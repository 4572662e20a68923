"""Augmentation on the fly: the changes of pictures, and that they happen in training alone."""

import json

import keras
import numpy as np
import pandas as pd
import pytest

from convoy.data.shards import Shards
from convoy.errors import ConfigurationError
from stages.train.entry import Train
from stages.train.fit.augmentation import RandomAffine
from stages.train.train import train

ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 2, "learning_rate": 0.01}


def changed(pictures, **changes):
    return np.asarray(RandomAffine(**changes)(pictures, training=True))


@pytest.fixture
def spots():
    """200 pictures of 9x9 in two colours, whose middle and one neighbour to its right are bright."""
    found = np.zeros((200, 9, 9, 2), np.uint8)
    found[:, 4, 4] = 200
    found[:, 4, 5] = 100
    return found


def test_nothing_is_changed_outside_of_training_or_where_nothing_is_asked(spots):
    np.testing.assert_array_equal(np.asarray(RandomAffine(shift=3, noise=9, flip=1)(spots)), spots)
    np.testing.assert_array_equal(changed(spots), spots)


def test_a_shift_is_at_most_so_many_pixels_and_every_picture_has_its_own(spots):
    found = changed(spots, shift=2.0)[..., 0]
    mass = found.sum(axis=(1, 2))
    np.testing.assert_allclose(mass, 300, rtol=1e-4)
    rows, columns = (np.tensordot(found.sum(axis=axis), np.arange(9), 1) / mass for axis in (2, 1))
    for place, middle in ((rows, 4), (columns, 4 + 1 / 3)):
        moved = place - middle
        assert np.abs(moved).max() <= 2.001
        assert moved.min() < -1.5
        assert moved.max() > 1.5
        assert len(np.unique(moved.round(4))) > 190
        assert abs(moved.mean()) < 0.3


def test_a_mirror_is_exact_and_of_the_asked_share(spots):
    whole = changed(spots, flip=1.0)
    np.testing.assert_allclose(whole, spots[:, :, ::-1], atol=1e-3)
    some = changed(spots, flip=0.25)[:, 4, 3, 0] > 50
    assert 0.15 < some.mean() < 0.35


def test_a_turn_and_a_size_keep_the_middle(spots):
    found = changed(spots, rotate=90.0, scale=0.3)
    np.testing.assert_allclose(found[:, 4, 4], 200, atol=1e-2)
    above, below = (found[:, row, 4, 0] > 40 for row in (3, 5))  # where a quarter turn moves the neighbour
    assert above.any()
    assert below.any()
    larger = changed(spots, scale=0.5)[..., 0].sum(axis=(1, 2))
    assert larger.min() < 250
    assert larger.max() > 400


def test_what_lies_beyond_the_edge_is_the_edge():
    found = changed(np.full((20, 9, 9, 1), 80, np.uint8), shift=4.0, rotate=45.0, scale=0.5)
    np.testing.assert_allclose(found, 80, atol=1e-3)


def test_noise_has_its_deviation_and_stays_within_the_grey_levels():
    found = changed(np.full((50, 9, 9, 1), 128, np.uint8), noise=10.0)
    assert found.std() == pytest.approx(10, rel=0.1)
    dark = changed(np.zeros((50, 9, 9, 1), np.uint8), noise=10.0)
    assert dark.min() == 0


@pytest.mark.parametrize("changes", [{"scale": 1.0}, {"flip": 1.5}])
def test_a_share_above_all_is_refused(changes):
    [name] = changes
    with pytest.raises(ConfigurationError, match=f"augmentation: {name} = .* is a share"):
        Train(**ENTRY | {"augmentation": changes}).check_kind("here", "images")


@pytest.mark.slow
def test_a_training_is_changed_by_it_repeats_and_stores_the_network_alone(ready):
    content = {}
    asked = {"shift": 1.0, "rotate": 5, "flip": 0.5, "noise": 5}
    for name, changes in (("a", asked), ("b", asked), ("c", {})):
        train(name, Train(**ENTRY | {"augmentation": changes, "patience": 2, "ema": 0.5}))
        folder = ready / "train/bars" / name
        content[name] = (folder / "model.keras").read_bytes(), (folder / "history.csv").read_bytes()
    assert content["a"] == content["b"]
    assert content["a"][0] != content["c"][0]
    model = keras.saving.load_model(ready / "train/bars/a/model.keras")
    assert [layer.name for layer in model.layers][:2] == ["image", "rescaling"]
    val, history = Shards(ready / "ingest/bars/val"), pd.read_csv(ready / "train/bars/a/history.csv")
    found = model.predict(val[:]["image"], verbose=0)[np.arange(len(val)), val.column("label")]
    assert -np.log(found).mean() == pytest.approx(history["val_loss"].min(), rel=1e-4)
    assert json.loads((ready / "train/bars/a/run.json").read_text())["parameters"] == model.count_params()


@pytest.mark.slow
def test_heads_of_their_own_are_trained_on_what_was_changed(ready):
    sizes = {"stem": "small", "width": 0.06}
    train(
        "inception",
        Train(**ENTRY | {"architecture": "googlenet", "sizes": sizes, "epochs": 1, "augmentation": {"shift": 1}}),
    )
    history = pd.read_csv(ready / "train/bars/inception/history.csv")
    assert np.isfinite(history.to_numpy()).all()
