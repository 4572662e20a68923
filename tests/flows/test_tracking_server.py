"""Everything also works against an MLflow server with login, whose database is PostgreSQL."""

import mlflow
import pandas as pd
import pytest
import servers
from conftest import NO_ENTRIES
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

from convoy.tracking import registry, store
from flows.serve.predict import predict
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.evaluate.entry import Evaluate
from stages.evaluate.evaluate import evaluate
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.register.entry import Register
from stages.register.register import register
from stages.train.entry import Train
from stages.train.train import train


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """Address of an MLflow server with login; address and login are in the environment."""
    if missing := [name for name in ("initdb", "postgres") if servers.program(name) is None]:
        pytest.skip(f"no {', '.join(missing)} (Debian's package postgresql) here")
    with (
        servers.postgresql() as database,
        servers.mlflow_with_login(database, tmp_path_factory.mktemp("server")) as login,
    ):
        for name, value in login.items():
            monkeypatch.setenv(name, value)
        yield login["MLFLOW_TRACKING_URI"]


def test_the_whole_road_with_login_and_nothing_in_the_checkout(pictures, server, monkeypatch):
    workspace = pictures.parents[2]
    entries = NO_ENTRIES | {"train": {"model": {"dataset": "bars"}}}
    with (workspace / "params.yaml").open("w") as file:
        YAML().dump(entries, file)
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey", val=0.3, test=0.3))
    augment("bars", Augment(copies=2, seed=0, shift=1))
    entry = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "learning_rate": 0.01}
    train("model", Train(epochs=25, **entry))
    evaluate("model", Evaluate(dataset="bars"))
    register("bars", Register())
    holder = registry.champion("bars")
    assert holder.tags["model"] == "model"
    assert "**Decision.** the first champion" in holder.description
    predictions = pd.read_parquet(workspace / "data/evaluate/bars/model/predictions.parquet")
    assert holder.tags["parity"].startswith(f"{len(predictions)} test examples")
    paths = {one.path for one in store.connect().list_artifacts(holder.run_id)}
    assert {"evaluate", "register"} <= paths
    predict("bars", pictures, workspace / "out.csv")
    out = pd.read_csv(workspace / "out.csv").set_index("path")
    assert out.loc[predictions["path"], "predicted"].tolist() == predictions["predicted"].tolist()

    train("model", Train(epochs=1, seed=1, **entry))
    evaluate("model", Evaluate(dataset="bars"))
    register("bars", Register())  # the champion comes from the server, to be compared
    assert registry.champion("bars").version == holder.version
    assert not list(workspace.glob("mlflow.db*"))
    assert not (workspace / "mlartifacts").exists()

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(MlflowException, match="401|not authenticated"):
        mlflow.MlflowClient(server).search_experiments()
