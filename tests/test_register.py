import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from stages import tracking
from stages.augment.augment import augment
from stages.errors import InputRefusedError, IntegrityError
from stages.evaluate.evaluate import evaluate
from stages.ingest.ingest import ingest
from stages.register import register as module
from stages.register.register import register
from stages.shards import Shards
from stages.train.train import train

OTHERS = "fetch: {}\ningest: {}\naugment: {}\nregister: {}\n"


@pytest.fixture
def road(pictures):
    """Returns a function that trains and evaluates one more model of the data set bars."""
    workspace = pictures.parents[2]
    ingest("bars", kind="images", size=(12, 12), mode="grey", val=0.3, test=0.3)
    augment("bars", copies=2, seed=0, shift=1)
    names = []

    def add(name, **changes):
        names.append(name)
        entry = {
            "dataset": "bars",
            "architecture": "plain_cnn",
            "sizes": {"width": 0.1},
            "epochs": 1,
            "learning_rate": 1e-4,
        }
        train(name, **entry | changes)
        evaluate(name, dataset="bars")
        text = "".join(f"  {name}: {{dataset: bars}}\n" for name in names)
        (workspace / "params.yaml").write_text(f"{OTHERS}train:\n{text}")
        return workspace

    return add


def outcome(workspace):
    return json.loads((workspace / "data/register/bars/decision.json").read_text())


def test_the_best_is_registered_once_and_a_better_one_takes_its_place(road, capsys):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars")
    first = outcome(workspace)
    assert (first["model"], first["version"], first["promoted"]) == ("good", 1, True)
    assert first["champion"] == {"version": 1, "model": "good"}

    register("bars")  # again: nothing new
    assert outcome(workspace)["version"] == 1
    assert "not registered again" in capsys.readouterr().out

    road("poor")  # does not beat it: it is not even a candidate
    register("bars")
    assert outcome(workspace)["model"] == "good"

    holder = tracking.champion("bars")
    assert holder.tags["model"] == "good"
    assert holder.tags["model_sha256"] == module.sha256(workspace / "data/train/bars/good/model.keras")
    assert "library.keras" in holder.tags
    assert float(holder.tags["evaluation.accuracy"]) > 0.6
    model, takes = tracking.load_model("models:/bars@champion")
    assert takes == json.loads((workspace / "data/train/bars/good/input.json").read_text())
    test = Shards(workspace / "data/ingest/bars/test")
    assert model.predict(test[:3]["image"], verbose=0).shape == (3, 2)


def test_a_challenger_that_is_not_better_is_registered_but_not_champion(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars")
    shutil.rmtree(workspace / "data/evaluate/bars/good")  # the champion's files are gone; the registry is not
    road("poor", seed=1)
    register("bars")
    found = outcome(workspace)
    assert (found["model"], found["version"], found["promoted"]) == ("poor", 2, False)
    assert found["champion"] == {"version": 1, "model": "good"}
    assert "not better" in found["reason"]
    assert "test examples" in found["reason"]
    assert found["p"] == 1.0
    assert set(found["slices"]) == {"class across", "class down"}
    [version] = [one for one in tracking._connect().search_model_versions("name = 'bars'") if int(one.version) == 2]
    assert (version.tags["decision.p"], "decision.power" in version.tags) == ("1", True)


def test_a_champion_of_other_classes_is_compared_by_their_names(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars")
    holder, test = tracking.champion("bars"), Shards(workspace / "data/ingest/bars/test")
    names = np.array(["across", "down"], object)[test.column("label")]
    found = module.champions(holder, test, "images", names)
    assert found.value == found.scores.mean() == float(holder.tags["evaluation.accuracy"])
    renamed = np.where(names == "down", "upright", names)
    assert module.champions(holder, test, "images", renamed).value == np.mean(found.scores * (names == "across"))

    ingest("bars", kind="images", size=(10, 10), mode="grey", val=0.3, test=0.3)
    assert module.champions(holder, Shards(workspace / "data/ingest/bars/test"), "images", names) is None
    assert module.champions(holder, test, "text", names) is None


def test_answers_of_another_shape_are_not_accepted(workspace, monkeypatch):
    def answer(words, **_):
        Path(words[words.index("-o") + 1]).write_text('{"predictions": [[0.5, 0.5]]}')
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(module.subprocess, "run", answer)
    module.reload("models:/m", np.zeros((1, 4)), np.array([[0.5, 0.5]]))
    with pytest.raises(IntegrityError, match="otherwise than evaluate saw"):
        module.reload("models:/m", np.zeros((2, 4)), np.array([[0.5, 0.5]] * 2))
    with pytest.raises(IntegrityError, match="otherwise than evaluate saw"):
        module.reload("models:/m", np.zeros((1, 4)), np.array([[0.4, 0.6]]))


def test_scores_of_a_known_version_are_renewed(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars")
    file = workspace / "data/evaluate/bars/good/metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accuracy": 0.5}))
    register("bars")
    assert tracking.champion("bars").tags["evaluation.accuracy"] == "0.5"
    assert "50.00%" in tracking.champion("bars").description


def test_a_stored_model_carries_signature_and_example_of_the_keras_flavor(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars")
    import mlflow

    info = mlflow.models.get_model_info("models:/bars@champion")
    assert set(info.flavors) == {"keras", "python_function"}
    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 12, 12, 1)}
    assert info.saved_input_example_info["artifact_path"] == "input_example.json"
    assert not (workspace / "mlruns").exists()


def test_a_stored_model_that_predicts_otherwise_is_not_accepted(road, monkeypatch):
    workspace = road("good")
    file = workspace / "data/train/bars/good/model.keras"
    model = keras.saving.load_model(file)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * -3)
    model.save(file)
    with pytest.raises(IntegrityError, match="otherwise than evaluate saw"):
        register("bars")
    assert tracking.champion("bars") is None
    assert not (workspace / "data/register/bars").exists()


def test_only_models_of_params_yaml_take_part(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    road("poor")
    (workspace / "params.yaml").write_text(f"{OTHERS}train:\n  poor: {{dataset: bars}}\n")
    assert module.best("bars")[0] == "poor"
    (workspace / "params.yaml").write_text(f"{OTHERS}train:\n  other: {{dataset: bars}}\n")
    with pytest.raises(InputRefusedError, match=r"no model of bars was evaluated; params.yaml lists \['other'\]"):
        register("bars")


def test_dependencies_are_what_dvc_recorded(workspace):
    (workspace / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train@a:\n    cmd: x\n    deps:\n    - {path: data/augment/d, md5: 1f.dir}\n"
        "    params:\n      params.yaml:\n        train.a: {epochs: 3}\n"
    )
    assert module.dependencies("train@a") == {"dvc.data/augment/d": "1f.dir", "params.train.a": '{"epochs": 3}'}
    assert module.dependencies("train@b") == {}
