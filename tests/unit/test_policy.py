"""How a training computes: what is measured, what is chosen, what is remembered; and that it changes no result."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import NO_ENTRIES, ROOT
from ruamel.yaml import YAML

from convoy.data.shards import Shards
from convoy.model import backend as compute
from convoy.tracking import outbox
from stages.check import prepare
from stages.train.entry import Policy, Train
from stages.train.fit.input_spec import open_inputs
from stages.train.speed import pace, policy
from stages.train.train import train

ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 2, "learning_rate": 0.01}
OPEN = Train(**ENTRY, precision="auto")  # the other parts are auto by default
FIRST = Policy("float32", jit_compile=False, steps_per_execution=1, threads=None)
RULE = replace(FIRST, steps_per_execution=policy.STEPS)  # of ENTRY, whose steps are short


def measuring(steps, starts=(), failing=()):
    """Returns a measurement whose seconds are the products of those of each part, and the policies that it is given."""
    asked = []

    def measure(one):
        asked.append(one)
        parts = asdict(one).items()
        if any(part in failing for part in parts):
            return policy.Tried(one, failed="no such operation")
        seconds = 0.1 * np.prod([dict(steps).get(part, 1.0) for part in parts])
        return policy.Tried(one, 1.0 + sum(dict(starts).get(part, 0.0) for part in parts), seconds)

    return measure, asked


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(compute, "cores", lambda: 4)
    monkeypatch.setattr(compute, "on_cpu", lambda: True)


@pytest.mark.parametrize(
    ("steps", "starts", "length", "expected"),
    [
        ([], [], 1000, {}),
        ([(("jit_compile", True), 0.5)], [], 1000, {"jit_compile": True}),
        ([(("jit_compile", True), 0.5)], [(("jit_compile", True), 60)], 1000, {}),  # 50 s saved, 60 s compiled
        ([(("jit_compile", True), 0.5)], [(("jit_compile", True), 60)], 2000, {"jit_compile": True}),
        ([(("threads", 2), 0.95)], [], 1000, {}),  # may be luck
        ([(("threads", 2), 0.8), (("threads", 1), 0.6)], [], 1000, {"threads": 1}),
        ([(("threads", 2), 0.8), (("threads", 1), 0.9)], [], 1000, {"threads": 2}),
        ([(("threads", 1), 0.1)], [], 1000, {}),  # what half the threads do not better is not looked for further
        (
            [(("jit_compile", True), 0.7), (("steps_per_execution", 16), 0.5)],
            [],
            1000,
            {"jit_compile": True, "steps_per_execution": 16},
        ),
    ],
)
def test_the_shortest_training_is_chosen(four_cores, steps, starts, length, expected):
    measure, asked = measuring(steps, starts)
    best, tried = policy.search(FIRST, OPEN, length, 500, measure)
    assert best.policy == replace(FIRST, **expected)
    assert [one.policy for one in tried] == asked


def test_what_the_entry_says_or_an_epoch_is_too_short_for_is_not_tried(four_cores):
    measure, asked = measuring([])
    entry = Train(**ENTRY, jit_compile=False, steps_per_execution=1)
    policy.search(FIRST, entry, 1000, 500, measure)
    assert asked == [FIRST, replace(FIRST, threads=2)]
    measure, asked = measuring([])
    policy.search(FIRST, OPEN, 1000, 63, measure)
    assert {one.steps_per_execution for one in asked} == {1}


def test_what_fails_is_not_chosen(four_cores):
    measure, _ = measuring([(("jit_compile", True), 0.1)], failing=[("jit_compile", True)])
    best, tried = policy.search(FIRST, OPEN, 1000, 500, measure)
    assert best.policy == FIRST
    assert "float32, compiled, 1 step per execution, a thread per core: no such operation" in map(str, tried)


def test_a_faster_precision_is_measured_against_the_plain_one(four_cores):
    measure, _ = measuring([(("precision", "bfloat16"), 2.0)])
    best, _ = policy.search(replace(FIRST, precision="bfloat16"), OPEN, 1000, 500, measure)
    assert best.policy == FIRST  # the instructions are there and do not help this network


def settings(ready, monkeypatch, **entry):
    """Returns the training examples, what a model takes of them, and its entry."""
    entry = prepare("train", "one", ENTRY | entry)
    data, _, input_spec = open_inputs("one", entry)
    monkeypatch.setattr(policy, "_measured", lambda name, one, steps: pytest.fail("measured"))
    return data, input_spec, entry


def changed(entry, **changes):
    return entry.model_copy(update=changes)


@pytest.mark.parametrize(
    ("backend", "step", "steps"),
    [("tensorflow", 1e-3, 16), ("tensorflow", 0.05, 5), ("tensorflow", 3.0, 1), ("jax", 1e-3, 1), ("torch", 1e-3, 1)],
)
def test_python_looks_at_least_four_times_a_second(monkeypatch, backend, step, steps):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(compute, "compilation", lambda: False)
    monkeypatch.setattr(compute, "precision", lambda asked: "float32")
    assert policy.rule(Train(**ENTRY), step) == replace(FIRST, steps_per_execution=steps)


def test_a_short_training_follows_the_rule_and_a_settled_entry_itself(ready, monkeypatch):
    data, input_spec, asked = settings(ready, monkeypatch)
    assert policy.choose("one", data, input_spec, asked) == (RULE, "rule")
    settled = Policy("bfloat16", jit_compile=True, steps_per_execution=4, threads=3)
    assert policy.choose("one", data, input_spec, changed(asked, **asdict(settled))) == (settled, "entry")


def test_devices_are_divided_before_anything_asks_for_them(ready, monkeypatch):
    data, input_spec, asked = settings(ready, monkeypatch)
    calls, on_cpu = [], compute.on_cpu
    monkeypatch.setattr(compute, "prepare", lambda count: calls.append(("prepare", count)))
    monkeypatch.setattr(compute, "on_cpu", lambda: calls.append("asked") or on_cpu())
    policy.choose("one", data, input_spec, changed(asked, devices=2))
    assert calls[0] == ("prepare", 2)
    assert "asked" in calls


def test_a_long_training_is_measured_once_for_its_network_data_and_device(ready, monkeypatch):
    data, input_spec, asked = settings(ready, monkeypatch, batch=1, epochs=10**9)
    calls = []

    def measured(name, one, steps):
        calls.append((name, steps))
        return policy.Tried(one, 1.0, 0.01 if one.steps_per_execution == 1 else 0.1)

    monkeypatch.setattr(policy, "_measured", measured)
    chosen = FIRST
    assert policy.choose("one", data, input_spec, asked) == (chosen, "measured")
    counted = len(calls)
    assert {name for name, _ in calls} == {"one"}
    assert {steps for _, steps in calls} == {policy.MOST}
    assert policy.choose("two", data, input_spec, changed(asked, epochs=1)) == (chosen, "measured")  # however short
    assert len(calls) == counted
    policy.choose("one", data, input_spec, asked, again=True)
    assert len(calls) == 2 * counted
    assert policy.choose("one", data, input_spec, changed(asked, batch=2, epochs=1))[1] == "rule"
    monkeypatch.setattr(compute, "hardware", lambda: "another")
    assert policy.choose("one", data, input_spec, changed(asked, epochs=1))[1] == "rule"


def test_a_training_of_few_steps_is_not_measured_and_says_so(ready, monkeypatch, capsys):
    data, input_spec, asked = settings(ready, monkeypatch)
    assert policy.choose("one", data, input_spec, asked, worth=0.0, again=True) == (RULE, "rule")
    assert "train@one  has 2 steps, too few to measure" in capsys.readouterr().out


def test_the_pace_is_that_of_steps_without_what_is_between_epochs(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(pace.time, "perf_counter", lambda: 0.25 * next(clock))
    meter = pace.Pace(20)
    meter.set_params({"steps": 10})
    with pytest.raises(pace.Enough):
        for epoch in range(9):
            meter.on_epoch_begin(epoch)
            for batch in (3, 7, 11):  # four steps per execution; the last has two
                meter.on_train_batch_end(batch, {"loss": 1.0})
            for _ in range(100):  # a validation
                next(clock)
    # Looks at the clock after the 8th step, then at the ends of two epochs, 2 and 10 steps later, and 8 further.
    assert meter.start == 0.5
    assert meter.step == pytest.approx(3 * 0.25 / 20)


def test_where_nothing_can_be_measured_the_rule_holds_and_nothing_is_remembered(ready, monkeypatch):
    data, input_spec, asked = settings(ready, monkeypatch, batch=1)
    monkeypatch.setattr(policy, "_measured", lambda name, one, steps: policy.Tried(one, failed="killed"))
    assert policy.choose("one", data, input_spec, asked, worth=0.0) == (RULE, "rule")
    assert not policy.CACHE.exists()


@pytest.mark.slow
def test_the_command_measures_in_processes_of_its_own_and_training_then_does_as_measured(ready, workspace):
    entry = ENTRY | {"batch": 1, "jit_compile": False, "threads": 1}
    content = NO_ENTRIES | {"train": {"one": entry}, "tune": {}}
    YAML().dump(content, workspace / "params.yaml")
    command = [sys.executable, "-m", "flows", "measure", "one"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0].split("  ")[1] for line in lines[1:3]] == [
        "float32, not compiled, 16 steps per execution, 1 thread",
        "float32, not compiled, 1 step per execution, 1 thread",
    ]
    assert all("ms a step after" in line for line in lines[1:3])
    [kept] = json.loads(policy.CACHE.read_text()).values()
    assert [one["policy"]["steps_per_execution"] for one in kept["tried"]] == [16, 1]
    assert kept["policy"]["threads"] == 1
    subprocess.run([sys.executable, "-m", "stages", "train", "one"], env=environment, capture_output=True, check=True)
    facts = json.loads((ready / "train/bars/one/run.json").read_text())
    assert facts["policy"] == "measured"
    assert {part: facts[part] for part in policy.PARTS} == kept["policy"]


@pytest.mark.slow
def test_the_number_of_steps_per_execution_changes_nothing_but_the_speed(ready):
    found = []
    for steps in (1, 16):
        train("one", Train(**ENTRY | {"batch": 3, "steps_per_execution": steps, "patience": 1}))
        folder = ready / "train/bars/one"
        found.append(
            (keras.saving.load_model(folder / "model.keras").get_weights(), pd.read_csv(folder / "history.csv"))
        )
        facts = json.loads((folder / "run.json").read_text())
        assert (facts["steps_per_execution"], facts["policy"]) == (steps, "rule")
        assert outbox.measured(facts)["examples_per_second"] > 0
    (one, first), (several, second) = found
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a, b)
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.slow
def test_float16_scales_its_loss_and_is_stored_as_float32(ready):
    train("half", Train(**ENTRY | {"precision": "float16", "ema": 0.5, "clip_norm": 1.0, "epochs": 6}))
    folder = ready / "train/bars/half"
    model = keras.saving.load_model(folder / "model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    history = pd.read_csv(folder / "history.csv")
    assert np.isfinite(history.to_numpy()).all()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    val = Shards(ready / "ingest/bars/val")
    found = model.predict(val[:]["image"], verbose=0)[np.arange(len(val)), val.column("label")]
    assert history["val_loss"].iloc[-1] == pytest.approx(-np.log(found).mean(), rel=0.05)
