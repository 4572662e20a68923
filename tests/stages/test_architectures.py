"""Numbers from the papers, torchvision and arithmetic; never from a run of ours."""

import math
import subprocess
import sys
from importlib import import_module

import keras
import numpy as np
import pytest
from networks import NAMES, SMALL, build, example

PUBLISHED = [  # name, sizes, trainable parameters
    ("lenet5", {}, 61_706),  # by hand: 156 + 2416 + 48120 + 10164 + 850
    ("plain_cnn", {}, 1_199_882),  # the summary() in the course notes
    ("alexnet", {"groups": 1}, 62_378_344),  # by hand, from figure 2
    ("alexnet", {"groups": 2}, 60_965_224),  # Caffe's bvlc_alexnet
    ("googlenet", {}, 6_998_552),  # by hand, from table 1, with biases
    ("resnet", {"depth": 18}, 11_689_512),  # torchvision
    ("resnet", {"depth": 34}, 21_797_672),  # torchvision
    ("resnet", {"depth": 50}, 25_557_032),  # torchvision
    ("resnet", {"depth": 101}, 44_549_160),  # torchvision
    ("resnet", {"depth": 152}, 60_192_808),  # torchvision
    ("text_cnn", {"words": 5, "classes": 2}, 5 * 300 + (3 + 4 + 5) * 300 * 100 + 300 + 600 + 2),  # section 3.1
    # Tables 1 and 2: 6 convolutions, 34 frames left of 1014, two hidden layers
    ("char_cnn", {"words": 74, "classes": 4}, 125_696 + 459_008 + 4 * 196_864 + 8_913_920 + 1_049_600 + 4_100),
    (
        "char_cnn",
        {"words": 74, "classes": 4, "features": 1024, "units": 2048},
        (7 * 70 + 1) * 1024
        + (7 * 1024 + 1) * 1024
        + 4 * (3 * 1024 + 1) * 1024
        + (34 * 1024 + 1) * 2048
        + (2048 + 1) * 2048
        + (2048 + 1) * 4,
    ),
    ("conv3d", {}, 33_371_472),  # torchvision's r3d_18
    ("conv3d", {"style": "stack", "classes": 101}, 78_409_573),  # by hand, from figure 3
]
ANTIALIASED = ["alexnet", "conv3d", "googlenet", "lenet5", "plain_cnn", "resnet"]  # those that take every second place
CIFAR = [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]  # depth, millions: table 6 of 1512.03385

OUTPUTS = [  # name, sizes, layer, output size
    ("lenet5", {}, [("c1", (28, 28, 6)), ("s2", (14, 14, 6)), ("c3", (10, 10, 16)), ("s4", (5, 5, 16))]),  # figure 2
    ("plain_cnn", {}, [("conv1", (26, 26, 32)), ("conv2", (24, 24, 64)), ("pool", (12, 12, 64))]),
    (
        "alexnet",
        {},
        [  # figure 2
            ("conv1", (55, 55, 96)),
            ("pool1", (27, 27, 96)),
            ("conv2", (27, 27, 256)),
            ("pool2", (13, 13, 256)),
            ("conv3", (13, 13, 384)),
            ("conv4", (13, 13, 384)),
            ("conv5", (13, 13, 256)),
            ("pool5", (6, 6, 256)),
            ("fc6", (4096,)),
            ("fc7", (4096,)),
        ],
    ),
    (
        "googlenet",
        {"heads": True},
        [  # table 1, column "output size"
            ("conv1", (112, 112, 64)),
            ("pool1", (56, 56, 64)),
            ("conv2", (56, 56, 192)),
            ("pool2", (28, 28, 192)),
            ("3a", (28, 28, 256)),
            ("3b", (28, 28, 480)),
            ("pool3", (14, 14, 480)),
            ("4a", (14, 14, 512)),
            ("4b", (14, 14, 512)),
            ("4c", (14, 14, 512)),
            ("4d", (14, 14, 528)),
            ("4e", (14, 14, 832)),
            ("pool4", (7, 7, 832)),
            ("5a", (7, 7, 832)),
            ("5b", (7, 7, 1024)),
            ("average", (1024,)),
            ("auxiliary_4a", (1000,)),
            ("auxiliary_4d", (1000,)),
        ],
    ),
    (
        "char_cnn",
        {"words": 74},
        [("pool1", (336, 256)), ("pool2", (110, 256)), ("conv5", (104, 256)), ("flatten", (34 * 256,))],
    ),  # table 1 and section 2.3: (1014 - 96) / 27
    (
        "conv3d",
        {"style": "stack"},
        [
            ("pool1", (16, 56, 56, 64)),
            ("pool2", (8, 28, 28, 128)),
            ("pool3", (4, 14, 14, 256)),
            ("pool4", (2, 7, 7, 512)),
            ("pool5", (1, 4, 4, 512)),
        ],
    ),  # figure 3
    (
        "conv3d",
        {},
        [
            ("conv1_relu", (16, 56, 56, 64)),
            ("conv2_2", (16, 56, 56, 64)),
            ("conv3_2", (8, 28, 28, 128)),
            ("conv4_2", (4, 14, 14, 256)),
            ("conv5_2", (2, 7, 7, 512)),
        ],
    ),  # table 1
    (
        "resnet",
        {"depth": 50},
        [  # table 1
            ("conv1_relu", (112, 112, 64)),
            ("conv2_3", (56, 56, 256)),
            ("conv3_4", (28, 28, 512)),
            ("conv4_6", (14, 14, 1024)),
            ("conv5_3", (7, 7, 2048)),
        ],
    ),
]


def parameters(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes", "published"), PUBLISHED)
def test_has_the_published_number_of_parameters(name, sizes, published):
    assert parameters(build(name, **sizes)) == published


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "millions"), CIFAR)
def test_the_cifar_family_has_the_published_number_of_parameters(depth, millions):
    found = parameters(build("resnet", input_shape=(32, 32, 3), classes=10, stem="cifar", depth=depth)) / 1e6
    assert round(found, 1 if millions > 1 else 2) == millions


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes", "outputs"), OUTPUTS, ids=[name for name, *_ in OUTPUTS])
def test_layers_have_the_papers_output_sizes(name, sizes, outputs):
    model = build(name, **sizes)
    assert [(layer, model.get_layer(layer).output.shape[1:]) for layer, _ in outputs] == outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "outputs"),
    [row for row in OUTPUTS if row[0] in ANTIALIASED],
    ids=[name for name, *_ in OUTPUTS if name in ANTIALIASED],
)
def test_anti_aliasing_keeps_sizes_and_weights(name, sizes, outputs):
    narrow = sizes | {"width": 0.1}
    plain, blurred = build(name, **narrow), build(name, antialias=True, **narrow)
    blurred.set_weights(plain.get_weights())  # of the same shapes, in the same order
    assert [(weight.name, weight.shape) for weight in blurred.weights] == [(w.name, w.shape) for w in plain.weights]
    assert len(blurred.layers) > len(plain.layers)
    for layer, shape in outputs:
        assert plain.get_layer(layer).output.shape == blurred.get_layer(layer).output.shape
        assert blurred.get_layer(layer).output.shape[1:-1] == shape[:-1]


@pytest.mark.parametrize("name", ["lenet5", "plain_cnn"])
def test_anti_aliased_pooling_of_the_papers_signal_varies_less_with_its_place(name):
    pool = import_module(f"stages.train.architectures.{name}").pool
    signal = np.tile([0, 0, 1, 1], 4)  # section 3 of arXiv:1904.11486, and what the maxima of it are
    image = keras.Input((16, 16, 1))
    found = {}
    for antialias in (False, True):
        model = keras.Model(image, pool(image, antialias, "pool"))
        for shift in (0, 1):
            picture = np.broadcast_to(np.roll(signal, -shift)[:, None], (16, 16))
            found[antialias, shift] = model.predict(picture[None, ..., None].astype("float32"), verbose=0)[0, 2:6, 4, 0]
    assert found[False, 0].tolist() == [0, 1, 0, 1]
    assert found[False, 1].tolist() == [1, 1, 1, 1]
    # By hand: the maxima at all places are 0 1 1 1 0 1 1 1 ..., filtered with [1, 2, 1] / 4
    assert found[True, 0].tolist() == [0.5, 1, 0.5, 1]
    assert found[True, 1].tolist() == [0.75, 0.75, 0.75, 0.75]


@pytest.mark.parametrize("size", [4, 5])
def test_the_blur_lies_symmetrically_about_every_second_place_with_the_edge_repeated(size):
    weights = np.zeros((-(-size // 2), size))
    for row in range(len(weights)):
        for step, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            weights[row, min(max(2 * row + step, 0), size - 1)] += weight
    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    image = keras.Input((size, size, 1))
    model = keras.Model(image, import_module("stages.train.architectures.resnet").blur(image, 2, "blur"))
    found = model.predict(x[None, ..., None], verbose=0)[0, ..., 0]
    np.testing.assert_allclose(found, weights @ x @ weights.T, atol=1e-6)
    volume = keras.Input((3, size, size, 1))
    blur = import_module("stages.train.architectures.conv3d").blur
    model = keras.Model(volume, blur(volume, (1, 2, 2), "blur"))
    frames = np.stack([x, 2 * x, -x])[None, ..., None]
    expected = [weights @ frame @ weights.T for frame in frames[0, ..., 0]]
    np.testing.assert_allclose(model.predict(frames, verbose=0)[0, ..., 0], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_maps_examples_to_probabilities_and_learns_in_every_weight(name):
    keras.utils.set_random_seed(1)
    sizes, inputs, shape = example(name, 16, 3)
    model = build(name, **sizes)
    found = model.predict(inputs, verbose=0)
    assert model.layers[-1].name == "output"
    assert found.shape == shape
    logits = len(shape) == 3
    if not logits:
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    before = model.get_weights()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=logits), jit_compile=False)
    model.fit(inputs, np.arange(math.prod(shape[:-1])).reshape(shape[:-1]) % 7, batch_size=8, epochs=4, verbose=0)
    unmoved = [w.path for w, old in zip(model.weights, before, strict=True) if np.array_equal(w.numpy(), old)]
    assert [path for path in unmoved if "seed" not in path] == []


@pytest.mark.slow
def test_saved_models_load_and_agree_in_a_process_that_never_saw_our_code(tmp_path):
    variants = [(name, name, {}) for name in NAMES]
    variants += [(f"{name}_antialias", name, {"antialias": True}) for name in ANTIALIASED]
    for file, name, more in variants:
        sizes, inputs, _ = example(name, 4, 1)
        model = build(name, **sizes, **more)
        model.save(tmp_path / f"{file}.keras")
        inputs = inputs if isinstance(inputs, list) else [inputs]
        found = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
        np.savez(tmp_path / f"{file}.npz", *inputs, found=found)
    script = (
        "import keras, numpy as np, pathlib\n"
        "for path in pathlib.Path().glob('*.keras'):\n"
        "    stored = np.load(path.with_suffix('.npz'))\n"
        "    inputs = [stored[name] for name in stored if name != 'found']\n"
        "    inputs = inputs if len(inputs) > 1 else inputs[0]\n"
        "    found = keras.saving.load_model(path).predict(inputs, verbose=0)\n"
        "    np.testing.assert_allclose(found, stored['found'], atol=1e-5)\n"
        "    print(path.stem)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(file for file, *_ in variants)


@pytest.mark.parametrize(("name", "k", "alpha"), [("alexnet", 2.0, 1e-4), ("googlenet", 1.0, 1e-4 / 5)])
def test_local_response_normalisation_is_the_formula_of_section_3_3(name, k, alpha):
    x = np.random.default_rng(0).normal(0, 100, (2, 3, 3, 11)).astype(np.float32)
    expected = np.empty_like(x)
    for i in range(11):  # b_i = a_i / (k + alpha * sum over j from i - n/2 to i + n/2 of a_j^2)^beta, n = 5
        near = x[..., max(0, i - 2) : min(10, i + 2) + 1]
        expected[..., i] = x[..., i] / (k + alpha * (near**2).sum(axis=-1)) ** 0.75
    found = import_module(f"stages.train.architectures.{name}").local_response(keras.ops.convert_to_tensor(x))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_two_columns_do_not_see_each_other():
    convolution = import_module("stages.train.architectures.alexnet").convolution
    image = keras.Input((5, 5, 8))
    model = keras.Model(image, convolution(image, 6, 3, groups=2, name="c"))
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 8)).astype(np.float32)
    other = x.copy()
    other[..., 4:] += 1
    before, after = model.predict(x, verbose=0), model.predict(other, verbose=0)
    np.testing.assert_array_equal(before[..., :3], after[..., :3])
    assert (before[..., 3:] != after[..., 3:]).any()


@pytest.mark.parametrize(("shortcut", "extra"), [("A", 0), ("B", 2), ("C", 9)])
def test_skips_are_identities_or_projections_as_in_section_3_3(shortcut, extra):
    model = build("resnet", input_shape=(32, 32, 3), classes=10, stem="cifar", depth=20, shortcut=shortcut)
    assert sum("skip_conv" in layer.name for layer in model.layers) == extra


def test_an_identity_block_passes_its_input_on_when_its_weights_are_zero():
    block = import_module("stages.train.architectures.resnet").basic
    image = keras.Input((6, 6, 4))
    model = keras.Model(image, block(image, 4, 1, "A", False, "b"))
    for layer in model.layers:
        if "conv" in layer.name:
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    x = np.random.default_rng(0).uniform(size=(2, 6, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(model.predict(x, verbose=0), x, atol=1e-6)


@pytest.mark.parametrize(("pooling", "kernel", "edges"), [("average", 5, (28, 14, 10, 5)), ("max", 3, (30, 15, 13, 6))])
def test_lenet5_with_the_papers_average_pooling_or_another_kernel(pooling, kernel, edges):
    model = build("lenet5", pooling=pooling, kernel=kernel)
    assert tuple(model.get_layer(name).output.shape[1] for name in ("c1", "s2", "c3", "s4")) == edges
    assert type(model.get_layer("s2")).__name__ == f"{pooling.title()}Pooling2D"


def test_lenet5_with_strides_as_its_predecessor_has_the_same_parameters_and_no_pooling():
    model = build("lenet5", pooling="stride", activation="relu")
    assert [model.get_layer(name).output.shape[1] for name in ("c1", "c3")] == [14, 5]
    assert model.count_params() == 61_706
    assert not [layer.name for layer in model.layers if "Pooling" in type(layer).__name__]
    assert {model.get_layer(name).activation.__name__ for name in ("c1", "c3", "c5", "f6")} == {"relu"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("char_cnn", {"words": 74, "length": 122}, "at least 123 characters; got 122"),
        ("conv3d", {"style": "c3d"}, "stack, resnet; got 'c3d'"),
        ("conv_seq2seq", {"source_words": 9, "target_words": 9, "kernel": 1}, "at least 2 .* got 1 and 3"),
        ("conv_seq2seq", {"source_words": 9, "target_words": 9, "decoder": 0}, "at least 1; got 3 and 0"),
        ("conv3d", {"depth": 50}, "10, 18, 34; got 50"),
        ("conv3d", {"stem": "cifar"}, "video, small; got 'cifar'"),
        ("resnet", {"depth": 21, "stem": "cifar"}, "6n\\+2.*got 21"),
        ("resnet", {"depth": 20}, "18, 34, 50, 101, 152.*got 20"),
        ("resnet", {"shortcut": "D"}, "A, B or C; got 'D'"),
        ("resnet", {"stem": "tiny"}, "imagenet, small, cifar; got 'tiny'"),
        ("googlenet", {"stem": "tiny"}, "imagenet, small; got 'tiny'"),
        ("alexnet", {"stem": "tiny"}, "imagenet, small; got 'tiny'"),
        ("lenet5", {"pooling": "min"}, "max, average, stride; got 'min'"),
        ("lenet5", {"pooling": "average", "antialias": True}, "max; got 'average'"),
    ],
)
def test_a_size_that_does_not_exist_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


@pytest.fixture(scope="module")
def seq2seq():
    keras.utils.set_random_seed(0)
    return build("conv_seq2seq", source_words=30, target_words=20, length=12, width=0.1)


@pytest.mark.slow
def test_the_decoder_does_not_see_the_future(seq2seq):
    source, target = np.arange(4, 10)[None], np.arange(4, 12)[None]
    changed = np.where(np.arange(8) < 5, target, 19)
    before, after = (seq2seq.predict([source, tokens], verbose=0) for tokens in (target, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(axis=-1).all()


@pytest.mark.slow
def test_token_by_token_the_decoder_gives_what_it_gives_at_once(seq2seq):
    rng = np.random.default_rng(0)
    source, target = rng.integers(4, 30, (3, 7)), rng.integers(4, 20, (3, 12))
    source[1, 5:] = 0
    whole = seq2seq.predict([source, target], verbose=0)
    encoder, decoder = seq2seq.get_layer("encoder"), seq2seq.get_layer("decoder")
    seen = encoder.predict(source, verbose=0)
    past = [np.zeros((3, *layer.shape[1:])) for layer in decoder.inputs[5:]]
    for step in range(12):
        place = np.full((3, 1), step)
        logits, attention, *past = decoder.predict([target[:, step : step + 1], place, *seen, *past], verbose=0)
        np.testing.assert_allclose(logits[:, 0], whole[:, step], atol=1e-5)
        np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-5)
        assert (attention[1, 0, 5:] == 0).all()  # of filling


def test_filling_changes_no_answer(seq2seq):
    rng = np.random.default_rng(0)
    short = rng.integers(4, 30, (2, 5))
    filled = np.pad(short, ((0, 0), (0, 7)))
    model = build("text_cnn", **SMALL["text_cnn"], classes=3)
    np.testing.assert_allclose(model.predict(short, verbose=0), model.predict(filled, verbose=0), atol=1e-6)
    target = rng.integers(4, 20, (2, 6))
    before = seq2seq.predict([short, target], verbose=0)
    after = seq2seq.predict([filled, np.pad(target, ((0, 0), (0, 10)))], verbose=0)
    np.testing.assert_allclose(before, after[:, :6], atol=1e-5)


def test_it_does_not_matter_where_the_decisive_words_stand():
    model = build("text_cnn", **SMALL["text_cnn"], classes=3)
    phrase = [7, 11, 13, 9, 17]  # alone among unknown words of one vector
    sentences = np.full((16, 20), 1)
    for place, sentence in enumerate(sentences):
        sentence[place : place + 5] = phrase
    found = model.predict(sentences, verbose=0)
    np.testing.assert_allclose(found[4:12], found[[8] * 8], atol=1e-6)  # all windows on it lie within
    features = keras.Model(model.input, model.get_layer("features").output).predict(sentences, verbose=0)
    np.testing.assert_allclose(features[4:12], features[[8] * 8], atol=1e-6)
    other = np.where(sentences == 7, 8, sentences)
    assert (np.abs(model.predict(other, verbose=0) - found) > 1e-6).any(axis=1).all()


def test_gated_linear_units_and_residuals_are_those_of_the_paper():
    module = import_module("stages.train.architectures.conv_seq2seq")
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(module.glu(x), x[..., :4] / (1 + np.exp(-x[..., 4:])), rtol=1e-5)
    assert math.sqrt(0.5) == module.HALF
    # Section 3.5: blocks keep the variance of what goes through them.
    keras.utils.set_random_seed(1)
    tokens = np.random.default_rng(0).integers(4, 3000, (8, 40))
    encoder = module.encoder_network(3000, 40, 8, 256, 256, 3, 0.0, 1)
    layers = [layer.output for layer in encoder.layers if layer.name == "in"]
    first, (keys, *_) = keras.Model(encoder.input, [layers[0], encoder.outputs])(tokens)
    assert 0.4 < float(np.var(keys)) / float(np.var(first)) < 2.5


def test_the_largest_norm_and_dropout_of_kim_are_there():
    model = build("text_cnn", words=30, classes=2)
    output = model.get_layer("output")
    assert output.kernel_constraint.max_value == 3
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.5]
    assert not build("text_cnn", words=30, classes=2, static=True).get_layer("embedding").trainable
