"""A search: what may be asked, what is tried and where, what is left when it is killed, what is written at the end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
from browser import browser
from conftest import ROOT, wait_for
from optuna.trial import TrialState
from ruamel.yaml import YAML

from convoy import params
from convoy.errors import BusyError, ConfigurationError
from convoy.tracking import store
from flows.run import devices
from flows.run.exclusive import claim
from flows.tune import study as module
from flows.tune import trials as trials_module
from flows.tune.search import identify
from flows.tune.tune import TrialFailedError, read, tune
from stages import check
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.train.entry import Train
from stages.train.train import train

# What stands in for a training: the nearer its learning rate is to 0.01 the better it is, and the sooner.
TRIAL = """
import json, math, os, sys, time
from pathlib import Path
from ruamel.yaml import YAML
assert sys.argv[1:] == ["trial", "m"], sys.argv
entry = YAML(typ="safe").load(Path("params.yaml"))["train"]["m"]
rate, top = entry["learning_rate"], Path.cwd().parents[4]
files, threads = sorted(os.listdir("data/ingest/bars")), os.environ.get("OMP_NUM_THREADS")
with (top / "log").open("a") as log:
    log.write(json.dumps({"at": time.time(), "rate": rate, "threads": threads, "files": files}) + "\\n")
exec((top / "what").read_text() if (top / "what").exists() else "")
quality = 0.9 - 0.1 * abs(math.log10(rate / 0.01))
for epoch in range(1, 10):
    score = quality - 0.2 / epoch
    print("trial: " + json.dumps({"epoch": epoch, "loss": 1 - score, "accuracy": score, "val_loss": 1 - score,
                                  "val_accuracy": score, "learning_rate": rate}), flush=True)
    time.sleep(0.05)
print("trial: " + json.dumps({"kept": 9, "parameters": 7}), flush=True)
"""
PARAMS = """# What this file is about.
fetch: {}
ingest:
  bars: {kind: images, size: [12, 12], mode: grey}
augment:
  bars: {copies: 1, seed: 0, noise: 5}
train:
  m:                        # the model
    dataset: bars
    architecture: plain_cnn
    epochs: 9
    learning_rate: 1e-3     # per step
    sizes: {width: 0.1}

register: {}                # nobody is champion
tune:
  m:
    train:
      learning_rate: {low: 1e-5, high: 1e-1, log: true}
"""


@pytest.fixture
def bars(pictures, monkeypatch):
    """A checkout with a data set up to augment, whose test split cannot be read, and the search of PARAMS."""
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    augment("bars", Augment(copies=1, seed=0, noise=5))
    shutil.rmtree("data/ingest/bars/test")
    Path("params.yaml").write_text(PARAMS)
    monkeypatch.setattr(devices.tempfile, "gettempdir", os.getcwd)
    return pictures.parents[2]


@pytest.fixture
def quick(bars, monkeypatch):
    """The same with trials that take half a second."""
    code = bars / "code/stages"
    code.mkdir(parents=True)
    (code / "__main__.py").write_text(TRIAL)
    monkeypatch.setattr(trials_module, "CODE", code.parent)
    return bars


def ranges(text, model="m"):
    """Replaces the search of PARAMS."""
    Path("params.yaml").write_text(PARAMS.partition("tune:")[0] + f"tune:\n  {model}: {text}\n")


def trials(states=None):
    """Returns the trials of the newest study, oldest first."""
    storage = "sqlite:///data/tune/m/search.db"
    name = optuna.get_all_study_names(storage)[-1]
    return optuna.load_study(study_name=name, storage=storage).get_trials(states=states)


def log():
    return [json.loads(line) for line in Path("log").read_text().splitlines()] if Path("log").exists() else []


def runs():
    client = store.connect()
    return client.search_runs([client.get_experiment_by_name("bars").experiment_id])


def test_a_search_says_where_each_value_stands_and_what_the_entry_has(bars):
    ranges(
        "{train: {batch: [32, 128]}, sizes: {maps: [{low: 8, high: 64}, {low: 8, high: 99}]}, augment: {noise: [0, 5]}}"
    )
    search = read("m")
    assert search.own == {"batch": 128, "sizes.maps.0": 32, "sizes.maps.1": 64, "augment.noise": 5.0}
    assert search.changes(search.own) == {}
    assert search.changes(search.own | {"batch": 32, "sizes.maps.1": 65, "augment.noise": 0}) == {
        ("train", "m", "batch"): 32,
        ("train", "m", "sizes", "maps"): [32, 65],
        ("augment", "bars", "noise"): 0,
    }
    assert (search.objective, search.trials, search.augments) == ("val_accuracy", 30, True)


def test_values_are_within_their_ranges_and_short_enough_to_read(bars):
    ranges(
        "{train: {learning_rate: {low: 1e-5, high: 1e-1, log: true}, batch: {low: 32, high: 160, step: 32}, "
        "clip_norm: [null, 1.0]}, "
        "sizes: {maps: [[8, 16], [32, 64]], dropout: [{low: 0.0, high: 0.5}, {low: 0.5, high: 0.75}]}}"
    )
    search = read("m")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [module.suggest(study.ask(), search.ranges) for _ in range(200)]
    assert {one["batch"] for one in found} == {32, 64, 96, 128, 160}
    assert {str(one["clip_norm"]) for one in found} == {"None", "1.0"}
    assert {tuple(one["sizes.maps"]) for one in found} == {(8, 16), (32, 64)}
    rates = [one["learning_rate"] for one in found]
    assert min(rates) < 1e-4 < 1e-2 < max(rates)
    assert all(1e-5 <= rate <= 1e-1 and float(f"{rate:.4g}") == rate for rate in rates)
    assert all(0.5 <= one["sizes.dropout.1"] <= 0.75 for one in found)
    assert module.encode(found[0], search.ranges)["sizes.maps"] == json.dumps(found[0]["sizes.maps"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{train: {lerning_rate: [1, 2]}}", "lerning_rate is no key. Keys: learning_rate, batch, optimizer"),
        ("{sizes: {kernels: [3, 5]}}", r"sizes.kernels is no key. Keys: maps, units, dropout"),
        ("{augment: {swap: [0, 0.1]}}", "augment.swap is no key. Keys: copies, shift"),
        ("{trails: 3, train: {batch: [32, 128]}}", "unknown key 'trails'. Keys: train, sizes, augment, trials"),
        ("{train: {epochs: [3, 9]}}", "epochs cannot be tuned: they are the budget"),
        ("{train: {seed: [0, 1]}}", "seed cannot be tuned: a lucky seed"),
        ("{train: {batch: 32}}", r"batch = 32 is no range. Ranges: \{low"),
        ("{train: {batch: {low: 32, hihg: 64}}}", "is no range"),
        ("{train: {batch: {low: 256, high: 32}}}", "low is below high"),
        ("{train: {weight_decay: {low: 0, high: 1, log: true}}}", "with log, low is above 0"),
        ("{train: {batch: {low: 32, high: 256, step: 50}}}", "a whole number of steps"),
        ("{train: {batch: {low: many, high: 256}}}", "are numbers"),
        ("{train: {batch: [128]}}", "at least two different values"),
        ("{train: {batch: {low: null, high: 256}}}", "are numbers"),
        ("{train: {batch: {low: 32.0, high: 256.0}}}", "batch = 106.6.* is not valid"),
        ("{train: {batch: {low: 0, high: 256}}}", "batch = 0 is not valid: params.yaml, train.m: batch = 0: input"),
        ("{train: {optimizer: [adam, adm]}}", "optimizer = 'adm' is not valid: .*'sgd', 'adam' or 'adamw'"),
        ("{train: {vocabulary: [null, 100]}}", "would have no effect: images are not divided"),
        ("{augment: {noise: {low: -1.0, high: 9.0}}}", "augment.noise = -1.0 is not valid"),
        ("{sizes: {maps: [{low: 1, high: 99}]}}", r"ranges for 1 elements, and the entry's value is \[32, 64\]"),
        ("{}", "there is no range"),
    ],
)  # fmt: skip
def test_a_range_that_cannot_be_is_refused_by_check_before_any_work(bars, text, message):
    ranges(text)
    with pytest.raises(ConfigurationError, match=rf"params.yaml, tune.m: .*({message})"):
        check.check()


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("{train: {batch: [32, 64]}}", "128"),
        ("{train: {clip_norm: {low: 0.5, high: 5.0}}}", "null"),
        ("{train: {learning_rate: {low: 1e-2, high: 1e-1}}}", "0.001"),
    ],
)
def test_a_range_without_the_entrys_value_stops_the_search_and_nothing_else(bars, text, own, capsys):
    ranges(text)
    check.check()
    assert f"{own}, which the entry has, is not in it" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=f"{own}, which the entry has, is not in it"):
        tune("m")


def test_a_choice_is_tried_as_it_is_written(bars):
    ranges("{train: {weight_decay: [0, 1e-3], label_smoothing: [0.0, 0.1]}, augment: {noise: [0, 5]}}")
    search = read("m")
    study = optuna.create_study()
    study.enqueue_trial(module.encode(search.own, search.ranges))
    assert module.suggest(study.ask(), search.ranges) == search.own


def test_a_grid_is_not_left_by_rounding(bars):
    ranges("{train: {label_smoothing: {low: 0.0, high: 0.96875, step: 0.03125}}}")
    search = read("m")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = {module.suggest(study.ask(), search.ranges)["label_smoothing"] for _ in range(200)}
    assert len(found) > 20
    assert all(search.ranges["label_smoothing"].has(one) for one in found)


def test_whole_numbers_and_fractions_are_two_searches(bars):
    names = set()
    for text in ("{low: 0, high: 1}", "{low: 0.0, high: 1.0}"):
        ranges(f"{{train: {{warmup: {text}}}}}")
        names.add(identify(read("m")))
    assert len(names) == 2


def test_a_search_of_a_model_that_does_not_exist_is_refused(bars):
    ranges("{train: {batch: [32, 128]}}", model="n")
    with pytest.raises(ConfigurationError, match="train has no model 'n'. It has: m"):
        check.check()
    with pytest.raises(ConfigurationError, match=r"no tune entry 'm'. Entries: n\. .*README.md, Search"):
        read("m")


@pytest.mark.parametrize(
    ("key", "values"), [("batch", [32, 64]), ("label_smoothing", [0.0, 0.1]), ("vocabulary", [None, 9])]
)
def test_a_translation_is_judged_by_its_loss_whose_meaning_no_search_changes(workspace, key, values):
    sections, name = params.load(ROOT / "params.yaml"), "numbers_conv_seq2seq"
    with Path("params.yaml").open("w") as file:
        YAML().dump(sections | {"tune": {name: {"train": {key: values}}}}, file)
    if key == "batch":
        assert (read(name).objective, read(name).smaller) == ("val_loss", True)
    else:
        with pytest.raises(ConfigurationError, match=f"{key} cannot be tuned: it changes what val_loss means"):
            read(name)


def test_other_values_change_their_lines_of_params_yaml_and_no_others(workspace):
    before = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(before)
    params.write({})
    assert Path("params.yaml").read_text() == before
    changes = {
        ("train", "lenet5", "learning_rate"): 0.0031,
        ("train", "lenet5", "sizes", "maps"): [8, 24],
        ("train", "plain_cnn", "batch"): 64,
        ("train", "docs_text_cnn", "sizes", "dropout"): 0.4,
        ("augment", "reviews", "mask"): 0.2,
    }
    params.write(changes)
    after = Path("params.yaml").read_text()
    expected = before
    for old, new in (
        ("    learning_rate: 2e-3     # per step", "    learning_rate: 0.0031   # per step"),
        ("for batches of 128\n", "for batches of 128\n    sizes: {maps: [8, 24]}\n"),
        (
            "    warmup: 1\n    precision: auto         # bf",
            "    warmup: 1\n    batch: 64\n    precision: auto         # bf",
        ),
        ("sizes: {embedding: 128}", "sizes: {dropout: 0.4, embedding: 128}"),
        ("    mask: 0.1\n", "    mask: 0.2\n"),
    ):
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert after == expected


def test_the_form_of_a_users_own_file_stays(workspace):
    text = (
        "fetch: {}\naugment: {}\nregister: {}\ningest:\n    a:\n        kind: 'images'  # quoted\n"
        "train:\n    b:\n        dataset: a\n        milestones:\n          - 0.5\n          - 0.75\n"
        "        batch: 0x20\n"
    )
    Path("params.yaml").write_text(text)
    params.write({("train", "b", "batch"): 64})
    assert Path("params.yaml").read_text() == text.replace("0x20", "64")


def test_entries_that_share_what_they_say_are_not_changed(workspace):
    text = "fetch: {}\naugment: {}\nregister: {}\ningest: {a: {}}\ntrain:\n  b: &b {dataset: a, batch: 1}\n  c: *b\n"
    Path("params.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="train.b.batch cannot be changed without changing more"):
        params.write({("train", "b", "batch"): 2})
    assert Path("params.yaml").read_text() == text
    assert not list(workspace.glob("*.partial"))


def test_the_best_values_come_into_params_yaml_and_a_page_and_nothing_else_changes(quick, capsys):
    tune("m", trials=12)
    whole = trials((TrialState.COMPLETE,))
    assert whole[0].number == 0 and whole[0].user_attrs["values"] == {"learning_rate": 0.001}
    best = max(whole, key=lambda one: one.value)
    assert best.value > whole[0].value
    rate = best.user_attrs["values"]["learning_rate"]
    expected = re.sub(r"1e-3 +# per step", f"{rate!s:<7} # per step", PARAMS)
    assert Path("params.yaml").read_text().split() == expected.split()
    assert "  learning_rate: " in Path("params.yaml").read_text()
    said = capsys.readouterr().out
    assert f"train.m.learning_rate: {rate}" in said
    assert "`dvc repro` trains with them" in said
    assert {path.name for path in Path("data").iterdir()} == {"augment", "ingest", "raw", "tune"}
    assert not Path("dvc.lock").exists()
    assert not Path("data/tune/m/trials").exists()
    page = Path("data/tune/m/report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for text in (
        "learning_rate",
        "1e-05 to 0.1 (log)",
        f"trial {best.number}",
        "params.yaml has them now",
        "importance",
    ):
        assert text in page


def test_the_page_needs_nothing_else_and_has_no_complaints(quick):
    ranges("{train: {learning_rate: [1e-3, 1e-2]}}")
    tune("m", trials=2)
    with browser(quick / "browser") as tab:
        tab.go((quick / "data/tune/m/report.html").as_uri())
        assert tab.complaints() == []
        assert all(address.startswith(("file:", "data:")) for address in tab.requests())
        tab.size(375)
        assert tab.run("document.documentElement.scrollWidth") <= 375  # less where a bar to scroll takes its part


def test_poor_trials_end_early_and_the_entrys_own_does_not(quick):
    Path("params.yaml").write_text(PARAMS.replace("learning_rate: 1e-3", "learning_rate: 1e-5"))  # the worst
    tune("m", trials=14)
    pruned = trials((TrialState.PRUNED,))
    assert pruned
    assert all(len(one.intermediate_values) < 9 for one in pruned)
    own = trials()[0]
    assert own.state == TrialState.COMPLETE and len(own.intermediate_values) == 9
    children = [run for run in runs() if run.data.tags.get("state") == "pruned"]
    assert len(children) == len(pruned)


def test_mlflow_has_a_run_for_the_search_and_one_in_it_for_each_trial(quick):
    tune("m", trials=3)
    [parent] = [run for run in runs() if run.info.run_name == "tune@m"]
    children = {
        run.info.run_name: run for run in runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert set(children) == {"trial 0", "trial 1", "trial 2"}
    assert {run.info.status for run in children.values()} == {parent.info.status} == {"FINISHED"}
    first = children["trial 0"]
    assert first.data.params == {"learning_rate": "0.001"}
    assert {first.data.tags[key] for key in ("stage", "model", "dataset")} == {"tune", "m", "bars"}
    curve = store.connect().get_metric_history(first.info.run_id, "val_accuracy")
    assert [point.step for point in curve] == list(range(1, 10))
    assert curve[-1].value == pytest.approx(0.8 - 0.2 / 9)
    assert parent.data.params["learning_rate"] == "1e-05 to 0.1 (log)"
    assert parent.data.metrics["val_accuracy_of_entry"] == pytest.approx(0.8 - 0.2 / 9)
    assert [one.path for one in store.connect().list_artifacts(parent.info.run_id)] == ["report.html"]


def test_values_that_are_best_already_stay_to_the_byte(quick, capsys):
    text = PARAMS.replace("learning_rate: 1e-3 ", "learning_rate: 0.01 ")
    Path("params.yaml").write_text(text)
    tune("m", trials=4)
    assert Path("params.yaml").read_text() == text
    assert "params.yaml stays as it is" in capsys.readouterr().out


def test_values_are_not_written_over_an_entry_that_was_edited_meanwhile(quick, capsys):
    ranges("{train: {learning_rate: [1e-3, 1e-2]}}")
    Path("what").write_text(
        "p = top / 'params.yaml'\nif rate == 0.01: p.write_text(p.read_text().replace('epochs: 9', 'epochs: 8'))"
    )
    tune("m", trials=9)
    assert "params.yaml says something else than when the search began" in capsys.readouterr().out
    text = Path("params.yaml").read_text()
    assert "epochs: 8" in text and "learning_rate: 1e-3 " in text


def test_equal_values_are_not_tried_twice(quick):
    ranges("{train: {learning_rate: [1e-3, 1e-2]}}")
    tune("m", trials=9)
    assert sorted(entry["rate"] for entry in log()) == [0.001, 0.01]
    assert len(trials()) == 9
    assert sum("same" in one.user_attrs for one in trials()) == 7


def test_trials_run_at_once_on_slots_and_see_no_test_split(quick):
    Path("what").write_text("time.sleep(1.5)")
    tune("m", trials=4, slots=2)
    began = sorted(entry["at"] for entry in log())
    assert began[1] - began[0] < 1.5
    assert began[2] - began[0] >= 1.5
    assert {entry["threads"] for entry in log()} == {str(max(1, devices.cores() // 2))}
    assert {tuple(entry["files"]) for entry in log()} == {("about.json", "key.json", "train", "val")}


def test_no_trial_begins_after_the_minutes(quick):
    Path("what").write_text("time.sleep(1)")
    tune("m", trials=100, minutes=0.02)
    assert 1 <= len(log()) <= 3


def test_what_diverges_or_cannot_be_counts_as_poor_and_the_search_goes_on(quick):
    Path("what").write_text("if rate != 0.001: print('error: the loss is nan'); sys.exit(7)")
    tune("m", trials=4)
    assert [one.state for one in trials()] == [TrialState.COMPLETE] + [TrialState.PRUNED] * 3
    assert {one.user_attrs.get("why") for one in trials()[1:]} == {"the loss is nan"}
    assert "the loss is nan" in Path("data/tune/m/report.html").read_text()
    assert sorted(run.info.status for run in runs()) == ["FAILED"] * 3 + ["FINISHED"] * 2


@pytest.mark.parametrize(("status", "passes"), [(2, False), (7, False), (6, True)])
def test_the_entrys_own_values_or_a_service_that_fail_stop_the_search(quick, status, passes):
    Path("what").write_text(f"print('error: no'); sys.exit({status})")
    with pytest.raises(TrialFailedError, match="trial 0: no") as error:
        tune("m", trials=3)
    assert error.value.status == status
    Path("what").unlink()
    tune("m", trials=3)  # the same command goes on
    assert trials()[0].state == TrialState.FAIL
    assert trials((TrialState.COMPLETE,))[0].user_attrs["values"] == {"learning_rate": 0.001}


def test_a_trial_that_was_killed_is_marked_failed_and_done_again_once(quick):
    Path("what").write_text(
        "if rate != 0.001 and len((top / 'log').read_text().splitlines()) in (2, 4, 5): os.kill(os.getpid(), 9)"
    )
    tune("m", trials=3)
    found = [(one.state, one.user_attrs["values"], one.user_attrs.get("why")) for one in trials()]
    assert [state for state, *_ in found] == [
        TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED,
    ]  # fmt: skip
    assert found[1][1] == found[2][1] and found[3][1] == found[4][1]
    assert found[4][2] == "killed by signal 9"


def test_a_trial_whose_memory_others_have_is_done_again_once_and_ends_no_search(quick):
    said = "error: trial@m needs about 9 GiB of memory; 1 GiB of 16 GiB are free. Run again when others have ended."
    Path("what").write_text(f"if rate != 0.001: print({said!r}); sys.exit(6)")
    tune("m", trials=2)
    assert [one.state for one in trials()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]


def test_fault_16_a_second_search_of_the_model_is_refused(quick):
    with (
        claim("search of m", lambda _: None, Path("data/tune/m/.search.json")),
        pytest.raises(BusyError, match=rf"another search of m runs here, since .*: process {os.getpid()}"),
    ):
        tune("m")


def test_without_its_data_a_search_names_the_stage_that_makes_it(quick):
    shutil.rmtree("data/augment/bars/train")
    with pytest.raises(
        ConfigurationError, match=r"augment/bars/train/index.json is not there. `dvc repro augment@bars`"
    ):
        tune("m")


def test_other_ranges_begin_a_new_study_and_other_budgets_do_not(quick):
    tune("m", trials=2)
    tune("m", trials=3)
    assert len(log()) == 3
    ranges("{train: {learning_rate: {low: 1e-6, high: 1e-1, log: true}}}")
    tune("m", trials=1)
    assert len(log()) == 4


COMMAND = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from flows import cli
from flows.run import devices
from flows.tune import trials as module
devices.tempfile.gettempdir = os.getcwd
if Path("code").exists():
    module.CODE = Path("code").resolve()
sys.exit(cli.main(["tune", "m", "--trials", *sys.argv[1:]]))
"""


def start(trials):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(trials)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def works():
    """Returns the processes of trials that are alive."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if "/data/tune/m/trials/" in (process.info["cwd"] or "") and process.info["cwd"].startswith(str(Path.cwd())):
            found += [process] if process.info["status"] != psutil.STATUS_ZOMBIE else []
    return found


def test_ctrl_c_ends_the_trial_and_the_same_command_goes_on(quick):
    Path("what").write_text("time.sleep(60 if rate != 0.001 else 0)")
    process = start(2)
    wait_for(lambda: len(log()) == 2, 90)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert not works()
    Path("what").unlink()
    tune("m", trials=2)
    assert [entry["rate"] for entry in log()[1:]] == [log()[1]["rate"]] * 2
    killed = [run.info.run_name for run in runs() if run.info.status == "KILLED"]
    assert killed == ["trial 1"]
    assert len([run for run in runs() if run.info.run_name == "tune@m"]) == 1


def test_after_sigkill_the_same_command_goes_on_and_the_values_train_as_they_were_tried(bars):
    ranges("{train: {learning_rate: {low: 1e-4, high: 1e-2, log: true}}, augment: {noise: {low: 0.0, high: 20.0}}}")
    text = Path("params.yaml").read_text()  # within the warm-up no trial is ended early
    Path("params.yaml").write_text(text.replace("epochs: 9", "epochs: 60\n    warmup: 60"))
    process = start(2)

    def second_works():
        return Path("data/tune/m/trials/0001").exists() and len(trials()[1].intermediate_values) > 1

    wait_for(second_works, 180)
    process.kill()
    said = process.communicate(timeout=30)[0]
    wait_for(lambda: not works(), 5)
    first, second = trials()
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.RUNNING), said
    again = start(2)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert "the last search of m did not end" in said
    assert "trial 1 was not at its end: it is done again" in said
    assert [one.state for one in trials()][:2] == [TrialState.COMPLETE, TrialState.FAIL]
    third = trials()[2]
    assert third.user_attrs["values"] == second.user_attrs["values"]
    assert {(run.info.run_name, run.info.status) for run in runs()} == {
        ("tune@m", "FINISHED"), ("trial 0", "FINISHED"), ("trial 1", "KILLED"), ("trial 2", "FINISHED"),
    }  # fmt: skip
    # What dvc repro would do with the values that params.yaml has now gives what the search saw.
    sections = params.load()
    augment("bars", Augment(**sections["augment"]["bars"]))
    train("m", Train(**sections["train"]["m"]))
    history = pd.read_csv("data/train/bars/m/history.csv")
    best = max(trials((TrialState.COMPLETE,)), key=lambda one: (one.value, -one.user_attrs["val_loss"]))
    assert history["val_accuracy"].tolist() == pytest.approx(list(best.intermediate_values.values()), abs=1e-6)
