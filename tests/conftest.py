"""Small data and a place of its own for every test."""

import gc
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

# Before any library reads them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

import numpy as np
import pytest
from opinions import raw  # noqa: F401 - a fixture of several files
from PIL import Image

from convoy.tracking import outbox
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest

gc.set_threshold(50_000, 20, 50)  # for the reason in stages/__main__.py
ROOT = Path(__file__).parent.parent
# params.yaml of a checkout whose stages are not ours.
NO_ENTRIES = {section: {} for section in ("fetch", "ingest", "augment", "train", "register")}


# Files that take minutes, the longest first: begun last, one process works at them when the others are done.
LONGEST = [
    f"test_{name}"
    for name in ("nightly", "tracking_server", "secrets", "resume", "kills", "register", "pipeline", "runner",
                 "cluster", "lineage", "kinds", "train", "tune", "ui", "serve", "remotes")
]  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begins with what takes longest; within a file, and among the others, the order stays."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish():
    """Has Keras, which looks through all objects before each training, leave out those that were imported."""
    gc.freeze()


def pytest_unconfigure():
    """Lets the process end without looking once more through all that it imported and made: minutes."""
    gc.freeze()


def run_of(facts):
    """Returns MLflow's id of the run that a training recorded, given its run.json."""
    from convoy.tracking import (
        store,
    )

    client = store.connect()
    experiment = client.get_experiment_by_name(facts["dataset"]).experiment_id
    [run, *_] = client.search_runs([experiment], f"tags.record = '{outbox.record_id(facts)}'")
    return run.info.run_id


def bars(folder, side):
    """Writes 60 grey pictures of lines in the classes "across" and "down"."""
    rng = np.random.default_rng(0)
    for number in range(60):
        label = ("across", "down")[number % 2]
        picture = rng.integers(0, 60, (side, side), np.uint8)
        line = 2 + number % (side - 4)
        picture[(line, slice(None)) if label == "across" else (slice(None), line)] = 255
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / label / f"{number:02d}.png")


def _ship(empty):
    """Ships to the workspace's store, which is a copy of the database ``empty``: to make one takes a second."""
    from convoy.tracking import (
        shipping,  # seconds that only trainings are worth
        store,
    )

    if "MLFLOW_TRACKING_URI" not in os.environ and not Path("mlflow.db").exists():
        if not empty.exists():
            store.connect()
            shutil.copy("mlflow.db", empty)
        else:
            shutil.copy(empty, "mlflow.db")
    shipping.ship()


def wait_for(condition, seconds=30):
    """Waits until ``condition()`` holds; fails after ``seconds``."""
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.05)


@pytest.fixture
def workspace(tmp_path, tmp_path_factory, monkeypatch):
    """An empty checkout, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "data").mkdir()
    # This process ships each record when it is whole: a process per record would start MLflow each time.
    empty = tmp_path_factory.getbasetemp() / "empty.db"
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: SimpleNamespace(wait=lambda seconds: _ship(empty)))
    return tmp_path


@pytest.fixture
def pictures(workspace):
    """data/raw/bars: those of ``bars``, 12x12."""
    bars(workspace / "data/raw/bars", 12)
    return workspace / "data/raw/bars"


@pytest.fixture
def ready(pictures):
    """The same up to augment; its data folder."""
    ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
    augment("bars", Augment(copies=1, seed=0, noise=5))
    return pictures.parents[1]


@pytest.fixture
def datasets():
    """The folder of real data sets that are too large for the checkout; the test is skipped without it."""
    folder = os.environ.get("CONVOY_DATASETS")
    if not folder:
        pytest.skip("CONVOY_DATASETS is not set: no real data sets here")
    return Path(folder)


@pytest.fixture(scope="session")
def prefect():
    """One Prefect server, with an empty database, for all flows of this process: it keeps to the first it sees."""
    from prefect.testing.utilities import prefect_test_harness  # seconds that only flows are worth

    with prefect_test_harness(server_startup_timeout=180):
        yield
