import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_of

from convoy.data.shards import Shards, write_shards
from convoy.errors import ConfigurationError, DivergedError
from convoy.tracking import store
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.train.entry import Train
from stages.train.fit import callbacks, optimisation
from stages.train.fit.batches import Labelled
from stages.train.running.progress import Progress
from stages.train.train import train

ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 2, "learning_rate": 0.01}


@pytest.fixture
def numbers(tmp_path):
    """300 examples of 3 classes, in the shares 6:3:1."""
    labels = np.repeat([0, 1, 2], [180, 90, 30])
    write_shards(tmp_path / "n", [{"image": np.arange(300, dtype=np.uint8)[:, None], "label": labels}])
    return Shards(tmp_path / "n")


def labelled(shards, **settings):
    settings = {"outputs": ["output"], "class_weights": np.ones(3, np.float32), "seed": None} | settings
    return Labelled(shards, "image", **settings)


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own(numbers):
    batches = labelled(numbers, batch=64, seed=5)
    orders = []
    for epoch in (0, 1, 0):
        batches.reorder(epoch)
        orders.append(np.concatenate([batches[number][1].argmax(axis=1) for number in range(len(batches))]))
        assert np.bincount(orders[-1]).tolist() == [180, 90, 30]
    np.testing.assert_array_equal(orders[0], orders[2])
    assert (orders[0] != orders[1]).any()


def test_every_output_is_given_the_labels_and_weights(numbers):
    weights = np.array([1, 2, 6], np.float32)
    _, targets, found = labelled(numbers, outputs=["output", "auxiliary"], class_weights=weights, batch=300)[0]
    assert set(targets) == set(found) == {"output", "auxiliary"}
    np.testing.assert_array_equal(found["output"], np.repeat(weights, [180, 90, 30]))


def test_for_several_devices_the_last_batch_is_filled_up_with_what_does_not_count(numbers):
    batches = labelled(numbers, batch=128, devices=8)
    pictures, targets, weights = batches[2]  # 44 examples
    assert len(pictures) == len(targets) == len(weights) == 48
    assert weights.reshape(8, 6).sum(axis=1).tolist() == [6] * 4 + [5] * 4  # of each device
    assert len(batches[0][0]) == 128


SEVERAL = """
import json, sys
from pathlib import Path
import numpy as np
from convoy.data.shards import Shards
from stages.train.entry import Policy, Train
from stages.train.fit import export, fit
from stages.train.speed import cost
entry, policy = Train.model_validate_json(sys.argv[1]), Policy("float32", False, 1, None)
input_spec = {"kind": "images", "array": "image", "classes": ["a", "b", "c"]}
cost.check(Shards("a"), input_spec, entry, policy, "t")  # as train does before; it asks for the devices
result = fit.fit(Shards("a"), Shards("b"), input_spec, entry, policy, title="t", log=lambda *_: None)
print(json.dumps(result.history.to_dict("list")))
export.save(result.model, Path("model.keras"))
import keras
keras.models.load_model("model.keras").predict(np.zeros((3, 32, 32, 1)), verbose=0)  # without devices of its own
"""


def test_a_model_on_two_devices_is_the_one_on_one(workspace):
    rng = np.random.default_rng(0)
    for name, count in (("a", 256), ("b", 65)):
        labels = rng.integers(0, 3, count)
        pictures = rng.integers(0, 60, (count, 32, 32, 1), np.uint8)
        pictures[np.arange(32) // 11 == labels[:, None]] += 150
        write_shards(workspace / name, [{"image": pictures, "label": labels}])
    entry = {"dataset": "a", "architecture": "lenet5", "epochs": 2, "batch": 64, "optimizer": "sgd"}
    entry |= {"learning_rate": 0.02, "class_weights": True}  # LeNet-5 draws no numbers
    histories = []
    for devices in (1, 2):
        command = [sys.executable, "-c", SEVERAL, json.dumps(entry | {"devices": devices})]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        histories.append(pd.DataFrame(json.loads(done.stdout.splitlines()[-1])))
    one, two = histories
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    np.testing.assert_allclose(one["val_accuracy"], two["val_accuracy"], atol=1e-6)  # of 65 examples, 33 and 32
    assert one["val_accuracy"].iloc[-1] > 0.9


def test_random_layers_are_seeded_from_seed_layer_and_epoch(numbers):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
    batches = labelled(numbers, batch=64, seed=0)
    states = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        callback = callbacks.EpochSeeds(batches.reorder, seed)
        callback.set_model(model)
        callback.on_epoch_begin(epoch)
        states[seed, epoch] = [tuple(layer.seed_generator.state.numpy()) for layer in model.layers]
        model.layers[0].seed_generator.next()
        callback.on_epoch_begin(epoch)
        assert [tuple(layer.seed_generator.state.numpy()) for layer in model.layers] == states[seed, epoch]
    assert len({state for pair in states.values() for state in pair}) == 6


def scheduled(schedule, **changes):
    """Returns the learning rates of an epoch of 100 steps."""
    entry = Train(**ENTRY | {"epochs": 1, "learning_rate": 0.1, "schedule": schedule} | changes)
    return optimisation.learning_rates(entry, 100)


def rates(schedule, **changes):
    found = scheduled(schedule, **changes)
    return [float(found(step)) for step in range(101)]


def test_schedules_have_the_published_shape():
    assert scheduled("constant") == 0.1
    step = rates("step", milestones=[0.5, 0.75])
    np.testing.assert_allclose([step[0], step[50], step[51], step[75], step[76], step[100]],
                               [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)  # fmt: skip
    cosine = rates("cosine", warmup=0.2)
    np.testing.assert_allclose(cosine[:21], np.linspace(0, 0.1, 21), atol=1e-6)
    np.testing.assert_allclose(cosine[20:], 0.05 * (1 + np.cos(np.linspace(0, math.pi, 81))), atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_shrinks_kernels_and_nothing_else(name):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    model.layers[0].bias.assign([1.0, 1.0])
    model.layers[1].beta.assign([1.0, 1.0])
    entry = Train(**ENTRY | {"optimizer": name, "weight_decay": 0.1})
    optimizer = optimisation.make_optimizer(entry, 0.5)
    kernel = model.layers[0].kernel.numpy()
    optimizer.apply([np.zeros(w.shape, np.float32) for w in model.trainable_weights], model.trainable_weights)
    np.testing.assert_allclose(model.layers[0].kernel.numpy(), kernel * (1 - 0.5 * 0.1), rtol=1e-5)
    np.testing.assert_array_equal(model.layers[0].bias.numpy(), [1, 1])
    np.testing.assert_array_equal(model.layers[1].gamma.numpy(), [1, 1])
    np.testing.assert_array_equal(model.layers[1].beta.numpy(), [1, 1])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_average_of_weights_is_short_at_first_and_forgets_the_untrained_ones(name):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimisation.make_optimizer(Train(**ENTRY | {"optimizer": name, "ema": 0.6}), 0.1), "mse")
    examples = np.random.default_rng(0).normal(size=(30, 1, 3)).astype(np.float32)
    average = 0.0
    for step, example in enumerate(examples):
        model.train_on_batch(example, example[:, :2])
        # As tf.train.ExponentialMovingAverage has it; of the first weights of all Keras keeps nothing.
        kept = min(0.6, (1 + step) / (10 + step)) if step else 0.0  # 0.6 from step 13 on
        average = kept * average + (1 - kept) * model.layers[0].kernel.numpy()
    found = model.optimizer._model_variables_moving_average[0].numpy()
    np.testing.assert_allclose(found, average, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "each", "values", "words"),
    [
        # 1 / (1 - 0.999) = 1000 steps; 790 / 9 = 88; 1 - 10 / 780 = 0.987
        (10, 78, {"ema": 0.999}, ["ema = 0.999", "about 1,000 steps", "has 780", "last 88", "ema: 0.987"]),
        (2, 38, {"ema": 0.99}, ["about 100 steps", "has 76", "last 10", "ema: 0.868"]),
        (1, 15, {"ema": 0.99}, ["about 100 steps", "has 15", "ema: 0 "]),
        (40, 460, {"ema": 0.999}, []),
        (2, 100, {"ema": 0.99}, []),
        (1, 78, {"warmup": 1}, ["warmup = 1 of epochs = 1", "warmup: 0.1 "]),
        (2, 78, {"warmup": 1}, []),
        (1, 10, {"statistics": 0.9}, ["momentum = 0.9", "35%", "10 steps"]),  # 0.9 ** 10 = 0.349
        (1, 29, {"statistics": 0.9}, []),  # 0.9 ** 29 = 0.047
        (2, 100, {"statistics": 0.99}, ["13%", "200 steps"]),  # 0.99 ** 200 = 0.134
    ],
)
def test_a_value_for_longer_trainings_is_named_with_its_numbers_and_what_to_do(epochs, each, values, words):
    changes = {key: value for key, value in values.items() if key != "statistics"}
    entry = Train(**ENTRY | {"epochs": epochs} | changes)
    found = optimisation.doubts(entry, each, values.get("statistics", 0.0))
    assert len(found) == bool(words)
    for word in words:
        assert word in found[0]


def test_a_training_begins_with_its_doubts(ready, capsys):
    train("m", Train(**ENTRY | {"epochs": 1, "ema": 0.99, "warmup": 1}))
    said = [line for line in capsys.readouterr().out.splitlines() if "warning: " in line]
    assert ["ema = 0.99 " in said[0], "warmup = 1 " in said[1], len(said)] == [True, True, 2]


def test_leaves_a_model_its_history_and_its_run(ready):
    train("small", Train(**ENTRY | {"epochs": 12}))
    folder = ready / "train/bars/small"
    history, facts = pd.read_csv(folder / "history.csv"), json.loads((folder / "run.json").read_text())
    assert history["epoch"].tolist() == list(range(1, 13))
    assert history["val_accuracy"].iloc[-1] > 0.8
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    val = Shards(ready / "ingest/bars/val")
    found = model.predict(val[:]["image"], verbose=0).argmax(axis=1)
    assert np.mean(found == val.column("label")) == pytest.approx(history["val_accuracy"].iloc[-1])
    run = store.connect().get_run(run_of(facts))
    assert run.info.run_name == "train@small"
    assert run.info.status == "FINISHED"
    assert run.data.params["sizes.width"] == "0.1"
    assert run.data.metrics["val_accuracy"] == pytest.approx(history["val_accuracy"].iloc[-1])
    assert {"git.commit", "git.dirty", "dataset", "stage"} <= set(run.data.tags)
    assert {tag for tag in run.data.tags if tag.startswith("input.")} == {
        "input.data/augment/bars/train/index.json", "input.data/ingest/bars/val/index.json",
        "input.convoy/checksums.py", "input.convoy/files.py", "input.convoy/data/shards.py",
        "input.convoy/data/vocabulary.py",
        "input.convoy/model/backend.py", "input.stages/train/architectures/plain_cnn.py",
        *(f"input.stages/train/{name}.py" for name in ("entry", "signatures", "train")),
        *(f"input.stages/train/fit/{path.name}" for path in (ROOT / "stages/train/fit").glob("[!_]*.py")),
    }  # fmt: skip
    curve = store.connect().get_metric_history(run_of(facts), "loss")
    np.testing.assert_allclose([point.value for point in curve], history["loss"])


def test_equal_inputs_give_an_equal_model_and_another_seed_another(ready):
    content = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(name, Train(**ENTRY, seed=seed))
        folder = ready / "train/bars" / name
        content[name] = (folder / "model.keras").read_bytes(), (folder / "history.csv").read_bytes()
    assert content["a"] == content["b"]
    assert content["a"][0] != content["c"][0]


def test_a_step_is_traced_once(ready, monkeypatch):
    """Seconds of the training of a deep network."""
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda self, data: traced.append(1) or step(self, data))
    train("bars", Train(**ENTRY))
    assert traced == [1]


def test_auxiliary_heads_train_and_are_gone_afterwards(ready):
    sizes = {"stem": "small", "width": 0.06}
    train("inception", Train(**ENTRY | {"architecture": "googlenet", "sizes": sizes, "epochs": 1}, class_weights=True))
    model = keras.saving.load_model(ready / "train/bars/inception/model.keras")
    assert [output.shape for output in model.outputs] == [(None, 2)]
    assert not [layer.name for layer in model.layers if "auxiliary" in layer.name]
    history = pd.read_csv(ready / "train/bars/inception/history.csv")
    val = Shards(ready / "ingest/bars/val")
    found = model.predict(val[:]["image"], verbose=0)[np.arange(len(val)), val.column("label")]
    assert history["val_loss"].iloc[0] == pytest.approx(-np.log(found).mean(), rel=1e-3)  # the main output's alone


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [("googlenet", {"stem": "small", "width": 0.06}), ("resnet", {"stem": "cifar", "depth": 8, "width": 0.25})],
)
def test_what_was_trained_in_bfloat16_is_stored_in_float32_with_the_same_answers(ready, architecture, sizes):
    train("half", Train(**ENTRY | {"architecture": architecture, "sizes": sizes, "epochs": 3, "precision": "bfloat16"}))
    folder = ready / "train/bars/half"
    model = keras.saving.load_model(folder / "model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    assert json.loads((folder / "run.json").read_text())["precision"] == "bfloat16"
    val = Shards(ready / "ingest/bars/val")
    found = model.predict(val[:]["image"], verbose=0)[np.arange(len(val)), val.column("label")]
    seen = pd.read_csv(folder / "history.csv")["val_loss"].iloc[-1]
    assert seen != pytest.approx(-np.log(found).mean(), rel=1e-6)  # it was computed otherwise
    assert seen == pytest.approx(-np.log(found).mean(), rel=0.05)


def test_patience_stops_early_and_keeps_the_best_weights(ready):
    train("early", Train(**ENTRY | {"epochs": 60, "learning_rate": 0.03, "schedule": "constant"}, patience=2))
    history = pd.read_csv(ready / "train/bars/early/history.csv")
    assert len(history) < 60
    assert history["val_loss"].idxmin() == len(history) - 3
    model = keras.saving.load_model(ready / "train/bars/early/model.keras")
    val = Shards(ready / "ingest/bars/val")
    found = model.predict(val[:]["image"], verbose=0)[np.arange(len(val)), val.column("label")]
    assert -np.log(found).mean() == pytest.approx(history["val_loss"].min(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_fault_08_a_loss_that_is_no_number_stops_one_step_later_and_is_named(last):
    guard = callbacks.StopAtNaN()
    guard.on_epoch_begin(6)
    guard.on_train_batch_end(2, {"loss": 3.5})
    guard.on_train_batch_end(3, {"loss": math.nan})
    with pytest.raises(DivergedError, match="the loss is nan at epoch 7, step 4. Try a smaller learning_rate"):
        if last:
            guard.on_epoch_end(6, {"val_loss": 1.0})
        else:
            guard.on_train_batch_end(4, {"loss": math.nan})


def test_a_training_does_not_wait_for_the_step_that_it_has_just_begun():
    class Loss:
        asked = 0

        def __float__(self):
            self.asked += 1
            return 1.0

    losses, guard = [Loss() for _ in range(3)], callbacks.StopAtNaN()
    guard.on_epoch_begin(0)
    for batch, loss in enumerate(losses):
        guard.on_train_batch_end(batch, {"loss": loss})
        assert [one.asked for one in losses] == [1] * batch + [0] * (3 - batch)


def test_fault_08_a_diverging_training_leaves_no_model(ready):
    with pytest.raises(DivergedError, match=r"epoch \d+.* Try a smaller learning_rate"):
        train("wild", Train(**ENTRY | {"learning_rate": 1e20, "batch": 16, "optimizer": "sgd", "schedule": "constant"}))
    assert not (ready / "train/bars/wild/run.json").exists()
    runs = store.connect().search_runs([store.connect().get_experiment_by_name("bars").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]


def test_fault_08_weights_that_overflow_in_the_last_step_are_not_kept(ready):
    with pytest.raises(DivergedError, match=r"the weight .* is no finite number after epoch 1"):
        train("wild", Train(**ENTRY | {"learning_rate": 1e39, "epochs": 1, "optimizer": "sgd", "schedule": "constant"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "lenet5", "sizes": {}}, r"lenet5 cannot be built for input_shape = \(12, 12, 1\)"),
        ({"architecture": "resnet", "sizes": {"depth": 21, "stem": "cifar"}}, "depth must be 6n"),
        ({"architecture": "lenet6"}, "Architectures: alexnet"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_plain_message(ready, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        train("odd", Train(**ENTRY | changes))


def test_progress_is_plain_lines_where_there_is_no_terminal(ready, capsys):
    train("small", Train(**ENTRY))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train@small")]
    assert len(lines) == 4  # the first two are what it will cost, and how it computes
    assert lines[1].endswith("(rule)")
    for word in ("epoch 2/2", "loss", "accuracy", "val", "examples/s", "left"):
        assert word in lines[3]


def test_progress_foretells_the_time_of_a_long_training_once(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("stages.train.running.progress.time.monotonic", lambda: now[0])
    progress = Progress("t", 10, 4000, 100, lambda *_: None, [])
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    for step in range(9):  # the first takes 5 s, for the graph, and the others half a second
        now[0] += 5 if step == 0 else 0.5
        progress.on_train_batch_end(step, {"loss": 1.0, "accuracy": 0.5})
    said = [line for line in capsys.readouterr().out.splitlines() if "per epoch" in line]
    assert said == ["t  about 50.0 s per epoch and 8.3 min in all, without validation, by its first 5 steps"]


@pytest.fixture
def compiled(ready, monkeypatch):
    """Returns a function that gives the compiled model and its batches instead of training."""

    class StopError(Exception):
        pass

    def run(**changes):
        found = {}

        def fit(model, batches, **_):
            found.update(model=model, batches=batches)
            raise StopError

        monkeypatch.setattr(keras.Model, "fit", fit)
        with pytest.raises(StopError):
            train("small", Train(**ENTRY | changes))
        return found["model"], found["batches"]

    return run


def test_googlenet_is_trained_with_the_papers_loss_weights_and_dropout(compiled):
    model, _ = compiled(architecture="googlenet", sizes={"stem": "small", "width": 0.06})
    # section 5: "their losses were weighted by 0.3", 70 % in the heads; table 1: 40 % before the last layer
    assert model.get_compile_config()["loss_weights"] == {"output": 1.0, "auxiliary_4a": 0.3, "auxiliary_4d": 0.3}
    assert sorted(layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)) == [0.4, 0.7, 0.7]


def test_label_smoothing_reaches_the_loss(compiled):
    model, _ = compiled(label_smoothing=0.15)
    assert model.get_compile_config()["loss"]["config"]["label_smoothing"] == 0.15


@pytest.mark.parametrize("balanced", [False, True])
def test_class_weights_make_every_class_count_the_same(compiled, ready, balanced):
    for path in sorted((ready / "raw/bars/down").iterdir())[:15]:
        path.unlink()
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    augment("bars", Augment(copies=1, seed=0, noise=5))
    _, batches = compiled(class_weights=balanced, batch=1000)
    [(_, targets, weights)] = batches.as_numpy_iterator()
    total, counts = weights @ targets, targets.sum(axis=0)
    assert counts[0] > 1.5 * counts[1]
    np.testing.assert_allclose(total, [counts.sum() / 2] * 2 if balanced else counts, rtol=1e-5)


def test_patience_works_with_auxiliary_heads(ready):
    sizes = {"stem": "small", "width": 0.06}
    train("inception", Train(**ENTRY | {"architecture": "googlenet", "sizes": sizes, "epochs": 2}, patience=1))
    assert len(pd.read_csv(ready / "train/bars/inception/history.csv")) >= 1
