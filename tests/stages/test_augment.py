import json

import numpy as np
import pytest

from convoy.data.shards import Shards
from convoy.errors import ConfigurationError
from stages.augment import images
from stages.augment.augment import _change, augment
from stages.augment.draws import Draws
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest


@pytest.fixture
def blob():
    """Eight grey pictures 21x31 with one bright blob whose centre, (6, 12), is known."""
    row, column = np.mgrid[:21, :31]
    picture = 250 * np.exp(-((row - 6) ** 2 + (column - 12) ** 2) / 8)
    return np.repeat(np.rint(picture).astype(np.uint8)[None, ..., None], 8, axis=0)


def centres(pictures):
    weights = pictures[..., 0].astype(float)
    row, column = np.mgrid[: weights.shape[1], : weights.shape[2]]
    total = weights.sum(axis=(1, 2))
    return np.stack([(weights * row).sum(axis=(1, 2)) / total, (weights * column).sum(axis=(1, 2)) / total], axis=1)


@pytest.fixture
def rng():
    return Draws(b"%d" % number for number in range(8))


def changed(blob, change):
    return images.resample(blob, change(images.identity(*blob.shape[:3])))


def test_the_identity_shows_every_picture_as_it_is():
    noise = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), np.uint8)
    np.testing.assert_array_equal(images.resample(noise, images.identity(5, 9, 7)), noise)


def test_shift_moves_by_at_most_the_given_pixels(blob, rng):
    moved = centres(changed(blob, lambda grid: images.shift(grid, 3, rng))) - [6, 12]
    assert np.all(np.abs(moved) <= 3.2)
    assert np.abs(moved).max() > 1
    assert len(np.unique(moved.round(3), axis=0)) == 8


def test_rotate_keeps_the_distance_from_the_centre(blob, rng):
    turned = centres(changed(blob, lambda grid: images.rotate(grid, 30, rng))) - [10, 15]
    angle = np.degrees(np.arctan2(turned[:, 0], turned[:, 1]) - np.arctan2(-4, -3)) % 360
    angle = np.where(angle > 180, angle - 360, angle)
    np.testing.assert_allclose(np.hypot(*turned.T), 5, atol=0.2)
    assert np.all(np.abs(angle) < 33)
    assert np.abs(angle).max() > 8


def test_scale_changes_the_distance_from_the_centre_within_the_share(blob, rng):
    scaled = centres(changed(blob, lambda grid: images.scale(grid, 0.2, rng))) - [10, 15]
    factor = np.hypot(*scaled.T) / 5
    assert np.all((factor > 0.77) & (factor < 1.23))
    assert np.ptp(factor) > 0.1


def test_elastic_displaces_smoothly_by_the_given_length(rng):
    grid = images.identity(8, 64, 64)
    field = images.elastic(grid, 2.0, 6.0, rng) - grid
    np.testing.assert_allclose(np.sqrt((field**2).mean(axis=(2, 3))), 2.0, rtol=1e-3)
    assert np.abs(np.diff(field, axis=3)).mean() < 0.1 * np.abs(field).mean() * 3


def test_flip_mirrors_about_half_of_the_allowed_and_no_other():
    rng = Draws(b"%d" % number for number in range(400))
    pictures = np.tile(np.arange(10, dtype=np.uint8)[None, None, :, None], (400, 4, 1, 1))
    allowed = np.arange(400) < 200
    result = images.resample(pictures, images.flip(images.identity(400, 4, 10), allowed, rng))
    mirrored = (result == pictures[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 70 < mirrored[:200].sum() < 130
    np.testing.assert_array_equal(result[200:], pictures[200:])


def test_erase_overwrites_at_most_the_share():
    rng = Draws(b"%d" % number for number in range(200))
    pictures = np.zeros((200, 20, 20, 1), np.uint8)
    share = (images.erase(pictures, 0.2, rng) > 0).mean(axis=(1, 2, 3))
    assert share.max() <= 0.25
    assert 0.03 < share.mean() < 0.12


def test_noise_has_the_given_deviation_and_keeps_the_range():
    rng = Draws(b"%d" % number for number in range(50))
    grey, white = np.full((50, 20, 20, 1), 128, np.uint8), np.full((50, 20, 20, 1), 255, np.uint8)
    assert abs(np.std(images.noise(grey, 9, rng).astype(float)) - 9) < 0.3
    assert images.noise(white, 9, rng).min() > 200


@pytest.fixture
def augmented(pictures):
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))

    def run(**options):
        augment("bars", Augment(**options))
        return Shards(pictures.parents[1] / "augment/bars/train")

    return run, Shards(pictures.parents[1] / "ingest/bars/train")


def test_the_originals_come_first_and_every_copy_keeps_its_label(augmented):
    run, train = augmented
    result = run(copies=3, seed=1, shift=2, rotate=10, scale=0.1, elastic=1, flip=["down"], erase=0.1, noise=5)
    n = len(train)
    assert len(result) == 4 * n
    np.testing.assert_array_equal(result[:n]["image"], train[:]["image"])
    np.testing.assert_array_equal(result[:]["label"], np.tile(train[:]["label"], 4))
    for copy in range(1, 4):
        images_differ = (result[copy * n : (copy + 1) * n]["image"] != train[:]["image"]).any(axis=(1, 2, 3))
        assert images_differ.all()


def test_a_copy_is_the_same_whatever_stands_beside_it():
    pictures = np.random.default_rng(0).integers(0, 256, (40, 20, 17, 3), np.uint8)
    keys, mirrored = [b"%d" % number for number in range(40)], np.arange(40) % 2 == 0
    changes = {"shift": 3, "rotate": 20, "scale": 0.2, "elastic": 1.5, "smoothness": 3, "erase": 0.2, "noise": 8}
    together = _change((pictures, mirrored, keys), "images", changes)
    for rows in ([7], [39, 0, 7], np.arange(1, 40, 2)):
        alone = _change((pictures[rows], mirrored[rows], [keys[row] for row in rows]), "images", changes)
        np.testing.assert_array_equal(alone, together[rows])


def test_large_pictures_are_changed_few_at_a_time(augmented, monkeypatch):
    run, train = augmented
    monkeypatch.setattr("stages.augment.augment.BLOCK_PIXELS", 3 * 12 * 12)
    monkeypatch.setattr("stages.augment.augment.SMALL", 10**6)  # threads, which see the function below
    sizes = []
    resample = images.resample
    monkeypatch.setattr(images, "resample", lambda pictures, grid: sizes.append(len(grid)) or resample(pictures, grid))
    run(copies=1, seed=0, shift=1)
    assert max(sizes) == 3
    assert sum(sizes) == len(train)


def test_the_seed_alone_decides(augmented, pictures):
    run, _ = augmented
    options = {"copies": 2, "shift": 2, "noise": 5, "elastic": 1, "erase": 0.1}
    first, again, other = (run(seed=seed, **options)[:]["image"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_all_changes_off_gives_exact_copies(augmented):
    run, train = augmented
    result = run(copies=1, seed=0)
    np.testing.assert_array_equal(result[len(train) :]["image"], train[:]["image"])


def test_fault_36_only_training_data_is_read_and_written(augmented, pictures):
    run, train = augmented
    run(copies=1, seed=0)
    folder = pictures.parents[1] / "augment/bars"
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "key.json", "train"]
    assert json.loads((folder / "about.json").read_text())["classes"] == ["across", "down"]
    assert len(Shards(folder / "train")) == 2 * len(train)


def test_a_class_that_does_not_exist_cannot_be_flipped(augmented):
    run, _ = augmented
    with pytest.raises(ConfigurationError, match=r"flip names \['up'\]. Classes: across, down"):
        run(copies=1, seed=0, flip=["up"])
