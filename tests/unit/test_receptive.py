"""Receptive fields have the published sizes, and are what a change of the input shows."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from convoy.errors import ConfigurationError
from stages.evaluate.evaluators.receptive import Everything, central, receptive_fields, table
from stages.train.architectures import alexnet, char_cnn, conv3d, googlenet, lenet5, plain_cnn, resnet, text_cnn

PUBLISHED = [  # model, layer, pixels: Araujo, Norris and Sim 2019, table 1 (google-research/receptive_field)
    (lambda: keras.applications.VGG16(weights=None), "block5_pool", 212),
    (lambda: keras.applications.ResNet50(weights=None), "conv5_block3_out", 483),
    (lambda: keras.applications.MobileNet(weights=None), "conv_pw_13_relu", 315),
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "layer", "pixels"), PUBLISHED)
def test_has_the_published_size(build, layer, pixels):
    assert [axis.field for axis in receptive_fields(build())[layer]] == [pixels, pixels]


def seen_by_trial(model, layer, place):
    """First and last input row on which a unit of ``layer`` depends: those where an infinite derivative arrives."""
    import tensorflow as tf

    part = keras.Model(model.input, model.get_layer(layer).output)
    for weight in part.weights:
        weight.assign(np.full(weight.shape, 0.01, np.float32))
    x = tf.Variable(np.random.default_rng(0).uniform(1, 2, (1, *model.input_shape[1:])).astype(np.float32))
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(part(x)[(0, *place)])
    rows = np.flatnonzero(np.abs(tape.gradient(y, x).numpy()[0]).sum(axis=(1, 2)))
    return rows.min(), rows.max()


@pytest.mark.slow
@pytest.mark.parametrize("size", [31, 32, 33])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_is_what_a_change_of_the_input_shows(size, padding):
    image = keras.Input((size, size, 1))
    x = layers.Conv2D(2, 5, 2, padding, name="a")(image)
    y = layers.Conv2D(2, 3, 1, "same", dilation_rate=2, name="b")(x)
    x = layers.Concatenate(name="c")([x, y])
    x = layers.AveragePooling2D(3, 2, padding, name="d")(layers.ZeroPadding2D(1)(x))
    model = keras.Model(image, layers.Cropping2D(1, name="e")(x))
    fields = receptive_fields(model)
    for layer in "abcde":
        axis = fields[layer][0]
        expected = {
            place: (place * axis.jump + axis.first, place * axis.jump + axis.last) for place in range(axis.size)
        }
        inside = {place: edges for place, edges in expected.items() if edges[0] >= 0 and edges[1] < size}
        assert inside
        for place, edges in inside.items():
            assert seen_by_trial(model, layer, (place, axis.size // 2)) == edges, (layer, place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        (alexnet, {"input_shape": (32, 32, 1), "stem": "small", "width": 0.1}),
        (googlenet, {"input_shape": (32, 32, 1), "stem": "small", "width": 0.1}),
        (resnet, {"input_shape": (32, 32, 1), "stem": "cifar", "depth": 20, "width": 0.25}),
        (resnet, {"depth": 18, "width": 0.1}),
        (text_cnn, {"words": 30}),
        (char_cnn, {"words": 30, "length": 123, "width": 0.1}),
        (googlenet, {"input_shape": (32, 32, 1), "stem": "small", "width": 0.1, "antialias": True}),
        (resnet, {"input_shape": (32, 32, 1), "stem": "cifar", "depth": 8, "width": 0.25, "antialias": True}),
        (conv3d, {"input_shape": (8, 16, 16, 1), "stem": "small", "depth": 10, "width": 0.1}),
        (conv3d, {"input_shape": (8, 16, 16, 1), "style": "stack", "width": 0.1, "units": 100}),
    ],
)
def test_a_loaded_model_has_those_of_the_built_one_in_every_layer(module, sizes, tmp_path):
    model = module.build(**sizes)
    model.save(tmp_path / "model.keras")
    fields = table(receptive_fields(model))
    pd.testing.assert_frame_equal(table(receptive_fields(keras.saving.load_model(tmp_path / "model.keras"))), fields)
    operations = {operation.name for operation in model.operations if not isinstance(operation, layers.InputLayer)}
    assert set(fields["layer"]) == operations
    seen = set(fields.loc[fields["field"].str.contains("[0-9]"), "layer"])
    assert {layer.name for layer in model.layers if "conv" in type(layer).__name__.lower()} <= seen


@pytest.mark.slow
def test_the_fields_of_our_architectures():
    fields = receptive_fields(resnet.build(depth=50, width=0.1))
    assert fields["average"] is not None
    assert isinstance(fields["average"], Everything)
    plain = plain_cnn.build()
    [flat] = [layer.name for layer in plain.layers if isinstance(layer, layers.Flatten)]
    assert isinstance(receptive_fields(plain)[flat], Everything)
    assert len(table(receptive_fields(googlenet.build(width=0.1)))) > 100
    fields = receptive_fields(lenet5.build())
    shown = table(fields).set_index("layer")
    assert shown.loc[["c1", "s2", "c3", "s4", "c5"], "field"].tolist() == [
        "5 x 5", "6 x 6", "14 x 14", "16 x 16", "all",
    ]  # fmt: skip # by hand: 5, + 1, + 4 * 2, + 2
    assert central(fields)["s4"] == [(8, 23), (8, 23)]  # unit 2 of 5
    assert "output" not in central(fields)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (layers.UpSampling2D(name="up"), "the layer up is a UpSampling2D, whose receptive field is not known"),
        (lambda x: keras.ops.cumsum(x, axis=1), "is a Cumsum, whose receptive field is not known"),
        (layers.Softmax(axis=1, name="soft"), "the layer soft is a Softmax along another axis than that of the maps"),
        (layers.LayerNormalization(axis=[1, 2, 3], name="norm"), "norm is a LayerNormalization along another axis"),
    ],
)
def test_a_layer_whose_windows_are_not_known_is_named(layer, said):
    image = keras.Input((8, 8, 1))
    with pytest.raises(ConfigurationError, match=said):
        receptive_fields(keras.Model(image, layer(image)))
    words = receptive_fields(text_cnn.build(50))
    assert [words[f"conv{n}"][0].field for n in (3, 4, 5)] == [3, 4, 5]
    assert words["conv3"][0].size is None
