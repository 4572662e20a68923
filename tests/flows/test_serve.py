"""The champion answers over HTTP what evaluate saw, refuses with a reason, and ends with the command."""

import base64
import json
import os
import signal
import subprocess
import sys

import httpx
import pandas as pd
import psutil
import pytest
from conftest import NO_ENTRIES, ROOT
from mlflow.entities.model_registry import ModelVersionTag

from convoy.errors import ConfigurationError
from convoy.tracking import registry
from flows.serve.serve import serve
from flows.session import free_port
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.evaluate.entry import Evaluate
from stages.evaluate.evaluate import evaluate
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.register.entry import Register
from stages.register.register import register
from stages.train.entry import Train
from stages.train.signatures import preset
from stages.train.train import train


def road(workspace, dataset, architecture, **entry):
    entry = preset(architecture) | {"dataset": dataset, "architecture": architecture} | entry
    (workspace / "params.yaml").write_text(json.dumps(NO_ENTRIES | {"train": {"model": {"dataset": dataset}}}))
    train("model", Train(**entry))
    evaluate("model", Evaluate(dataset=dataset))
    register(dataset, Register())


@pytest.fixture
def start(workspace):
    env = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")}
    env |= {"MLFLOW_HOST": "0.0.0.0", "UVICORN_HOST": "0.0.0.0"}  # to no effect
    processes = []

    def start(dataset):
        port = free_port()
        command = [sys.executable, "-m", "flows", "serve", dataset, "--port", str(port)]
        process = subprocess.Popen(
            command,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        said = []
        for line in process.stdout:
            said.append(line)
            if line == "ready\n":
                return process, port, "".join(said)
        raise AssertionError("".join(said))

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ask(port, content, form="application/json"):
    address = f"http://127.0.0.1:{port}/invocations"
    return httpx.post(address, content=content, headers={"Content-Type": form}, timeout=60)


def test_fault_27_a_posted_picture_is_answered_here_alone_and_wrong_input_refused_with_the_reason(pictures, start):
    workspace = pictures.parents[2]
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey", val=0.3, test=0.3))
    augment("bars", Augment(copies=2, seed=0, shift=1))
    road(workspace, "bars", "plain_cnn", sizes={"width": 0.1}, epochs=25, learning_rate=0.01)
    process, port, said = start("bars")
    assert "version 1 of bars (model)" in said
    assert f"curl http://127.0.0.1:{port}/invocations" in said
    for one in psutil.Process(process.pid).children(recursive=True):  # nobody beyond this machine gets in
        assert all(at.laddr.ip == "127.0.0.1" for at in one.net_connections("inet") if at.status == "LISTEN")

    predictions = pd.read_parquet(workspace / "data/evaluate/bars/model/predictions.parquet")
    sent = [base64.b64encode((pictures / path).read_bytes()).decode() for path in predictions["path"]]
    answer = ask(port, json.dumps({"dataframe_records": [{"image": one} for one in sent]}))
    assert answer.status_code == 200
    assert [row["label"] for row in answer.json()["predictions"]] == predictions["predicted"].tolist()
    assert sum(answer.json()["predictions"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)

    wrong = {
        json.dumps({"dataframe_records": [{"image": base64.b64encode(b"no").decode()}]}): "image 0: not a picture",
        json.dumps({"dataframe_records": [{"text": "a bar"}]}): "image",
        json.dumps({"dataframe_records": [{"image": 7}]}): "image",
        json.dumps({"dataframe_records": [{"image": sent[0][:-200]}]}): "image 0: ",
        "{": "JSON",
        json.dumps([1]): "",
    }
    for content, message in wrong.items():
        answer = ask(port, content)
        assert 400 <= answer.status_code < 500, answer.text
        assert message in answer.text
    assert ask(port, "x", "image/png").status_code == 415
    assert ask(port, json.dumps({"dataframe_records": [{"image": sent[0]}]})).status_code == 200  # it is still there

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_posted_sentence_is_answered(workspace, start):
    rows = [(f"{word} film {number}", label) for number in range(60) for word, label in (("good", "+"), ("dull", "-"))]
    (workspace / "data/raw/opinions").mkdir(parents=True)
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(workspace / "data/raw/opinions/o.csv", index=False)
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=0, seed=0))
    road(workspace, "opinions", "text_cnn", sizes={"embedding": 8, "maps": 8}, epochs=10, learning_rate=0.02)
    _, port, said = start("opinions")
    assert '"text": "%s"' in said
    assert '"A sentence."' in said
    asked = {"dataframe_split": {"columns": ["text"], "data": [["A GOOD film"], ["dull"]]}}
    answer = ask(port, json.dumps(asked))
    assert [row["label"] for row in answer.json()["predictions"]] == ["+", "-"]
    assert ask(port, json.dumps({"dataframe_records": [{"text": " "}]})).status_code == 400


def test_serve_reports_a_missing_or_an_older_champion(workspace, monkeypatch):
    with pytest.raises(ConfigurationError, match="has no champion of 'digits'"):
        serve("digits", free_port())
    tags = [ModelVersionTag(name, "x") for name in registry.OURS]
    version = registry.ModelVersion("digits", "1", 0, tags=tags)
    monkeypatch.setattr(registry, "champion", lambda dataset: version)
    with pytest.raises(ConfigurationError, match="version 1 of digits takes no raw examples"):
        serve("digits", free_port())
