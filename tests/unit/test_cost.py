"""Operations as papers publish them, memory as arithmetic says, and what becomes of a model that does not fit."""

import json
import subprocess
import sys
from importlib import import_module

import keras
import numpy as np
import psutil
import pytest
from conftest import ROOT
from keras import layers

from convoy.data.shards import Shards, write_shards
from convoy.data.vocabulary import Vocabulary
from convoy.errors import ConfigurationError, ServiceError
from convoy.machine import gpus, room
from convoy.model import backend
from flows import cli
from flows.show import plan
from stages.__main__ import main
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.check import prepare
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.train.entry import Train
from stages.train.fit import resident
from stages.train.speed import cost
from stages.train.speed.commands import plan as planned
from stages.train.speed.count import count
from stages.train.train import train

GIB = 2**30
ENTRY = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 2, "learning_rate": 0.01}

PUBLISHED = [  # architecture, sizes, millions of multiply-adds of an example, and how exactly they are published
    ("lenet5", {}, 0.41652, 0),  # by hand: 117,600 + 240,000 + 48,000 + 10,080 + 840
    ("alexnet", {"groups": 2}, 724.4, 0.05),  # Sze et al. 2017, arXiv:1703.09039, table II: 666 + 58.6
    ("resnet", {"depth": 18}, 1814, 1),  # torchvision: 1.814 G
    ("resnet", {"depth": 34}, 3664, 1),  # torchvision: 3.664 G
    ("resnet", {"depth": 50}, 4089, 1),  # torchvision: 4.089 G, with the stride in the 3x3 as ours
    ("resnet", {"depth": 101}, 7801, 1),  # torchvision: 7.801 G
    ("resnet", {"input_shape": (32, 32, 3), "classes": 10, "stem": "cifar", "depth": 20}, 40.55, 0.05),  # 40.55 M
    ("conv3d", {"input_shape": (16, 112, 112, 3), "classes": 400, "depth": 18}, 40697, 1),  # torchvision: 40.697 G
    ("conv3d", {"style": "stack", "classes": 487}, 38500, 60),  # Tran et al. 2017, arXiv:1711.11248, table 1: 38.5 G
]
APPLICATIONS = [  # those of Keras, millions of multiply-adds
    ("VGG16", 15470, 1),  # torchvision: 15.470 G
    ("ResNet50", 3858, 60),  # He et al. 2015, table 1: 3.8 G; the stride in the first 1x1
    ("MobileNet", 569, 1),  # Howard et al. 2017, arXiv:1704.04861, table 8; depthwise convolutions
    ("MobileNetV2", 300, 1),  # Sandler et al. 2018, arXiv:1801.04381, table 4
]
# Table 1 of arXiv:1409.4842, column ops, in millions; of its first row, 34, the convolution alone has 118
GOOGLENET = {
    "inception_3a": 128, "inception_3b": 304, "inception_4a": 73, "inception_4b": 88, "inception_4c": 100,
    "inception_4d": 119, "inception_4e": 170, "inception_5a": 54, "inception_5b": 71,
}  # fmt: skip
SMALL = [  # architecture, sizes, length of texts
    ("lenet5", {}, None),
    ("plain_cnn", {"input_shape": (12, 12, 1), "width": 0.2}, None),
    ("alexnet", {"input_shape": (32, 32, 1), "stem": "small", "width": 0.05}, None),
    ("googlenet", {"input_shape": (32, 32, 1), "stem": "small", "width": 0.1}, None),
    ("resnet", {"input_shape": (32, 32, 1), "stem": "small", "depth": 50, "width": 0.1}, None),
    ("text_cnn", {"words": 30, "maps": 10, "embedding": 8}, 20),
    ("char_cnn", {"words": 30, "length": 130, "width": 0.1}, 130),
    ("conv_seq2seq", {"source_words": 20, "target_words": 30, "width": 0.1}, 12),
    ("conv3d", {"input_shape": (8, 16, 16, 1), "depth": 10, "stem": "small", "width": 0.1}, None),
]


def built(architecture, **sizes):
    """Returns a network without weights."""
    with keras.StatelessScope(initialize_variables=False):
        return import_module(f"stages.train.architectures.{architecture}").build(**sizes)


def counted(model, batch=1, length=None):
    return count(model, [(batch, *(length if size is None else size for size in one.shape[1:]))
                              for one in model.inputs])  # fmt: skip


@pytest.mark.parametrize(("architecture", "sizes", "millions", "within"), PUBLISHED)
def test_an_architecture_has_the_published_multiply_adds(architecture, sizes, millions, within):
    products = counted(built(architecture, **sizes)).products
    # The product with the band matrix is our way to local response normalisation, which tables do not count.
    found = sum(number for name, number in products.items() if not name.startswith("matmul"))
    assert found / 1e6 == pytest.approx(millions, abs=within)


@pytest.mark.parametrize(("name", "millions", "within"), APPLICATIONS)
def test_networks_of_keras_have_the_published_multiply_adds(name, millions, within):
    with keras.StatelessScope(initialize_variables=False):
        model = getattr(keras.applications, name)(weights=None)
    assert sum(counted(model).products.values()) / 1e6 == pytest.approx(millions, abs=within)


def test_googlenet_has_those_of_its_table_row_by_row():
    products = counted(built("googlenet")).products
    for name, millions in GOOGLENET.items():
        row = name.removeprefix("inception_")
        found = sum(number for layer, number in products.items() if row in layer)
        assert found / 1e6 == pytest.approx(millions, rel=0.06), name  # 5a: 51 by hand


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "sizes", "length"), SMALL, ids=[row[0] for row in SMALL])
def test_operations_are_those_that_tensorflow_counts_in_its_own_graph(architecture, sizes, length):
    import tensorflow as tf
    from tensorflow.compat.v1.profiler import ProfileOptionBuilder, profile
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = import_module(f"stages.train.architectures.{architecture}").build(**sizes)
    specs = [tf.TensorSpec([1, *(length if size is None else size for size in one.shape[1:])], one.dtype)
             for one in model.inputs]  # fmt: skip
    traced = tf.function(lambda *given: model(given if len(given) > 1 else given[0])).get_concrete_function(*specs)
    graph = convert_variables_to_constants_v2(traced).graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output().build()
    found = profile(graph, cmd="op", options=options)
    operations = {}
    while found.children:
        [found] = found.children
        operations[found.name] = found.float_ops
    expected = sum(operations.get(name, 0) for name in ("Conv2D", "Conv3D", "MatMul", "BatchMatMulV2"))
    assert 2 * sum(counted(model, length=length).products.values()) == expected
    assert expected


def test_what_a_step_keeps_is_what_gradients_are_computed_from():
    image = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)  # (4, 4, 4)
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))  # (2, 2, 4)
    model = keras.Model(image, layers.Dense(3, activation="softmax")(x))
    found = counted(model, batch=10)
    # The picture, the convolution's output, the pooled, the flat that the dense layer takes, and the answers
    assert found.kept == 4 * 10 * (36 + 64 + 16 + 16 + 3)
    assert found.largest == 4 * 10 * 64
    assert found.layers == 2
    linear = keras.Model(image, layers.Add()([image, layers.Rescaling(2.0)(image)]))
    assert counted(linear).kept == 0


def test_in_bfloat16_a_step_keeps_half():
    full = counted(built("resnet", depth=18), batch=8).kept
    with backend.computing_in("bfloat16"):
        half = counted(built("resnet", depth=18), batch=8).kept
        plain = counted(built("plain_cnn", input_shape=(32, 32, 1)), batch=8).kept
    assert plain / counted(built("plain_cnn", input_shape=(32, 32, 1)), batch=8).kept == pytest.approx(0.5, abs=0.05)
    # Batch normalisation computes in float32: of what it is given 2 + 4 bytes are kept instead of 4, behind it 2 of 4.
    assert half / full == pytest.approx(1, abs=0.05)


def test_a_network_of_a_third_of_a_terabyte_is_counted_without_it():
    before = psutil.Process().memory_info().rss
    model = built("alexnet", width=40)
    assert model.count_params() > 9e10
    assert counted(model).largest > 0
    keras.utils.clear_session()
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that sets the memory there is, in GiB."""

    def holds(free, total):
        monkeypatch.setattr(room, "available", lambda: (round(free * GIB), round(total * GIB)))

    return holds


def entry_of(**changes):
    """Returns the entry with some changes, as params.yaml would give it."""
    return prepare("train", "large", ENTRY | changes)


def needed(**changes):
    found = planned("large", entry_of(**changes))
    return (found["memory"] - found["data"]) / GIB


@pytest.mark.slow
def test_a_model_that_cannot_fit_is_refused_with_what_would(ready, machine, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("it was trained"))
    machine(4, 4)
    said = r"train@large needs about [\d,.]+ GiB of memory; 4.0 GiB of 4.0 GiB are free. It would fit with width: "
    with pytest.raises(ConfigurationError, match=said) as caught:
        train("large", Train(**ENTRY | {"sizes": {"width": 64.0}}))
    assert not (ready / "train/bars/large/run.json").exists()
    width = float(str(caught.value).split("width: ")[1].split(" ")[0])
    assert needed(sizes={"width": width}) <= 4 < needed(sizes={"width": 2 * width})  # the largest half that fits


@pytest.mark.slow
def test_of_what_others_have_there_may_be_enough_later(ready, machine, monkeypatch):
    monkeypatch.setattr(cost, "BASE", 0)  # so that a batch is what counts
    monkeypatch.setattr(cost, "LAYER", 0)
    changes = {"architecture": "resnet", "sizes": {"stem": "cifar", "depth": 8, "width": 0.5}}
    machine((needed(**changes) / 1.25 + needed(**changes | {"batch": 40})) / 2, 64)
    with pytest.raises(ServiceError, match=r"Run again when others have ended. It would fit with batch: 40 \(about"):
        train("large", Train(**ENTRY | changes))


@pytest.mark.slow
def test_what_may_fit_is_tried(ready, machine, capsys):
    machine(needed() / 1.2, 64)
    train("large", Train(**ENTRY))
    assert "it may not fit. Neither a smaller batch, nor" in capsys.readouterr().out  # 0.9 GiB are the libraries
    assert (ready / "train/bars/large/run.json").exists()


@pytest.mark.slow
def test_a_training_says_what_it_costs_and_leaves_the_operations(ready, capsys):
    train("small", Train(**ENTRY))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "MFLOPs" in line]
    found = planned("small", entry_of())
    facts = json.loads((ready / "train/bars/small/run.json").read_text())
    assert line.startswith(f"train@small  {facts['parameters']:,} parameters, ")
    assert "80 examples; about 8" in line
    assert facts["flops"] == found["flops"]
    assert (found["parameters"], found["examples"]) == (facts["parameters"], 80)


def test_the_status_of_a_refused_training_is_that_of_a_wrong_entry(ready, machine, workspace, capsys):
    machine(0.1, 0.1)
    sections = {name: {} for name in ("fetch", "ingest", "augment", "register")}
    (workspace / "params.yaml").write_text(json.dumps(sections | {"train": {"large": ENTRY}}))
    assert main("train", "large") == ConfigurationError.status
    assert "error: train@large needs about" in capsys.readouterr().err
    [entry] = [json.loads(line) for line in (workspace / "data/journal.jsonl").read_text().splitlines()]
    assert (entry["stage"], entry["status"]) == ("train@large", 2)


def too_much_for_numpy(*_, **__):
    np.empty(2**60, np.uint8)


def too_much_for_tensorflow(*_, **__):
    import tensorflow as tf

    tf.zeros([2**50])


@pytest.mark.slow
@pytest.mark.parametrize("fit", [too_much_for_numpy, too_much_for_tensorflow])
def test_fault_07_memory_that_ends_in_training_is_an_error_that_says_so(ready, monkeypatch, fit):
    monkeypatch.setattr(keras.Model, "fit", fit)
    with pytest.raises(
        ServiceError, match=r"train@small is out of memory .*: about \d+ MiB were expected; .* are free"
    ):
        train("small", Train(**ENTRY))


def test_other_errors_stay_what_they_are(ready, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: {}["loss"])
    with pytest.raises(KeyError, match="loss"):
        train("small", Train(**ENTRY))


def test_costs_are_printed_for_each_training_or_why_not(ready, workspace, capsys):
    later = ENTRY | {"dataset": "later"}
    wrong = ENTRY | {"architecture": "lenet5", "sizes": {}}  # 12x12 are too few pixels
    sections = {name: {} for name in ("fetch", "ingest", "augment", "register")}
    entries = {"small": ENTRY, "later": later, "wrong": wrong}
    (workspace / "params.yaml").write_text(json.dumps(sections | {"train": entries}))
    assert cli.main(["cost", "small", "later", "wrong", "none"]) == 0
    small, later, wrong, none = map(json.loads, capsys.readouterr().out.splitlines())
    assert small["model"] == "small"
    assert small["device"].startswith("cpu")
    assert later == {"model": "later", "unknown": "its data is not there yet"}
    assert "lenet5 cannot be built" in wrong["unknown"]
    assert "no train entry 'none'" in none["unknown"]


@pytest.mark.parametrize("texts", [100, 400])
def test_a_text_costs_what_its_length_does(workspace, texts):
    """Of texts of 8 words and one of 40 in text_cnn: 8 words on average, and a step for 40."""
    (workspace / "data/raw/talk").mkdir(parents=True)
    rows = [f"{'yes no ' * (20 if number == 7 else 4)}{number},{'ab'[number % 2]}" for number in range(texts)]
    (workspace / "data/raw/talk/talk.csv").write_text("\n".join(["text,label", *rows]))
    ingest("talk", Ingest(kind="text", near_duplicates=False))
    augment("talk", Augment(copies=0, seed=0))
    entry = {"dataset": "talk", "architecture": "text_cnn", "sizes": {"maps": 10, "embedding": 8, "widths": [3]}}
    known = prepare("train", "talk", entry)
    found = planned("talk", known)
    places = 12 + 2  # 9 words, filled up to a multiple of 4, and the window over both ends
    assert found["flops"] == 2 * (places * 3 * 8 * 10 + 10 * 2)
    # A step is for the longest text, 41 words; an entry may read fewer. The 2 layers cost the same each time.
    steps = [
        planned("talk", known.model_copy(update={"length": length}))["step"] - 2 * cost.LAYER for length in (40, 12)
    ]
    per_place = [step / (length + 2) for step, length in zip(steps, (40, 12), strict=True)]
    assert per_place[0] == pytest.approx(per_place[1], rel=0.1)


@pytest.mark.parametrize(("most", "times"), [(resident.MOST, 2), (100, 1)], ids=["held", "not held"])
def test_texts_cost_the_memory_of_their_tokens(workspace, monkeypatch, most, times):
    """Four bytes each, and eight for each text; twice, where TensorFlow holds them too."""
    texts = np.array([" ".join(["word"] * (1 + number % 9)) for number in range(900)], object)
    write_shards(workspace / "a", [{"text": texts, "label": np.zeros(len(texts), np.int64)}])
    input_spec = {"kind": "text", "text": Vocabulary("words", ["word"]).to_json(), "length": 8, "classes": ["+", "-"]}
    monkeypatch.setattr(resident, "MOST", most)
    sizes = {"maps": 10, "embedding": 8, "widths": [3]}
    entry = Train(dataset="a", architecture="text_cnn", sizes=sizes, epochs=1, learning_rate=0.01, batch=32)
    found = cost.estimate(Shards(workspace / "a"), input_spec, entry, "float32")
    assert found.held == times * 100 * (4 * (36 + 8) + 9 * 8)  # of 9 words one is cut off


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/job\n", {"sys/fs/cgroup/job/memory.max": 2 * GIB, "sys/fs/cgroup/job/memory.current": GIB,
                       "sys/fs/cgroup/job/memory.stat": "anon 5\ninactive_file 1000\n"}),
        ("0::/job/step\n", {"sys/fs/cgroup/job/step/memory.max": "max", "sys/fs/cgroup/job/step/memory.current": 0,
                            "sys/fs/cgroup/job/step/memory.stat": "", "sys/fs/cgroup/job/memory.max": 2 * GIB,
                            "sys/fs/cgroup/job/memory.current": GIB,
                            "sys/fs/cgroup/job/memory.stat": "inactive_file 1000\n"}),
        ("0::/of/the/host\n", {"sys/fs/cgroup/memory.max": 2 * GIB, "sys/fs/cgroup/memory.current": GIB,
                               "sys/fs/cgroup/memory.stat": "inactive_file 1000\n"}),
        ("5:cpu:/a\n4:memory:/a\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": 2 * GIB,
                                     "sys/fs/cgroup/memory/a/memory.usage_in_bytes": GIB,
                                     "sys/fs/cgroup/memory/a/memory.stat": "total_inactive_file 1000\n"}),
    ],
    ids=["2", "2, above", "2, in a container", "1"],
)  # fmt: skip
def test_a_control_group_bounds_what_is_free(tmp_path, line, files):
    for name, content in ({"proc/self/cgroup": line} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}".strip() + "\n")
    free, total = room.available(tmp_path)
    assert total == 2 * GIB
    assert free == pytest.approx(GIB + 1000 + psutil.Process().memory_info().rss, abs=2**24)


def test_without_control_groups_the_machine_is_the_bound(tmp_path):
    free, total = room.available(tmp_path)
    assert total == psutil.virtual_memory().total
    assert 0 < free <= total


def test_of_several_gpus_the_fullest_is_the_bound(monkeypatch):
    monkeypatch.setattr(gpus, "memory", lambda: [(1000 * 2**20, 81559 * 2**20), (500 * 2**20, 81559 * 2**20)])
    monkeypatch.setattr(backend, "devices", lambda: ["gpu:0", "gpu:1"])
    spent = cost.Cost(parameters=1, flops=1, examples=1, weights=7, step=5, devices=2, data=3, held=1)
    assert cost._room(spent) == (12, 500 * 2**20, 81559 * 2**20, " of the device")


RUNS = [
    {"model": name, "architecture": architecture, "flops": flops, "examples_per_second": speed, "devices": [device],
     "finished": finished}
    for finished, (name, architecture, flops, speed, device) in enumerate([
        ("a", "resnet", 9e6, 900, "cpu:0"),  # of another data set that it had before
        ("a", "resnet", 1e6, 100, "cpu:0"),
        ("b", "resnet", 1e8, 2, "cpu:0"),
        ("c", "lenet5", 1e6, 1000, "gpu:0"),
    ])
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "architecture", "device", "rate", "whose"),
    [
        ("a", "resnet", "cpu:0", 3e8, "train@a"),  # its own last run; a step is worth three times the way forth
        ("new", "resnet", "cpu:0", 6e8, "train@b"),  # 5e7 is nearer to 1e8 than to 1e6
        ("new", "conv3d", "cpu:0", plan.RATES["cpu"], "4e+10 operations/s"),
        ("new", "resnet", "gpu:0", None, "unknown"),  # what a CPU took says nothing
        ("c", "lenet5", "gpu:0", 3e9, "train@c"),
    ],
)
def test_the_time_is_that_of_the_run_most_like_it(model, architecture, device, rate, whose):
    asked = {"model": model, "architecture": architecture, "flops": 5e7, "device": device}
    assert plan.speed(asked, RUNS) == (rate, whose)
    older = [{key: value for key, value in run.items() if key != "flops"} for run in RUNS]
    assert plan.speed(asked, older)[1] in ("4e+10 operations/s", "unknown")


@pytest.mark.slow
def test_where_the_command_fails_the_plan_says_why(workspace, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [found] = plan.costs(["a"])
    assert found["model"] == "a"
    assert "params.yaml not found" in found["unknown"]


def test_the_memory_of_a_stage_is_counted_once():
    """A program that is started has the memory of who starts it, until it runs."""
    code = (
        "import subprocess, sys\nfrom convoy.machine.room import peak\nlarge = bytearray(300 * 2**20)\n"
        "subprocess.run(['true'], check=True)\nprint(peak() / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 300 < float(done.stdout) < 450
