"""Everything also works against an MLflow server with login, whose database is PostgreSQL."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import mlflow
import pandas as pd
import pytest
from conftest import NO_ENTRIES, wait_for
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

from flows.predict import predict
from flows.server import free_port
from stages import tracking
from stages.augment.augment import augment
from stages.evaluate.evaluate import evaluate
from stages.ingest.ingest import ingest
from stages.register.register import register
from stages.train.train import train

PROGRAMS = ("initdb", "postgres")
DEBIAN = "/usr/lib/postgresql/*/bin"  # not on the path there
PASSWORD = "a long pass/word@home"


def program(name):
    found = shutil.which(name) or next(map(str, sorted(Path("/").glob(f"{DEBIAN[1:]}/{name}"), reverse=True)), None)
    return found or pytest.skip(f"no {name} (Debian's package postgresql) here")


@pytest.fixture(scope="module")
def database():
    """Address of an empty PostgreSQL database, on loopback."""
    initdb, postgres = map(program, PROGRAMS)
    settings = {}
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # which root's own temporary folders would be closed to
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        settings = {
            "user": next(name for name in ("postgres", "nobody") if name in {p.pw_name for p in pwd.getpwall()})
        }
        shutil.chown(folder, settings["user"])
    subprocess.run(
        [initdb, "-D", folder / "data", "-U", "convoy", "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **settings,
    )
    port = free_port()
    server = subprocess.Popen(
        [postgres, "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"],
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **settings,
    )
    import psycopg2

    def there():
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="convoy", dbname="postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    wait_for(there)
    yield f"postgresql://convoy@127.0.0.1:{port}/postgres"
    server.terminate()
    server.wait()
    shutil.rmtree(folder)


@pytest.fixture
def server(database, tmp_path_factory, monkeypatch):
    """Address of an MLflow server with login; the login is in the environment."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = convoy\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    place = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *place, "--port", str(port)],
        cwd=folder,
        env=os.environ | {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"},
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def there():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        except httpx.TransportError:
            return False

    wait_for(there, 120)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "convoy")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 9)
    process.wait()


def test_the_whole_road_with_login_and_nothing_in_the_checkout(pictures, server, monkeypatch):
    workspace = pictures.parents[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    entries = NO_ENTRIES | {"train": {"model": {"dataset": "bars"}}}
    with (workspace / "params.yaml").open("w") as file:
        YAML().dump(entries, file)
    ingest("bars", kind="images", size=(12, 12), mode="grey", val=0.3, test=0.3)
    augment("bars", copies=2, seed=0, shift=1)
    entry = {"dataset": "bars", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "learning_rate": 0.01}
    train("model", epochs=25, **entry)
    evaluate("model", dataset="bars")
    register("bars")
    holder = tracking.champion("bars")
    assert holder.tags["model"] == "model"
    assert "**Decision.** the first champion" in holder.description
    predictions = pd.read_parquet(workspace / "data/evaluate/bars/model/predictions.parquet")
    assert holder.tags["parity"].startswith(f"{len(predictions)} test examples")
    paths = {one.path for one in tracking._connect().list_artifacts(holder.run_id)}
    assert {"evaluate", "register"} <= paths
    predict("bars", pictures, workspace / "out.csv")
    out = pd.read_csv(workspace / "out.csv").set_index("path")
    assert out.loc[predictions["path"], "predicted"].tolist() == predictions["predicted"].tolist()

    train("model", epochs=1, seed=1, **entry)
    evaluate("model", dataset="bars")
    register("bars")  # the champion comes from the server, to be compared
    assert tracking.champion("bars").version == holder.version
    assert not list(workspace.glob("mlflow.db*"))
    assert not (workspace / "mlartifacts").exists()

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(MlflowException, match="401|not authenticated"):
        mlflow.MlflowClient(server).search_experiments()
