"""A small network of every architecture, and examples for it."""

from importlib import import_module

import numpy as np
from conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "stages/train/architectures").glob("[!_]*.py"))
SMALL = {
    "alexnet": {"stem": "small", "width": 0.03},
    "googlenet": {"stem": "small", "width": 0.25},
    "lenet5": {},
    "plain_cnn": {"width": 0.1},
    "resnet": {"stem": "cifar", "depth": 8, "width": 0.25},
    "text_cnn": {"words": 30, "width": 0.1},
    "char_cnn": {"words": 30, "length": 123, "width": 0.1},
    "conv_seq2seq": {"source_words": 30, "target_words": 20, "length": 12, "width": 0.1},
    "conv3d": {"stem": "small", "depth": 10, "width": 0.1},
}


def build(name, **arguments):
    return import_module(f"stages.train.architectures.{name}").build(**arguments)


def example(name, n, channels):
    """Returns a small network's sizes, its inputs for ``n`` examples, and the shape of its answers."""
    rng, kind = np.random.default_rng(0), import_module(f"stages.train.architectures.{name}").KIND
    if kind == "translation":
        return SMALL[name], [rng.integers(4, 30, (n, 8)), rng.integers(4, 20, (n, 6))], (n, 6, 20)
    if kind == "text":
        return SMALL[name] | {"classes": 7}, rng.integers(4, 30, (n, 123)), (n, 7)
    shape = (32, 32, channels) if kind == "images" else (4, 8, 8, channels)
    return SMALL[name] | {"input_shape": shape, "classes": 7}, rng.integers(0, 256, (n, *shape), np.uint8), (n, 7)
