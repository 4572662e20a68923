"""Each corruption changes more from level to level, and nothing where there is nothing to change."""

import keras
import numpy as np
import pytest
from keras import layers

from convoy.data.shards import objects
from convoy.model.predictor import Predictor
from stages.evaluate.evaluators.changed import Sample
from stages.evaluate.evaluators.robustness import (
    LEVELS,
    PICTURES,
    SIDE,
    blur,
    contrast,
    corruptions,
    noise,
    pixelation,
    typing,
)


def photos(*shape):
    """Smooth random pictures, whose spectrum falls as that of photos does."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(*(np.fft.fftfreq(side) for side in shape[-3:-1]), indexing="ij")
    fall = 1 / (np.hypot(rows, columns) + 0.02)
    spectrum = np.fft.fft2(rng.normal(size=shape), axes=(-3, -2)) * fall[..., None]
    pictures = np.fft.ifft2(spectrum, axes=(-3, -2)).real
    pictures -= pictures.min()
    return (pictures * 255 / pictures.max()).astype(np.uint8)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("shape", [(4, 32, 32, 1), (3, 40, 64, 3), (2, 5, 16, 16, 1)])
def test_every_level_changes_more_than_the_one_before(name, shape):
    pictures = photos(*shape)
    changed = [PICTURES[name](pictures, level) for level in LEVELS]
    assert all(one.shape == shape and one.dtype == np.uint8 for one in changed)
    errors = [np.mean((one.astype(float) - pictures) ** 2) for one in changed]
    assert errors[0] >= 0
    assert errors == sorted(errors)
    assert errors[-1] > errors[0]
    again = PICTURES[name](pictures, 3)
    np.testing.assert_array_equal(again, changed[2])


def test_a_frame_is_changed_as_a_picture_is():
    clip = photos(1, 5, 16, 16, 1)
    for corrupt in (blur, contrast, pixelation):
        np.testing.assert_array_equal(corrupt(clip, 4)[0], corrupt(clip[0], 4))


def test_an_even_picture_has_nothing_to_blur_pale_or_coarsen():
    even = np.full((2, 20, 24, 3), 77, np.uint8)
    for corrupt in (blur, contrast, pixelation):
        np.testing.assert_array_equal(corrupt(even, 5), even)


def test_noise_has_the_published_strength_and_contrast_the_published_rest():
    grey = np.full((8, 64, 64, 1), 128, np.uint8)
    assert noise(grey, 5).std() == pytest.approx(0.10 * 255, rel=0.02)
    halves = np.repeat(np.array([28, 228], np.uint8), 32)[None, None, :, None] * np.ones((1, 64, 1, 1), np.uint8)
    assert sorted(set(contrast(halves, 2).ravel().tolist())) == [78, 178]


def test_pixelation_leaves_as_many_different_rows_as_it_says():
    picture = np.repeat(np.arange(SIDE, dtype=np.uint8)[:, None] * 8, SIDE, axis=1)[None, ..., None]
    assert len(np.unique(pixelation(picture, 5)[0, :, 0, 0])) == int(0.65 * SIDE)
    # A chess board of single pixels is what a coarser one cannot show
    board = (np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, ..., None]
    assert pixelation(board, 5).std() < board.std()


def test_typing_errors_keep_letters_and_length_and_become_more():
    texts = objects(["the quick brown fox jumps over the lazy dog " * 3, "ab", "a", ""])
    before = None
    for level in LEVELS:
        found = typing(texts, level)
        assert [sorted(text) for text in found] == [sorted(text) for text in texts]
        wrong = sum(a != b for a, b in zip(found[0], texts[0], strict=True))
        assert before is None or wrong >= before
        before = wrong
    assert before > 0


def test_what_is_not_looked_at_costs_nothing_and_what_is_does():
    image = keras.Input((SIDE, SIDE, 1))
    darkest = layers.Flatten()(layers.GlobalMaxPooling2D()(-keras.ops.cast(image, "float32")))
    outputs = {
        "nothing": layers.Softmax()(layers.Concatenate()([0 * darkest, 0 * darkest + 1])),
        "contrast": layers.Softmax()(layers.Concatenate()([darkest * 0 - 40, darkest])),  # does any pixel lie below 40?
    }
    pictures = np.full((20, SIDE, SIDE, 1), 255, np.uint8)
    pictures[:, : SIDE // 2] = 0
    names = np.array(["yes"] * 20, object)
    for looked, output in outputs.items():
        predictor = Predictor(
            keras.Model(image, output), {"kind": "images", "classes": ["no", "yes"], "array": "image"}
        )
        metrics, table = corruptions(Sample(predictor, "image", pictures, names, names))
        assert len(table) == 1 + len(PICTURES) * len(LEVELS)
        found = table.set_index(["corruption", "level"])["accuracy"]
        if looked == "nothing":
            assert metrics == {"robust_accuracy": 1.0}
        else:
            assert found["contrast"].tolist() == [1, 0, 0, 0, 0]  # 0 becomes 32 at level 1, 64 at level 2
            assert metrics["robust_accuracy"] == pytest.approx(table["accuracy"][1:].mean())
            assert found["none", 0] == 1
