"""What is drawn as the reason of an answer is its reason: shown on networks that we made, whose reasons we know."""

from importlib import import_module

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from networks import NAMES, example

from convoy.data.shards import Shards, write_shards
from convoy.data.vocabulary import UNKNOWN, Vocabulary
from convoy.errors import ConfigurationError
from convoy.model.predictor import Predictor
from stages.evaluate.evaluators import explain, graph, ngrams
from stages.evaluate.report import files as output

RNG = np.random.default_rng(0)


def network(x, *stack):
    """A model of ``x``, an input, and layers one after another."""
    y = x
    for layer in stack:
        y = layer(y)
    return keras.Model(x, y)


def looks_for_a_spot(rank, *between):
    """Class 1 is a bright spot: the middle of the filter is 1 and what is around it takes off."""
    convolution, average = {
        1: (layers.Conv1D, layers.GlobalAveragePooling1D),
        2: (layers.Conv2D, layers.GlobalAveragePooling2D),
        3: (layers.Conv3D, layers.GlobalAveragePooling3D),
    }[rank]
    filter_ = np.full((3,) * rank, -1 / 3**rank)
    filter_[(1,) * rank] = 1
    detector = convolution(1, 3, padding="same", activation="relu", use_bias=False)
    output = layers.Dense(2, "softmax")
    model = network(keras.Input((16,) * rank + (1,)), detector, *between, average(), output)
    detector.set_weights([filter_[..., None, None]])
    output.set_weights([np.array([[-1.0, 1.0]]), np.zeros(2)])
    return model


@pytest.mark.parametrize("rank", [2, 3])
def test_the_largest_heat_lies_on_the_spot_wherever_that_is(rank):
    places = RNG.integers(0, 16, (20, rank))
    examples = RNG.uniform(0, 20, (20, *(16,) * rank, 1)).astype(np.float32)
    for example_, place in zip(examples, places, strict=True):
        example_[tuple(place)] = 255
    heat = explain.grad_cam(looks_for_a_spot(rank), examples, np.ones(20, int))
    assert heat.shape == examples.shape[:-1]
    found = [np.unravel_index(one.argmax(), one.shape) for one in heat]
    np.testing.assert_array_equal(found, places)
    assert explain.grad_cam(looks_for_a_spot(rank), examples, np.zeros(20, int)).max() == 0  # nothing speaks for it


def test_a_unit_is_drawn_where_it_looks_though_windows_move_and_nothing_is_padded():
    shift = layers.Conv2D(1, 5, 3, "valid", use_bias=False)  # units 0 to 3 look at pixels 0..4 to 9..13 of 16
    model = network(keras.Input((16, 16, 1)), shift, layers.Flatten(), layers.Dense(2, "softmax"))
    shift.set_weights([np.ones((5, 5, 1, 1))])
    model.layers[-1].set_weights([np.tile([[0.0, 1.0]], (16, 1)), np.zeros(2)])
    for unit in (1, 2):  # the first and the last also stand for what is beyond their middle
        spot = np.zeros((1, 16, 16, 1), np.float32)
        spot[0, 3 * unit + 2, 8] = 1
        [heat] = explain.grad_cam(model, spot, np.array([1]))
        assert heat[:, 8].argmax() == 3 * unit + 2
        np.testing.assert_allclose(heat[:, 8] / heat.max(), np.maximum(0, 1 - abs(np.arange(16) - 3 * unit - 2) / 3))


@pytest.mark.parametrize("end", ["dense", "layer", "activation"])
def test_of_a_linear_end_grad_cam_is_the_sum_of_the_maps_with_the_weights_of_the_class(end):
    """Section 3.1 of the paper: with global average pooling it is CAM (Zhou et al. 2015) over the number of places."""
    ends = {
        "dense": [layers.Dense(3, "softmax")],
        "layer": [layers.Dense(3), layers.Softmax()],
        "activation": [layers.Dense(3), layers.Activation("softmax")],
    }
    maps = layers.Conv2D(4, 1, name="maps")
    model = network(keras.Input((5, 5, 2)), maps, layers.GlobalAveragePooling2D(), *ends[end])
    pictures = RNG.normal(size=(6, 5, 5, 2)).astype(np.float32)
    classes = np.arange(6) % 3
    kernel = next(layer for layer in model.layers if isinstance(layer, layers.Dense)).get_weights()[0]
    given = keras.Model(model.input, maps.output).predict(pictures, verbose=0)
    expected = np.maximum(np.einsum("nhwk,kn->nhw", given, kernel[:, classes]) / 25, 0)
    np.testing.assert_allclose(explain.grad_cam(model, pictures, classes), expected, atol=1e-6)


def test_certainty_does_not_put_the_heat_out():
    model = looks_for_a_spot(2)
    picture = np.full((1, 16, 16, 1), 1.0, np.float32)
    picture[0, 4, 9] = 1e6
    assert model.predict(picture, verbose=0)[0, 1] == 1.0  # float32: the derivative of the probability is 0
    assert explain.grad_cam(model, picture, np.array([1])).max() > 0


def test_the_map_is_the_last_of_a_convolution_before_pooling_with_what_belongs_to_it():
    picture = keras.Input((16, 16, 1))
    x = layers.Conv2D(2, 3, padding="same", name="a")(picture)
    x = layers.MaxPooling2D(name="a_pool")(layers.ReLU(name="a_relu")(x))
    y = layers.BatchNormalization()(layers.Conv2D(2, 3, padding="same", name="b")(x))
    x = layers.ReLU(name="sum")(x + y)
    branches = [layers.Conv2D(2, size, padding="same", name=f"c{size}")(x) for size in (1, 3)]
    x = layers.Concatenate(name="c")(branches)
    x = layers.Dropout(0.5)(layers.AveragePooling2D(2, name="c_pool")(x))
    x = layers.Conv2D(3, 4, name="one_place")(x)
    model = keras.Model(picture, layers.Dense(2, "softmax")(layers.Flatten()(x)))
    found = graph.feature_maps(model)
    assert [(node.operation.name, convolved) for node, convolved in found] == [
        ("a_relu", True), ("a_pool", False), ("sum", True), ("c", True), ("c_pool", False),
    ]  # fmt: skip # not c1 and c3, which stand side by side; nor one_place, whose map has no places


def text_cnn(**sizes):
    """A small text_cnn with biases that are not 0."""
    keras.utils.set_random_seed(0)
    model = import_module("stages.train.architectures.text_cnn").build(30, embedding=8, maps=6, **sizes)
    for layer in model.layers:
        if hasattr(layer, "bias"):
            layer.bias.assign(RNG.normal(size=layer.bias.shape))
    return model


@pytest.mark.parametrize("widths", [(3, 4, 5), (2,)])
def test_contributions_and_bias_sum_to_the_scores_of_every_sentence(widths):
    model = text_cnn(widths=widths, classes=3)
    tokens = RNG.integers(1, 30, (40, 12)) * (np.arange(12) < RNG.integers(1, 13, (40, 1)))
    sentences, windows, added = ngrams.window_contributions(model, tokens)
    pooled = layers.Concatenate()([model.get_layer(f"max{n}").output for n in widths]) if len(widths) > 1 else None
    part = keras.Model(model.input, model.get_layer("max2").output if pooled is None else pooled)
    output = model.get_layer("output")
    kernel, bias = output.get_weights()
    expected = part.predict(tokens, verbose=0) @ kernel + bias
    total = np.stack([np.bincount(sentences, one, 40) for one in added.T], axis=1) + bias
    np.testing.assert_allclose(total, expected, atol=1e-5)
    for sentence, window in zip(sentences, windows, strict=True):
        ngram = " ".join(map(str, window[window > 0]))
        assert f" {ngram} " in f" {' '.join(map(str, tokens[sentence][tokens[sentence] > 0]))} "
        assert 1 <= (window > 0).sum() <= max(widths)


def test_the_planted_phrase_is_the_first_n_gram_of_its_class():
    model = text_cnn(widths=(3,), classes=2)
    vectors = RNG.normal(size=(30, 8))
    phrases = {0: (7, 11, 13), 1: (20, 5, 9)}
    kernel, weights = np.zeros((3, 8, 6)), np.zeros((6, 2))
    for label, phrase in phrases.items():
        kernel[:, :, label] = vectors[list(phrase)]
        weights[label, label] = 1
    model.get_layer("embedding").set_weights([vectors])
    model.get_layer("conv3").set_weights([kernel, np.zeros(6)])
    model.get_layer("output").set_weights([weights, np.zeros(2)])
    tokens = RNG.integers(21, 30, (60, 10))
    for number, sentence in enumerate(tokens):
        start = RNG.integers(0, 8)
        sentence[start : start + 3] = phrases[number % 3 % 2]  # 40 and 20
    words = Vocabulary("words", [f"w{number}" for number in range(4, 30)])
    blocks = (ngrams.window_contributions(model, tokens[part]) for part in (slice(0, 25), slice(25, 60)))
    table = ngrams.ngrams(blocks, words, ["first", "second"])
    top = table.groupby("class").first()
    assert top["ngram"].tolist() == ["w7 w11 w13", "w20 w5 w9"]
    assert top["sentences"].tolist() == [40, 20]
    answer = [(vectors[list(phrase)] ** 2).sum() for phrase in phrases.values()]
    np.testing.assert_allclose(top["contribution"], answer, rtol=1e-5)  # nothing is likelier to win than itself
    np.testing.assert_allclose(top["total"], top["advantage"] * top["sentences"])
    assert table.groupby("class").size().max() <= ngrams.NGRAMS


def test_what_no_vocabulary_has_is_not_taken_for_a_question_mark():
    words, signs = Vocabulary("words", ["why", "?"]), Vocabulary("characters", ["a", " "])
    assert "".join(ngrams.readable(words, np.array([4, UNKNOWN, 5, 0, 0]))) == "why [unknown] ? "
    assert ngrams.readable(signs, np.array([4, 5, UNKNOWN])) == ["a", " ", "□"]


def test_examples_are_typical_right_ones_and_the_most_certain_errors():
    table = pd.DataFrame(
        {
            "label": list("aaaabbbc"),
            "correct": [True, True, True, False, True, True, False, False],
            "probability": [0.9, 0.5, 0.7, 0.8, 0.6, 0.9, 0.6, 0.95],
        }
    )
    assert explain.chosen(table, 5, 2).tolist() == [2, 5, 7, 3]
    assert explain.chosen(table, 1, 9).tolist() == [2, 7, 3, 6]


@pytest.fixture
def explained(tmp_path):
    """Explains a model, loaded from a file, for some random examples; returns the files and what is not there."""

    def run(model, kind, examples, folder="out"):
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        classes = [f"class {number}" for number in range(model.output_shape[-1])]
        takes = {"kind": kind, "classes": classes, "array": "text" if kind == "text" else "example"}
        rows = {"example": examples}
        if kind == "text":
            pieces = [f"w{number}" for number in range(4, 30)]
            takes |= {"text": Vocabulary("words", pieces).to_json(), "length": examples.shape[1]}
            rows = {
                "text": np.array([" ".join(f"w{token}" for token in row) for row in examples] + [None], object)[:-1]
            }
        labels = np.arange(len(examples)) % len(classes)
        write_shards(tmp_path / "test", [rows | {"label": labels, "content": np.zeros((len(examples), 32), np.uint8)}])
        found = model.predict(examples, verbose=0)
        table = pd.DataFrame({"label": [classes[label] for label in labels], "probability": found.max(axis=1)})
        table["predicted"] = [classes[place] for place in found.argmax(axis=1)]
        table["correct"] = table["label"] == table["predicted"]
        results = explain.explain(Predictor(loaded, takes), Shards(tmp_path / "test"), table)
        results.predictions = table
        output.write(results, tmp_path / folder, "m on d")
        return {path.name: path.read_bytes() for path in (tmp_path / folder).glob("*s/*.*")}, results.notes

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "conv_seq2seq"])
def test_every_architecture_can_be_explained_in_equal_bytes(name, explained):
    module = import_module(f"stages.train.architectures.{name}")
    sizes, inputs, _ = example(name, 16, 3)
    keras.utils.set_random_seed(0)
    model = module.build(**sizes)
    files, said = explained(model, module.KIND, inputs)
    assert said == []
    expected = {"images": ["activations.png", "filters.png", "gradcam.png"], "volumes": ["gradcam.png"]}
    expected["text"] = ["gradcam.png"] if name == "char_cnn" else ["ngrams.csv", "ngrams.png"]
    assert sorted(files) == expected[module.KIND]
    if name in ("lenet5", "text_cnn", "conv3d"):  # one of each kind; seconds
        assert explained(model, module.KIND, inputs, "again")[0] == files


def test_a_network_of_the_users_own_around_a_model_can_be_explained(explained):
    inner = network(keras.Input((None, None, 3)), layers.SeparableConv2D(4, 3), layers.Conv2D(4, 3, 2), layers.ReLU())
    picture = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(inner(layers.Conv2D(3, 1, name="first")(picture)))
    model = keras.Model(picture, layers.Dense(2, "sigmoid")(x))  # not softmax
    files, said = explained(model, "images", RNG.integers(0, 256, (4, 16, 16, 3), np.uint8))
    assert (sorted(files), said) == (["activations.png", "filters.png", "gradcam.png"], [])


def test_each_part_that_a_network_lacks_is_reported_in_a_line(explained):
    pictures = RNG.integers(0, 256, (4, 8, 8, 1), np.uint8)
    files, said = explained(
        network(keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2, "softmax")), "images", pictures
    )
    assert files == {}
    [first, second, third] = said
    assert first == "no filters: no layer is a convolution over pictures"
    assert "no activation maps: no convolution makes a feature map" in second
    assert "no Grad-CAM: no convolution makes a feature map" in third


def test_convolutions_over_fewer_axes_than_the_input_has_are_said():
    clip = keras.Input((4, 6, 6, 1))
    x = layers.Conv2D(3, 3)(layers.Reshape((24, 6, 1))(clip))
    network = keras.Model(clip, layers.Dense(2, "softmax")(layers.Flatten()(x)))
    with pytest.raises(ConfigurationError, match="see 2 axes of places, and its input has 3"):
        explain.grad_cam(network, np.zeros((1, 4, 6, 6, 1), np.uint8), np.array([0]))
