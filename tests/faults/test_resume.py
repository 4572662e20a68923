"""A training that was killed goes on from its last checkpoint and ends with the bytes of one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import NO_ENTRIES, ROOT, wait_for

from convoy.errors import ServiceError
from convoy.tracking import outbox, store
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.train.entry import Train
from stages.train.running import checkpoints
from stages.train.running.checkpointing import Checkpointing
from stages.train.signatures import preset
from stages.train.train import train

SMALL = {"dataset": "bars", "epochs": 4, "learning_rate": 0.01, "batch": 16}
PICTURES = {
    "dropout, ema, pictures changed on the fly": {
        "architecture": "plain_cnn", "sizes": {"width": 0.1}, "ema": 0.9,
        "augmentation": {"shift": 1.0, "rotate": 5.0, "flip": 0.5, "noise": 3.0},
    },
    "batch normalisation, momentum, steps": {
        "architecture": "resnet", "sizes": {"stem": "cifar", "depth": 8, "width": 0.25}, "optimizer": "sgd",
        "schedule": "step", "weight_decay": 1e-3,
    },
    "early stopping, class weights": {
        "architecture": "plain_cnn", "sizes": {"width": 0.1}, "patience": 2, "class_weights": True,
    },
    "bfloat16, clipping, warm-up": {
        "architecture": "plain_cnn", "sizes": {"width": 0.1}, "precision": "bfloat16", "clip_norm": 1.0, "warmup": 1,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """A checkpoint after every epoch, however short it was."""
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))


class Killed(BaseException):
    """Stands for SIGKILL, which leaves nothing to run but what the next process does."""


def killed(monkeypatch, epoch, model, **entry):
    """Trains until an epoch is over."""
    metrics = outbox.Record.metrics

    def dies(self, numbers, step=None):
        metrics(self, numbers, step)
        if step == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(outbox.Record, "metrics", dies)
        with pytest.raises(Killed):
            train(model, Train(**entry))


def start(model):
    """Starts a training in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages", "train", model], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def outcome(data, dataset, model):
    folder = data / "train" / dataset / model
    facts = json.loads((folder / "run.json").read_text())
    facts = {key: value for key, value in facts.items() if key not in ("model", "record_id")}
    return [facts, *((folder / name).read_bytes() for name in ("model.keras", "history.csv", "input.json"))]


def resumes(data, monkeypatch, capsys, dataset, **entry):
    """Asserts that a training which is killed ends like one that is not."""
    train("whole", Train(dataset=dataset, **entry))
    killed(monkeypatch, 3, "cut", dataset=dataset, **entry)
    capsys.readouterr()
    train("cut", Train(dataset=dataset, **entry))
    assert "resuming train@cut from epoch 3" in capsys.readouterr().out
    assert outcome(data, dataset, "cut") == outcome(data, dataset, "whole")
    assert not list(checkpoints.FOLDER.rglob("*.npz"))


@pytest.mark.parametrize("what", PICTURES)
def test_fault_01_a_killed_training_of_pictures_ends_with_the_same_bytes(ready, monkeypatch, capsys, what):
    resumes(ready, monkeypatch, capsys, **SMALL | PICTURES[what])


@pytest.mark.parametrize(
    ("dataset", "kind", "architecture", "entry"),
    [
        ("opinions", {"kind": "text"}, "text_cnn", {"sizes": {"maps": 4, "embedding": 8}, "ema": 0.5}),
        ("counts", {"kind": "translation"}, "conv_seq2seq", {"sizes": {"width": 0.05}, "batch": 64, "tokens": "words"}),
        (
            "blocks", {"kind": "volumes", "size": (6, 6, 6), "mode": "grey"}, "conv3d",
            {"sizes": {"style": "resnet", "depth": 10, "stem": "small", "width": 0.05}},
        ),
    ],
)  # fmt: skip
def test_fault_01_so_does_one_of_every_kind(raw, monkeypatch, capsys, dataset, kind, architecture, entry):
    ingest(dataset, Ingest(**kind, near_duplicates=False))
    augment(dataset, Augment(copies=0, seed=0))
    entry = preset(architecture) | {"architecture": architecture, "epochs": 4} | entry
    resumes(raw / "data", monkeypatch, capsys, dataset, **entry)


def test_fault_01_sigkill_in_a_training_of_its_own_process(ready):
    entry = SMALL | PICTURES["batch normalisation, momentum, steps"] | {"epochs": 40}
    (ready.parent / "params.yaml").write_text(json.dumps(NO_ENTRIES | {"train": {"cut": entry, "whole": entry}}))
    whole = start("whole")
    assert whole.wait() == 0, whole.stdout.read()
    cut = start("cut")
    wait_for(lambda: list(checkpoints.FOLDER.rglob("*.npz")), 120)
    time.sleep(0.1)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.communicate()
    again = start("cut")
    assert "resuming train@cut from epoch " in again.communicate()[0]
    assert outcome(ready, "bars", "cut") == outcome(ready, "bars", "whole")
    client = store.connect()
    found = client.search_runs([client.get_experiment_by_name("bars").experiment_id])
    assert {run.data.tags["model"]: run.info.status for run in found} == {"cut": "FINISHED", "whole": "FINISHED"}
    assert len(found) == 2  # what went on is the run that was begun


def test_fault_06_who_is_asked_to_end_says_where_it_goes_on(ready):
    entry = SMALL | PICTURES["batch normalisation, momentum, steps"] | {"epochs": 400}
    (ready.parent / "params.yaml").write_text(json.dumps(NO_ENTRIES | {"train": {"cut": entry}}))
    cut = start("cut")
    wait_for(lambda: list(checkpoints.FOLDER.rglob("*.npz")), 120)
    cut.terminate()
    started = time.monotonic()
    said = cut.communicate()[0]
    assert time.monotonic() - started < 20
    assert cut.returncode == ServiceError.status
    assert re.search(r"error: interrupted at epoch \d+\. Run again: it goes on from epoch \d+\.", said)
    client = store.connect()
    bars = [client.get_experiment_by_name("bars").experiment_id]
    wait_for(lambda: [run.info.status for run in client.search_runs(bars)] == ["FAILED"])  # it waits 3 s for MLflow
    assert list(checkpoints.FOLDER.rglob("*.npz"))


def test_fault_46_ctrl_c_ends_a_training_after_its_step_and_a_second_one_at_once(workspace):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    keep = Checkpointing(checkpoints.Checkpoints("d", "m", {}), None, [], None)
    keep.on_train_begin()
    keep.on_epoch_begin(0)
    keep.on_train_batch_end(0)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(ServiceError, match=r"^interrupted at epoch 1\. Run again: it goes on from epoch 1\.$"):
        keep.on_train_batch_end(1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    keep.close()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_fault_03_a_checkpoint_that_is_not_whole_is_not_there(ready, monkeypatch, capsys):
    entry = SMALL | PICTURES["bfloat16, clipping, warm-up"] | {"precision": "float32"}
    train("whole", Train(**entry))
    rename = checkpoints.Path.rename

    def dies(self, target):
        if str(target).count("000003-"):
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Path, "rename", dies)
        with pytest.raises(Killed):
            train("cut", Train(**entry))
    capsys.readouterr()
    train("cut", Train(**entry))
    assert "resuming train@cut from epoch 3" in capsys.readouterr().out
    assert outcome(ready, "bars", "cut") == outcome(ready, "bars", "whole")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_fault_04_of_a_damaged_checkpoint_the_one_before_is_taken(ready, monkeypatch, capsys, damage):
    entry = SMALL | PICTURES["bfloat16, clipping, warm-up"] | {"precision": "float32"}
    train("whole", Train(**entry))
    killed(monkeypatch, 4, "cut", **entry)
    kept = sorted(checkpoints.FOLDER.rglob("*.npz"))
    assert [file.name[:6] for file in kept] == ["000002", "000003"]
    content = bytearray(kept[-1].read_bytes())
    if damage == "cut":
        content = content[:-100]
    else:
        content[len(content) // 2] ^= 1
    kept[-1].write_bytes(content)
    capsys.readouterr()
    train("cut", Train(**entry))
    said = capsys.readouterr().out
    assert "the checkpoint of epoch 3 is damaged, and not used" in said
    assert "resuming train@cut from epoch 3" in said
    assert outcome(ready, "bars", "cut") == outcome(ready, "bars", "whole")


@pytest.mark.parametrize("changed", ["params", "data"])
def test_fault_05_a_checkpoint_of_another_configuration_is_never_taken(ready, monkeypatch, capsys, changed):
    entry = SMALL | {"architecture": "plain_cnn", "sizes": {"width": 0.1}}
    killed(monkeypatch, 3, "cut", **entry)
    if changed == "params":
        entry |= {"learning_rate": 0.02}
    else:
        augment("bars", Augment(copies=1, seed=1, noise=5))
    capsys.readouterr()
    train("cut", Train(**entry))
    said = capsys.readouterr().out
    assert "train@cut  starts over: its checkpoints belong to another configuration" in said
    assert "resuming" not in said
    train("whole", Train(**entry))
    assert outcome(ready, "bars", "cut") == outcome(ready, "bars", "whole")


def test_checkpoints_take_little_of_the_time(workspace, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARE", 0.02)
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    kept = checkpoints.Checkpoints("d", "m", {})
    state = checkpoints.State(1, [], {}, [np.zeros(3)], [])

    def save():
        monkeypatch.setattr(checkpoints.os, "fsync", lambda _: clock.__setitem__(0, clock[0] + 1.0))
        kept.save(state)

    assert kept.due()
    save()  # which took two seconds: the file and its folder
    assert not kept.due()
    clock[0] = 99.0
    assert not kept.due()
    clock[0] = 101.0
    assert kept.due()
