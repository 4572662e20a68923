"""Numbers from the papers, torchvision and arithmetic; never from a run of ours."""

import math
import subprocess
import sys
from importlib import import_module

import keras
import numpy as np
import pytest
from conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "stages/train/architectures").glob("[!_]*.py"))
SMALL = {
    "alexnet": {"stem": "small", "width": 0.03},
    "googlenet": {"stem": "small", "width": 0.25},
    "lenet5": {},
    "plain_cnn": {"width": 0.1},
    "resnet": {"stem": "cifar", "depth": 8, "width": 0.25},
}

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
]
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


def build(name, **arguments):
    return import_module(f"stages.train.architectures.{name}").build(**arguments)


def parameters(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.mark.parametrize(("name", "sizes", "published"), PUBLISHED)
def test_has_the_published_number_of_parameters(name, sizes, published):
    assert parameters(build(name, **sizes)) == published


@pytest.mark.parametrize(("depth", "millions"), CIFAR)
def test_the_cifar_family_has_the_published_number_of_parameters(depth, millions):
    found = parameters(build("resnet", input_shape=(32, 32, 3), classes=10, stem="cifar", depth=depth)) / 1e6
    assert round(found, 1 if millions > 1 else 2) == millions


@pytest.mark.parametrize(("name", "sizes", "outputs"), OUTPUTS, ids=[name for name, *_ in OUTPUTS])
def test_layers_have_the_papers_output_sizes(name, sizes, outputs):
    model = build(name, **sizes)
    assert [(layer, model.get_layer(layer).output.shape[1:]) for layer, _ in outputs] == outputs


@pytest.mark.parametrize("name", NAMES)
def test_maps_pictures_to_probabilities_and_learns_in_every_weight(name):
    keras.utils.set_random_seed(1)
    model = build(name, input_shape=(32, 32, 3), classes=7, **SMALL[name])
    pictures = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    found = model.predict(pictures, verbose=0)
    assert model.layers[-1].name == "output"
    assert found.shape == (16, 7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    before = model.get_weights()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(pictures, np.arange(16) % 7, batch_size=8, epochs=4, verbose=0)
    unmoved = [w.path for w, old in zip(model.weights, before, strict=True) if np.array_equal(w.numpy(), old)]
    assert [path for path in unmoved if "seed" not in path] == []


def test_saved_models_load_and_agree_in_a_process_that_never_saw_our_code(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    for name in NAMES:
        model = build(name, input_shape=(32, 32, 1), classes=10, **SMALL[name])
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", model.predict(pictures, verbose=0))
    script = (
        "import keras, numpy as np, pathlib\n"
        "for path in pathlib.Path().glob('*.keras'):\n"
        "    found = keras.saving.load_model(path).predict(np.load('pictures.npy'), verbose=0)\n"
        "    np.testing.assert_allclose(found, np.load(path.with_suffix('.npy')), atol=1e-6)\n"
        "    print(path.stem)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == NAMES


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
    model = keras.Model(image, block(image, 4, 1, "A", "b"))
    for layer in model.layers:
        if "conv" in layer.name:
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    x = np.random.default_rng(0).uniform(size=(2, 6, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(model.predict(x, verbose=0), x, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet", {"depth": 21, "stem": "cifar"}, "6n\\+2.*got 21"),
        ("resnet", {"depth": 20}, "18, 34, 50, 101, 152.*got 20"),
        ("resnet", {"shortcut": "D"}, "A, B or C; got 'D'"),
        ("resnet", {"stem": "tiny"}, "imagenet, small, cifar; got 'tiny'"),
        ("googlenet", {"stem": "tiny"}, "imagenet, small; got 'tiny'"),
        ("alexnet", {"stem": "tiny"}, "imagenet, small; got 'tiny'"),
    ],
)
def test_a_size_that_does_not_exist_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)
