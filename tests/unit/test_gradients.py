"""No training takes a precision in which this machine computes wrong gradients."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from convoy.data.shards import Shards, write_shards
from convoy.errors import ConfigurationError
from convoy.machine import room
from convoy.model import backend
from stages.check import prepare
from stages.train.fit.input_spec import open_inputs
from stages.train.speed import gradients, policy
from stages.train.speed.commands import pace

ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 2, "learning_rate": 0.01}
# On a processor that multiplies bfloat16 TensorFlow 2.21 gets the gradient of its second convolution wrong: two planes.
CLIPS = {"architecture": "conv3d", "sizes": {"stem": "small", "depth": 10, "width": 0.1}}


def entry_of(dataset, **changes):
    return prepare("train", "one", ENTRY | {"dataset": dataset} | changes)


@pytest.fixture
def bars(ready):
    """Returns the training examples, and what a model takes of them."""
    data, _, input_spec = open_inputs("one", entry_of("bars"))
    return data, input_spec


@pytest.fixture
def broken(monkeypatch):
    """A machine with bfloat16 whose gradient of one kernel is partly what happened to be in memory."""
    right = gradients._gradients

    def gradient(layer, x, after):
        found = right(layer, x, after)
        if layer.compute_dtype == "bfloat16" and layer.kernel.shape == (3, 3, 3, 6):
            found[1][0] = np.nan
        return found

    monkeypatch.setattr(backend, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(gradients, "_gradients", gradient)


def test_the_layer_is_named_whose_gradients_are_wrong(bars, broken):
    for precision, wrong in (("bfloat16", ["conv2"]), ("float32", [])):
        assert gradients.wrong(*bars, entry_of("bars"), precision) == wrong


def test_float32_is_taken_instead_and_said(bars, broken, capsys):
    chosen, source, _ = policy.choose_checked("one", "train@one", *bars, entry_of("bars", precision="auto"))
    assert (chosen.precision, source) == ("float32", "rule")
    said = "train@one  in bfloat16 this machine computes wrong gradients of conv2: float32 is taken"
    assert said in capsys.readouterr().out


def test_an_entry_that_asks_for_wrong_gradients_is_refused(bars, broken):
    with pytest.raises(
        ConfigurationError, match="wrong gradients of conv2. Right ones have precision: float32, or auto"
    ):
        policy.choose_checked("one", "train@one", *bars, entry_of("bars", precision="bfloat16"))


def test_a_network_that_memory_has_no_room_for_is_refused_before(bars, broken, monkeypatch):
    monkeypatch.setattr(room, "available", lambda: (0, 0))
    monkeypatch.setattr(gradients, "wrong", lambda *_: pytest.fail("computed"))
    with pytest.raises(ConfigurationError, match="of memory"):
        policy.choose_checked("one", "train@one", *bars, entry_of("bars", precision="bfloat16"))


@pytest.mark.slow
def test_threads_are_set_before_gradients_are_computed(ready, workspace):
    script = (
        "from convoy.model import backend; backend.multiplies_bfloat16 = lambda: True\n"
        "from stages.train.entry import Train\nfrom stages.train.train import train\n"
        f"train('one', Train(precision='auto', threads=1, **{ENTRY!r}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=workspace, env=environment, check=True, capture_output=True)
    facts = json.loads((ready / "train/bars/one/run.json").read_text())
    assert (facts["precision"], facts["threads"]) == ("bfloat16", 1)


@pytest.mark.slow
def test_the_measurement_of_a_policy_fails_where_its_gradients_are_wrong(bars, broken):
    chosen = {"precision": "bfloat16", "jit_compile": False, "steps_per_execution": 1, "threads": None}
    with pytest.raises(ConfigurationError, match="wrong gradients"):
        pace("one", entry_of("bars"), 16, chosen)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_rounding_is_not_wrong(bars, precision):
    assert gradients.wrong(*bars, entry_of("bars", batch=32), precision) == []


@pytest.mark.slow
@pytest.mark.parametrize("side", [2, 4, 8])
def test_what_is_chosen_has_right_gradients_on_this_machine(workspace, side):
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 256, (32, side, 8, 8, 1), np.uint8)
    write_shards(workspace / "clips", [{"volume": volumes, "label": np.arange(32) % 2}])
    data, input_spec = Shards(workspace / "clips"), {"kind": "volumes", "array": "volume", "classes": ["a", "b"]}
    entry = entry_of("clips", **CLIPS, precision="auto", batch=32)
    chosen, *_ = policy.choose_checked("one", "train@one", data, input_spec, entry)
    assert gradients.wrong(data, input_spec, entry, chosen.precision) == []
