"""Shift consistency of networks whose answers are known; slices that divide all examples."""

import json
from importlib import import_module

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from convoy.data.shards import Shards, objects
from convoy.data.vocabulary import Vocabulary
from convoy.model.predictor import Predictor
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.evaluate.entry import Evaluate
from stages.evaluate.evaluate import evaluate
from stages.evaluate.evaluators.changed import Sample
from stages.evaluate.evaluators.invariance import exchanged, filled, moved, shifts
from stages.evaluate.evaluators.slices import parts, slices
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.train.entry import Train
from stages.train.train import train

SIDE = 16  # of pictures, which therefore move by up to 2 pixels


def sample(network, array, examples, **takes):
    kind = {"image": "images", "volume": "volumes", "text": "text"}[array]
    predictor = Predictor(network, {"kind": kind, "classes": ["no", "yes"], "array": array, **takes})
    labels = predicted = np.array(["yes"] * len(examples), object)
    return Sample(predictor, array, examples, labels, predicted)


def spots(n, *depth):
    """Returns black pictures, or volumes, with one white pixel, or line, in the middle."""
    pictures = np.zeros((n, *depth, SIDE, SIDE, 1), np.uint8)
    pictures[..., SIDE // 2, SIDE // 2, :] = 255
    return pictures


def largest(rank):
    """A network that says "yes" to something bright, wherever it is."""
    image = keras.Input((4,) * (rank - 2) + (SIDE, SIDE, 1))
    dimension = f"{rank}D"
    x = getattr(layers, f"Conv{dimension}")(1, 3, padding="same", kernel_initializer="ones")(image)
    x = getattr(layers, f"GlobalMaxPooling{dimension}")()(x)
    return keras.Model(image, layers.Softmax()(layers.Concatenate()([keras.ops.full_like(x, 100.0), x])))


def one_pixel():
    """A network that says "yes" to a bright pixel in the middle."""
    image = keras.Input((SIDE, SIDE, 1))
    x = layers.Flatten()(layers.Cropping2D(((SIDE // 2, SIDE // 2 - 1),) * 2)(image))
    return keras.Model(image, layers.Softmax()(layers.Concatenate()([keras.ops.full_like(x, 100.0), x])))


@pytest.mark.parametrize("array", ["image", "volume"])
def test_a_network_that_takes_the_largest_answer_is_the_same_at_every_shift(array):
    network, examples = (largest(2), spots(40)) if array == "image" else (largest(3), spots(40, 4))
    metrics, table = shifts(sample(network, array, examples))
    assert metrics == {"shift_consistency": 1.0}
    assert table["change"].tolist() == ["shift"] * 3
    assert table["distance"].tolist() == [0, 1, 2]
    assert table["accuracy"].tolist() == table["consistency"].tolist() == [1, 1, 1]


def test_a_network_that_looks_at_one_pixel_is_not():
    chosen = sample(one_pixel(), "image", spots(512))
    metrics, table = shifts(chosen)
    assert table["accuracy"].tolist() == [1, 0, 0]
    assert table["consistency"].tolist() == [1, 0, 0]
    # Of 25 places one is the middle: both shifts lead there, or neither does
    assert metrics["shift_consistency"] == pytest.approx((1 / 25) ** 2 + (24 / 25) ** 2, abs=0.04)
    again, table_again = shifts(chosen)
    assert again == metrics
    pd.testing.assert_frame_equal(table, table_again)


def test_what_comes_into_view_continues_the_edge():
    picture = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
    down = moved(picture, np.array([[1, 0]]))[0, ..., 0]
    assert down.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    left = moved(picture, np.array([[0, -2]]))[0, ..., 0]
    assert left.tolist() == [[2, 3, 3, 3], [6, 7, 7, 7], [10, 11, 11, 11]]
    volume = np.stack([picture[0], picture[0] + 20])[None]
    found = moved(volume, np.array([[1, 0]]))
    assert found.shape == volume.shape
    assert found[0, 0, ..., 0].tolist() == down.tolist()
    assert found[0, 1, ..., 0].tolist() == (down + 20).tolist()


def test_a_shift_inside_an_empty_margin_changes_nothing_but_the_place():
    rng = np.random.default_rng(0)
    pictures = np.zeros((5, 9, 9, 3), np.uint8)
    pictures[:, 3:6, 3:6] = rng.integers(0, 256, (5, 3, 3, 3))
    steps = rng.integers(-3, 4, (5, 2))
    expected = [np.roll(picture, step, (0, 1)) for picture, step in zip(pictures, steps.tolist(), strict=True)]
    np.testing.assert_array_equal(moved(pictures, steps), expected)


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_filling_moves_a_text_by_as_many_unknown_tokens(unit):
    known = Vocabulary(unit, ["a", "b", " "])
    [row] = known.encode(filled(objects(["a b"]), np.array([2]), 5))
    [plain] = known.encode(["a b"])
    assert row.tolist() == [1, 1, *plain.tolist(), 1, 1, 1]  # 1: UNKNOWN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is long, but good", "but good it is long,"),
        ("no. never! not", "never! not no."),
        ("one two three four five", "three four five one two"),
        ("word", "word"),
    ],
)
def test_the_first_phrase_is_put_last(text, expected):
    [found] = exchanged(objects([text]))
    assert found.split() == expected.split()


def test_texts():
    words = ["good", "bad", "film", "the", ","]
    takes = {"length": 40, "text": Vocabulary("words", words).to_json()}
    texts = objects(f"{'the ' * (number % 5)}good , film" for number in range(40))
    keras.utils.set_random_seed(0)
    # Windows of one word: whatever the order of the words, the largest answers are the same ones
    kim = import_module("stages.train.architectures.text_cnn").build(9, widths=(1,), embedding=8, maps=4)
    chosen = sample(kim, "text", texts, **takes)
    chosen = Sample(chosen.predictor, "text", texts, chosen.labels, chosen.answers(texts))
    metrics, table = shifts(chosen)
    assert metrics == {"shift_consistency": 1.0, "phrase_consistency": 1.0}
    assert table["change"].tolist() == ["shift"] * 9 + ["phrases"]
    tokens = keras.Input((None,), dtype="int32")
    x = keras.ops.cast(keras.ops.equal(tokens[:, :1], 7), "float32")  # "the" comes first
    first = keras.Model(tokens, layers.Softmax()(layers.Concatenate()([x, 1 - x])))
    chosen = sample(first, "text", texts, **takes)
    chosen = Sample(chosen.predictor, "text", texts, chosen.labels, chosen.answers(texts))
    metrics, table = shifts(chosen)
    the = np.mean([number % 5 > 0 for number in range(40)])
    assert table.set_index("distance")["consistency"][1] == pytest.approx(1 - the)
    assert metrics["phrase_consistency"] == pytest.approx(1 - the)
    assert metrics["shift_consistency"] < 1


def test_slices_divide_the_examples():
    manifest = pd.DataFrame(
        {
            "path": [f"{'hospital' if n % 4 else 'practice'}/{n}.png" for n in range(30)],
            "label": ["ill" if n % 2 else "well" for n in range(30)],
            "height": [n // 3 + 1 for n in range(30)],
            "width": [10] * 30,
        }
    )
    right = np.arange(30) >= 10
    table = slices(parts(manifest), right)
    assert (table.groupby("slice")["examples"].sum() == 30).all()
    assert set(table["slice"]) == {"class", "pixels", "source"}
    sizes = table[table["slice"] == "pixels"].set_index("value")
    assert sizes["examples"].to_dict() == {"10 to 30": 9, "40 to 70": 12, "80 to 100": 9}  # equal ones stay together
    assert sizes["accuracy"].tolist() == [0, pytest.approx(11 / 12), 1]
    assert table.loc[table["value"] == "practice", "examples"].item() == 8
    right_ones = (table["examples"] * table["accuracy"]).groupby(table["slice"]).sum()
    np.testing.assert_allclose(right_ones, right.sum())
    assert (table["low"] <= table["accuracy"] + 1e-9).all()
    assert (table["accuracy"] <= table["high"] + 1e-9).all()


def test_a_source_or_size_that_says_nothing_new_is_no_slice():
    manifest = pd.DataFrame({"path": ["a/1", "b/2", "b/3"], "label": ["x", "y", "y"], "characters": [5, 5, 5]})
    assert set(slices(parts(manifest), np.array([True, False, True]))["slice"]) == {"class"}
    manifest["path"] = ["one.csv#1", "one.csv#2", "two.csv#1"]
    table = slices(parts(manifest), np.array([True, False, True])).set_index("slice")
    assert table.loc["source", "value"].tolist() == ["one.csv", "two.csv"]


@pytest.mark.slow
def test_evaluate_writes_them_twice_alike(pictures):
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    augment("bars", Augment(copies=0, seed=0))
    train("small", Train(dataset="bars", architecture="plain_cnn", sizes={"width": 0.1}, epochs=2, learning_rate=0.01))
    folder, found = pictures.parents[1] / "evaluate/bars/small", []
    for _ in range(2):
        evaluate("small", Evaluate(dataset="bars"))
        tables = [(folder / "tables" / f"{name}.csv").read_bytes() for name in ("shifts", "corruptions", "slices")]
        found.append([(folder / "metrics.json").read_bytes(), *tables])
    assert found[0] == found[1]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["shift_consistency"] <= 1
    assert 0 <= metrics["robust_accuracy"] <= 1
    table = pd.read_csv(folder / "tables/slices.csv")
    n = len(Shards(pictures.parents[1] / "ingest/bars/test"))
    assert (table.groupby("slice")["examples"].sum() == n).all()
    whole = pd.read_csv(folder / "tables/corruptions.csv").query("level == 0")
    assert whole["accuracy"].item() == metrics["accuracy"]  # there are fewer examples than are chosen at most
