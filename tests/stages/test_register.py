import ast
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import run_of
from markup import Page
from mlflow.exceptions import MlflowException
from PIL import Image

from convoy import dependencies, kinds
from convoy.data.shards import Shards
from convoy.errors import InputRefusedError, IntegrityError, ServiceError
from convoy.model.scores import scaled
from convoy.tracking import registry, store
from flows.serve.predict import predict
from flows.serve.serve import serve
from stages import __main__
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.evaluate.entry import Evaluate
from stages.evaluate.evaluate import evaluate
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.register import card, packaging
from stages.register import register as module
from stages.register.entry import Register
from stages.register.register import register
from stages.train.entry import Train
from stages.train.train import train

OTHERS = "fetch: {}\ningest: {}\naugment: {}\nregister: {}\n"


@pytest.fixture
def road(pictures):
    """Returns a function that trains and evaluates one more model of the data set bars."""
    workspace = pictures.parents[2]
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey", val=0.3, test=0.3))
    augment("bars", Augment(copies=2, seed=0, shift=1))
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
        train(name, Train(**entry | changes))
        evaluate(name, Evaluate(dataset="bars"))
        text = "".join(f"  {name}: {{dataset: bars}}\n" for name in names)
        (workspace / "params.yaml").write_text(f"{OTHERS}train:\n{text}")
        return workspace

    return add


def outcome(workspace):
    return json.loads((workspace / "data/register/bars/decision.json").read_text())


def test_the_best_is_registered_once_and_a_better_one_takes_its_place(road, capsys):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register())
    first = outcome(workspace)
    assert (first["model"], first["version"], first["promoted"]) == ("good", 1, True)
    assert first["champion"] == {"version": 1, "model": "good"}

    register("bars", Register())  # again: nothing new
    assert outcome(workspace)["version"] == 1
    assert "not registered again" in capsys.readouterr().out

    road("poor")  # does not beat it: it is not even a candidate
    register("bars", Register())
    assert outcome(workspace)["model"] == "good"

    holder = registry.champion("bars")
    assert holder.tags["model"] == "good"
    assert holder.tags["model_sha256"] == module.sha256(workspace / "data/train/bars/good/model.keras")
    assert "library.keras" in holder.tags
    assert float(holder.tags["evaluation.accuracy"]) > 0.6
    model, takes = registry.load_model(registry.champion("bars"))
    assert takes.pop("temperature") == float(holder.tags["evaluation.temperature"])
    assert takes == json.loads((workspace / "data/train/bars/good/input.json").read_text())
    test = Shards(workspace / "data/ingest/bars/test")
    assert model.predict(test[:3]["image"], verbose=0).shape == (3, 2)


def test_a_challenger_that_is_not_better_is_registered_but_not_champion(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register())
    shutil.rmtree(workspace / "data/evaluate/bars/good")  # the champion's files are gone; the registry is not
    road("poor", seed=1)
    register("bars", Register())
    found = outcome(workspace)
    assert (found["model"], found["version"], found["promoted"]) == ("poor", 2, False)
    assert found["champion"] == {"version": 1, "model": "good"}
    assert "not better" in found["reason"]
    assert "test examples" in found["reason"]
    assert found["p"] == 1.0
    assert set(found["slices"]) == {"class across", "class down"}
    [version] = [one for one in store.connect().search_model_versions("name = 'bars'") if int(one.version) == 2]
    assert (version.tags["decision.p"], "decision.power" in version.tags) == ("1", True)


def test_the_comparison_shows_the_champion_and_lies_with_the_run_of_the_best(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    road("poor")
    register("bars", Register())
    page = Page(workspace / "data/register/bars/comparison.html")
    assert re.search(r"good champion \d+\.\d\d% .* poor \d", page.text)
    facts = json.loads((workspace / "data/train/bars/good/run.json").read_text())
    logged = [one.path for one in store.connect().list_artifacts(run_of(facts), "register")]
    assert logged == ["register/comparison.html", "register/decision.json", "register/plots"]


def test_a_champion_of_other_classes_is_compared_by_their_names(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register())
    holder, test = registry.champion("bars"), Shards(workspace / "data/ingest/bars/test")
    names = np.array(["across", "down"], object)[test.column("label")]
    kind = kinds.get("images")
    found = module.champions(holder, test, kind, names)
    assert found.value == found.scores.mean() == float(holder.tags["evaluation.accuracy"])
    renamed = np.where(names == "down", "upright", names)
    assert module.champions(holder, test, kind, renamed).value == np.mean(found.scores * (names == "across"))

    ingest("bars", Ingest(kind="images", size=(10, 10), mode="grey", val=0.3, test=0.3))
    assert module.champions(holder, Shards(workspace / "data/ingest/bars/test"), kind, names) is None
    assert module.champions(holder, test, kinds.get("text"), names) is None


def test_answers_that_differ_are_not_accepted():
    expected = pd.DataFrame({"label": ["a", "b"], "probability": [0.9, 0.6]})
    packaging.compare("models:/m", expected.copy(), expected)
    for other in (expected[:1], expected.assign(label=["a", "a"]), expected.assign(probability=[0.9, 0.61])):
        with pytest.raises(IntegrityError, match="otherwise than evaluate saw"):
            packaging.compare("models:/m", other, expected)


def test_scores_of_a_known_version_are_renewed(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register())
    file = workspace / "data/evaluate/bars/good/metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"accuracy": 0.5}))
    register("bars", Register())
    assert registry.champion("bars").tags["evaluation.accuracy"] == "0.5"
    assert "50.00%" in registry.champion("bars").description


def test_a_registered_model_takes_raw_pictures(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register())
    holder = registry.champion("bars")
    info = mlflow.models.get_model_info("models:/bars@champion")
    assert set(info.flavors) == {"python_function"}
    assert info.signature.inputs.to_dict() == [{"type": "binary", "name": "image", "required": True}]
    assert info.saved_input_example_info["artifact_path"] == "input_example.json"
    assert not (workspace / "mlruns").exists()
    predictions = pd.read_parquet(workspace / "data/evaluate/bars/good/predictions.parquet")
    n = len(predictions)
    assert holder.tags["parity"] == f"{n} test examples, {n} of them raw files"
    assert 0 < float(holder.tags["latency.p50_ms"]) <= float(holder.tags["latency.p95_ms"])

    files = [(workspace / "data/raw/bars" / path).read_bytes() for path in predictions["path"]]
    served = mlflow.pyfunc.load_model("models:/bars@champion")
    answers = served.predict(pd.DataFrame({"image": files}))
    assert answers["label"].tolist() == predictions["predicted"].tolist()
    temperature = json.loads((workspace / "data/evaluate/bars/good/metrics.json").read_text())["temperature"]
    cooled = scaled(np.stack(predictions["probabilities"]), temperature)
    np.testing.assert_allclose([list(one.values()) for one in answers["probabilities"]], cooled, atol=1e-4)
    assert list(answers["probabilities"][0]) == ["across", "down"]

    packed = io.BytesIO()  # the same picture, larger and as JPEG
    Image.open(io.BytesIO(files[0])).resize((48, 48), Image.Resampling.NEAREST).save(packed, "JPEG", quality=95)
    assert served.predict(pd.DataFrame({"image": [packed.getvalue()]}))["label"][0] == predictions["predicted"][0]
    with pytest.raises(MlflowException, match="image 1: not a picture") as refused:
        served.predict(pd.DataFrame({"image": [files[0], b"GIF of a kind"]}))
    assert refused.value.get_http_status_code() == 400


def test_what_is_served_is_all_that_it_imports(tmp_path):
    packages = packaging.code(tmp_path)
    assert {package.name for package in packages} == {"convoy", "stages"}
    needed = "import sys, convoy.kinds.images, convoy.kinds.volumes, convoy.kinds.translation, stages.register.model\n"
    needed += "import convoy.model.predictor\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", needed], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    own = {name for name in loaded if name.split(".")[0] in ("convoy", "stages", "flows")}
    written = set()
    for file in map(dependencies.file, own):
        for node in ast.walk(ast.parse((tmp_path / file).read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            written |= {name.split(".")[0] for name in names}
    external = {name for name in written & {*loaded} if name not in sys.stdlib_module_names}
    external -= {"convoy", "stages", "tensorflow"}
    provided = {one.lower().replace("_", "-") for name in external for one in packages_distributions()[name]}
    assert {"keras", "pillow"} <= provided <= set(packaging.LIBRARIES)
    copied = {file.relative_to(tmp_path) for file in tmp_path.rglob("*.py")}
    assert copied == {*map(dependencies.file, own)}


def test_a_stored_model_that_predicts_otherwise_is_not_accepted(road, monkeypatch):
    workspace = road("good")
    file = workspace / "data/train/bars/good/model.keras"
    model = keras.saving.load_model(file)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * -3)
    model.save(file)
    with pytest.raises(IntegrityError, match="otherwise than evaluate saw"):
        register("bars", Register())
    assert registry.champion("bars") is None
    assert not (workspace / "data/register/bars").exists()


def test_fault_09_a_model_whose_metric_is_no_number_is_not_the_best(workspace, capsys):
    (workspace / "params.yaml").write_text(f"{OTHERS}train: {{a: {{dataset: bars}}, b: {{dataset: bars}}}}\n")
    for name, loss in (("a", float("nan")), ("b", 1.0)):
        folder = workspace / "data/evaluate/bars" / name
        folder.mkdir(parents=True)
        score = 0.5 if name == "b" else 0.9
        (folder / "metrics.json").write_text(
            json.dumps({"metric": "accuracy", "val_accuracy": score, "val_loss": loss})
        )
    assert module.best("bars")[0] == "b"
    assert "a is left out: it diverged (val_loss = nan)" in capsys.readouterr().out
    shutil.rmtree(workspace / "data/evaluate/bars/b")
    with pytest.raises(InputRefusedError):
        module.best("bars")


@pytest.mark.parametrize("name", ["model.keras", "input.json", "model.py"])
def test_fault_24_a_version_whose_files_were_changed_is_not_loaded(road, monkeypatch, name):
    workspace = road("good", epochs=2)
    register("bars", Register())
    holder = registry.champion("bars")
    assert registry.is_whole(holder)
    [file] = (workspace / "mlartifacts/bars/models").rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="bars version 1, .* are not those that were registered; .*rebuild bars@1"):
        registry.load_model(holder)
    with pytest.raises(IntegrityError):
        predict("bars", workspace / "data/raw/bars", workspace / "out.csv")
    with pytest.raises(IntegrityError):
        serve("bars", 1)
    registry.add_version("bars", holder.source, holder.run_id, {registry.STORED: "0"})
    monkeypatch.setattr(registry, "is_whole", lambda one: str(one.version) != "1")
    with pytest.raises(IntegrityError, match="Version 2 is whole: convoy rollback bars@2"):
        registry.load_model(holder)


def test_only_models_of_params_yaml_take_part(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    road("poor")
    (workspace / "params.yaml").write_text(f"{OTHERS}train:\n  poor: {{dataset: bars}}\n")
    assert module.best("bars")[0] == "poor"
    (workspace / "params.yaml").write_text(f"{OTHERS}train:\n  other: {{dataset: bars}}\n")
    with pytest.raises(InputRefusedError, match=r"no model of bars was evaluated; params.yaml lists \['other'\]"):
        register("bars", Register())


def test_the_registry_has_a_model_card_and_the_run_its_data(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register())
    holder, metrics = registry.champion("bars"), module.best("bars")[1]
    text = holder.description
    for part in (
        f"test accuracy {metrics['accuracy']:.2%}", "**Decision.** the first champion", "images of 2 classes; 23 train",
        "Classes: across, down.", "12 x 12 pixels, grey", "Found least often:", "trace bars@1",
        f"| expected calibration error, as served | {metrics['ece_scaled']:.2%} |", holder.tags["latency.p95_ms"],
    ):  # fmt: skip
        assert part in text
    run = mlflow.get_run(holder.run_id)
    found = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert set(found) == {"training", "validation", "test"}
    index = module.sha256(workspace / "data/ingest/bars/test/index.json")
    assert (found["test"].name, found["test"].digest) == ("bars", index[:36])
    assert json.loads(found["training"].source) == {"uri": "data/augment/bars/train"}


def test_a_class_is_shown_as_it_is_written():
    assert card._plain("stop_sign") == "stop&#95;sign"
    assert "<" not in card._plain("<script>")


def test_limits_hold_a_better_model_back(road):
    workspace = road("good", epochs=25, learning_rate=0.01)
    register("bars", Register(max_size=1e-3, max_ece=1e-9, max_latency=1e-3))
    found = outcome(workspace)
    assert not found["promoted"]
    assert "exceeds max_latency = 0.001" in found["reason"]
    assert "exceeds max_size = 0.001" in found["reason"]
    assert "exceeds max_ece = 1e-09" in found["reason"]
    assert registry.champion("bars") is None
    register("bars", Register(max_size=100, max_ece=1, max_latency=1e5))
    assert outcome(workspace)["promoted"]


def test_dependencies_are_what_dvc_recorded(workspace):
    (workspace / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train@a:\n    cmd: x\n    deps:\n    - {path: data/augment/d, md5: 1f.dir}\n"
        "    params:\n      params.yaml:\n        train.a: {epochs: 3}\n"
    )
    lineage = packaging.recorded("d", "a")
    assert module.dependencies(lineage, "train@a") == {
        "dvc.data/augment/d": "1f.dir",
        "params.train.a": '{"epochs": 3}',
    }
    assert module.dependencies(packaging.recorded("d", "b"), "train@b") == {}


def test_fault_39_a_registered_model_whose_files_are_gone_is_stored_again(road, capsys):
    workspace = road("good", epochs=2)
    register("bars", Register())
    shutil.rmtree(workspace / "mlartifacts")
    register("bars", Register())
    assert "the files of version 1 of bars are gone or were changed: good is stored again" in capsys.readouterr().out
    found = outcome(workspace)
    assert (found["version"], found["promoted"]) == (2, True)
    assert "the model of version 1, stored again" in found["reason"]
    assert registry.load_model(registry.champion("bars"))[1]["kind"] == "images"

    registry.describe_version(registry.champion("bars"), {"rolled_back": "it is bad"})
    store.connect().delete_registered_model_alias("bars", "champion")
    shutil.rmtree(workspace / "mlartifacts")
    register("bars", Register())  # what was taken back stays so
    assert (outcome(workspace)["version"], outcome(workspace)["promoted"]) == (3, False)
    assert registry.champion("bars") is None


def test_fault_44_beside_a_champion_of_another_tool_a_model_is_registered_and_not_compared(road):
    workspace = road("good", epochs=2)
    client = store.connect()
    client.create_registered_model("bars")
    client.create_model_version("bars", "s3://bucket/model")
    client.set_registered_model_alias("bars", "champion", 1)
    for _ in range(2):  # not only the first time
        register("bars", Register())
        found = outcome(workspace)
        assert (found["version"], found["promoted"]) == (2, False)
        assert "version 1 of bars was not registered by convoy" in found["reason"]
        assert "convoy rollback bars@2" in found["reason"]
    assert "a model of another tool" in (workspace / "data/register/bars/comparison.html").read_text()


def test_fault_45_a_server_that_hangs_while_a_model_is_registered_ends_it_in_a_line(road, monkeypatch, capsys):
    workspace = road("good", epochs=1)
    (workspace / "params.yaml").write_text((workspace / "params.yaml").read_text().replace("{}", "{bars: {}}"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        address = f"http://somebody:secret-word@127.0.0.1:{hanging.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for greeted in (False, True):
            store._greeted.update({address} if greeted else ())
            capsys.readouterr()
            assert __main__.main("register", "bars") == ServiceError.status
            said = "".join(capsys.readouterr())
            assert "error: http://***@127.0.0.1" in said
            assert "cannot be used now" in said
            assert "secret-word" not in said
    assert not list((Path("data/register")).glob("*"))
