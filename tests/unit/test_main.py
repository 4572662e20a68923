"""The one entry point: every mistake is one line that says what came in and what exists, exit 2, before any work."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import NO_ENTRIES, ROOT, bars
from ruamel.yaml import YAML

from convoy.errors import ConfigurationError, ServiceError
from flows import cli
from stages.__main__ import main
from stages.train import signatures


@pytest.fixture
def edited(workspace):
    """Returns a function that writes the shipped params.yaml with one change."""

    def edit(stage=None, name=None, **changes):
        sections = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
        if stage:
            sections[stage].setdefault(name, {}).update(changes)
        with (workspace / "params.yaml").open("w") as file:
            YAML().dump(sections, file)

    return edit


def test_the_shipped_params_pass(edited):
    edited()
    assert cli.main(["check"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("train", "resnet", {"epoch": 3}), ["train.resnet", "unknown key 'epoch'", "epochs", "learning_rate"]),
        (("train", "resnet", {"epochs": 0}), ["train.resnet", "epochs = 0", "greater than or equal to 1"]),
        (("train", "resnet", {"epochs": "many"}), ["epochs = 'many'", "integer"]),
        (("train", "resnet", {"optimizer": "adm"}), ["optimizer = 'adm'", "'sgd', 'adam' or 'adamw'"]),
        (("train", "resnet", {"learning_rate": float("nan")}), ["learning_rate", "finite"]),
        (("train", "resnet", {"architecture": "resnext"}), ["'resnext'", "Architectures: alexnet, char_cnn, conv3d"]),
        (("train", "resnet", {"sizes": {"deep": 3}}), ["resnet has no size deep", "depth, stem"]),
        (("train", "resnet", {"dataset": "digit"}), ["train.resnet", "ingest has no data set 'digit'", "digits"]),
        (("train", "vgg", {"dataset": "digits"}), ["train.vgg", "'architecture' is missing", "'epochs' is missing"]),
        (("augment", "birds", {"copies": 1, "seed": 0}), ["augment.birds", "ingest has no data set 'birds'"]),
        (("register", "birds", {}), ["register.birds", "ingest has no data set 'birds'"]),
        (("train", "resnet", {"seed": 2**32}), ["seed = 4294967296", "less than 4294967296"]),
        (("ingest", "digits", {"size": [32]}), ["ingest.digits", "needs size: [height, width]"]),
        (("ingest", "digits", {"size": [32, 0]}), ["ingest.digits", "size.1 = 0"]),
        (("ingest", "digits", {"kind": "text"}), ["ingest.digits", "kind text has no size"]),
    ],
)
def test_check_names_the_entry_and_what_is_allowed(edited, capsys, change, words):
    stage, name, changes = change
    edited(stage, name, **changes)
    assert cli.main(["check"]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    for word in words:
        assert word in captured


def test_check_looks_for_the_source_of_what_is_not_fetched_yet(edited, workspace, capsys):
    edited("fetch", "pets", path="pictures")
    assert cli.main(["check"]) == 3
    assert f"path pictures ({workspace / 'pictures'}) does not exist or is empty" in capsys.readouterr().err
    (workspace / "data/raw/pets").mkdir(parents=True)
    assert cli.main(["check"]) == 0


@pytest.mark.parametrize(
    ("code", "message"),
    [("def build(:", "broken.py, line 1: invalid syntax"), ("x = 1", "broken.py has no function build(input_shape")],
)
def test_check_names_an_architecture_file_that_cannot_be_read(edited, tmp_path, monkeypatch, capsys, code, message):
    monkeypatch.setattr(signatures, "ARCHITECTURES", tmp_path)
    (tmp_path / "broken.py").write_text(code)
    edited("train", "lenet5", architecture="broken")
    assert cli.main(["check"]) == 2
    assert message in capsys.readouterr().err


def test_an_architecture_of_the_users_own_may_compute_its_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "ARCHITECTURES", tmp_path)
    (tmp_path / "own.py").write_text("ONE = 1\ndef build(input_shape, classes, depth, width=ONE, rate=1 / 8, n=3): ...")
    signatures.check_sizes("here", "own", {"depth": 2, "width": 3})
    with pytest.raises(ConfigurationError, match="own has no size deep. Sizes: depth, width, rate, n"):
        signatures.check_sizes("here", "own", {"deep": 2})
    assert signatures.default_sizes("own") == {"n": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "lenet5"], "unknown stage 'trian'. Stages: fetch, ingest, augment, train, evaluate, register"),
        (["train", "lenet6"], "no train entry 'lenet6'. Entries: lenet5, plain_cnn"),
        (["ingest", "birds"], "no ingest entry 'birds'. Entries: digits"),
        (["train"], "Usage: python -m stages STAGE NAME"),
        ([], "got nothing"),
    ],
)
def test_an_unknown_word_is_one_line_and_status_2(edited, capsys, words, message):
    edited()
    assert main(*words) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1


def test_a_wrong_entry_stops_its_own_stage_before_any_work(edited, workspace, capsys):
    edited("fetch", "digits", sampl="digits")
    assert main("fetch", "digits") == 2
    assert "unknown key 'sampl'. Keys: sample, path" in capsys.readouterr().err
    assert not (workspace / "data/raw").exists()


@pytest.mark.parametrize("stage", ["augment", "train", "evaluate"])
def test_a_stage_whose_input_is_missing_says_which(edited, capsys, stage):
    edited()
    assert main(stage, "digits" if stage == "augment" else "lenet5") == 3
    assert "is missing: run the stage that writes it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_journal_tells_how_every_stage_ended(edited, workspace):
    edited()
    assert main("fetch", "digits") == 0
    (workspace / "data/raw/digits/SHA256SUMS").unlink(missing_ok=True)
    (workspace / "data/raw/digits/3/0003.png").write_bytes(b"")
    edited("ingest", "digits", max_bad=0)
    assert main("ingest", "digits") == 3
    entries = [json.loads(line) for line in (workspace / "data/journal.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["status"]) for entry in entries] == [("fetch@digits", 0), ("ingest@digits", 3)]


@pytest.mark.slow
def test_data_stages_run_without_tensorflow_keras_and_mlflow(edited, workspace):
    edited()
    script = (
        "import sys; from stages.__main__ import main\n"
        "for stage in ('fetch', 'ingest', 'augment'): assert main(stage, 'digits') == 0\n"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


# Sends Ctrl-C, as a terminal does to all of the group, when something is imported or opened.
CTRL_C = """
import os, signal, sys

event, what = os.environ["CTRL_C_AT"].split()
sent = []


def hook(name, arguments):
    if name == event and what in str(arguments[0]) and not sent:
        sent.append(name)
        os.killpg(0, signal.SIGINT)


sys.addaudithook(hook)
"""
INTERRUPTED = "error: interrupted. Run again: it goes on from what is done.\n"


def interrupted(folder, *command, **environment):
    """Runs Python in a folder, in a group of its own, until it ends; returns its status and what it said."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, start_new_session=True, timeout=60,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"} | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    return done.returncode, done.stderr, done.stdout


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A checkout whose small data is fetched and ingested."""
    folder = tmp_path_factory.mktemp("road")
    bars(folder / "there", 12)
    (folder / "data").mkdir()
    (folder / "sitecustomize.py").write_text(CTRL_C)
    entries = {
        "fetch": {"bars": {"path": "there"}}, "ingest": {"bars": {"kind": "images", "size": [12, 12], "mode": "grey"}},
        "augment": {"bars": {"copies": 1, "seed": 0}}, "register": {"bars": {}},
        "train": {"m": {"dataset": "bars", "architecture": "lenet5", "epochs": 1, "learning_rate": 0.01}},
    }  # fmt: skip
    (folder / "params.yaml").write_text(json.dumps(NO_ENTRIES | entries))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert [main(stage, "bars") for stage in ("fetch", "ingest")] == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "at"),
    [
        ("fetch bars", "open data/raw/bars"),
        ("ingest bars", "open data/ingest/bars"),
        ("augment bars", "open data/augment/bars"),
        ("train m", "import tensorflow.python.framework.ops"),
        ("evaluate m", "import keras"),
        ("register bars", "import mlflow"),
    ],
)
def test_fault_46_ctrl_c_is_one_line_and_status_6_wherever_it_comes(road, monkeypatch, words, at):
    status, said, _ = interrupted(road, "-m", "stages", *words.split(), CTRL_C_AT=at)
    assert (status, said) == (ServiceError.status, INTERRUPTED)
    if at.startswith("open"):
        monkeypatch.chdir(road)
        assert main(*words.split()) == 0
        assert not list(road.glob("data/*/*artial*"))


@pytest.mark.parametrize(
    ("command", "at"),
    [
        ("check", "import cyclopts"),  # before the command is known
        ("check", "import psutil"),
        ("verify", "import dvc"),
    ],
)
def test_fault_46_ctrl_c_is_one_line_and_status_130_for_what_people_type(road, command, at):
    assert interrupted(road, "-m", "flows", command, CTRL_C_AT=at)[:2] == (130, INTERRUPTED)


def test_fault_46_ctrl_c_is_one_line_in_the_journal_and_for_a_pool_of_processes(road):
    # A task of a worker sends it to all: the others, the fork server and this one.
    code = (
        "import os, signal\nfrom convoy.machine import interrupt\ninterrupt.catch()\n"
        "from convoy.machine import workers\nfrom stages import __main__\n"
        "def fetch(name, entry):\n    with workers.executor() as pool:\n"
        "        list(workers.map_ahead(pool, os.killpg, [0] * 9, signal.SIGINT))\n"
        "from stages.fetch import fetch as module\nmodule.fetch = fetch\n"
        "interrupt.leave(__main__.main('fetch', 'bars'))"
    )
    assert interrupted(road, "-c", code, CTRL_C_AT="none none") == (ServiceError.status, INTERRUPTED, "")
    [*_, last] = (road / "data/journal.jsonl").read_text().splitlines()
    assert json.loads(last)["status"] == ServiceError.status


@pytest.mark.parametrize("command", ["plan", "predict digits in out.csv"])
def test_fault_46_ctrl_c_ends_a_flow_with_one_line(road, command):
    status, said, _ = interrupted(road, "-m", "flows", *command.split(), CTRL_C_AT="import pandas")
    assert said == "ended; what was done is kept, and the same command goes on from there\n"
    assert status in (130, -signal.SIGINT)  # of both shells make 130
