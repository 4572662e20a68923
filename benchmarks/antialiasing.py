"""Anti-aliased pooling: ``python benchmarks/antialiasing.py [MODEL...]``, IDX files in $CONVOY_DATASETS/fashion-mnist.

The first TRAINED training and TESTED test pictures of Fashion-MNIST go the road of the stages, in a temporary folder,
without changed copies: a network that is shown shifted pictures learns to bear them, which would hide the effect.
Each picture model is trained plain and with ``antialias: true``, from the same seeds; prints a table for RESULTS.md.
"""

import gzip
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from convoy.data.shards import Shards
from convoy.files import read_json
from convoy.model.predictor import Predictor
from convoy.tracking.outbox import measured
from stages.augment.augment import augment
from stages.evaluate.evaluators.changed import Sample
from stages.evaluate.evaluators.invariance import PART, consistency
from stages.ingest.ingest import ingest
from stages.train.train import train

TRAINED, TESTED = 5000, 2000
SEEDS = (0, 1)
SMALL = {"stem": "small", "width": 0.25}
RECIPES = {  # as in params.yaml, for as many steps as two CPU cores do within minutes
    "lenet5": {"epochs": 15, "learning_rate": 2e-3},
    "plain_cnn": {"epochs": 5, "learning_rate": 1e-3},
    "alexnet": {"epochs": 5, "learning_rate": 5e-4, "batch": 32, "sizes": SMALL},
    "googlenet": {"epochs": 4, "learning_rate": 1e-3, "batch": 32, "sizes": SMALL},
    "resnet": {
        "epochs": 5,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "sizes": {"stem": "cifar", "depth": 20, "width": 0.5},
    },
}


def main() -> None:
    """Trains and measures; needs about ten minutes on 2 cores."""
    raw = Path(os.environ.get("CONVOY_DATASETS", ""), "fashion-mnist").resolve()
    if not list(raw.glob("*-ubyte.gz")):
        sys.exit(f"no IDX files in {raw}: set CONVOY_DATASETS to the folder that holds fashion-mnist/")
    models, began = sys.argv[1:] or list(RECIPES), time.monotonic()
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # these models must not be among the user's own
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for source in sorted(raw.glob("*-ubyte.gz")):
            _shorten(source, Path("data/raw/fashion", source.name))
        ingest("fashion", kind="images", size=(28, 28), mode="grey", val=0.1, near_duplicates=False)
        augment("fashion", copies=0, seed=0)
        rows = [_measured(model, antialias) for model in models for antialias in (False, True)]
        os.chdir(raw)  # so that the folder can go
    print("| model | pooling | shift consistency | each | test accuracy | each | train, s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"{len(rows) * len(SEEDS)} trainings and all in {time.monotonic() - began:.0f} s")


def _measured(model: str, antialias: bool) -> list[str]:
    """Returns a row of the table: means over the seeds, and each."""
    recipe, found = RECIPES[model], []
    sizes = recipe.get("sizes", {}) | ({"antialias": True} if antialias else {})
    test = Shards("data/ingest/fashion/test")
    manifest = pd.read_parquet("data/ingest/fashion/manifest.parquet")
    labels = manifest.loc[manifest["split"] == "test", ["label"]].reset_index(drop=True)
    farthest = -(-28 // PART)
    for seed in SEEDS:
        entry = recipe | {"dataset": "fashion", "architecture": model, "warmup": 1, "sizes": sizes, "seed": seed}
        train(model, **entry)
        folder = Path("data/train/fashion", model)
        predictor = Predictor.load(folder)
        answers = labels.assign(predicted=predictor.answers(test))
        sample = Sample.of(predictor, test, answers, len(test))
        accuracy = float((answers["label"] == answers["predicted"]).mean())
        same = consistency(sample, farthest, np.random.default_rng(0))  # the same shifts for every model
        found.append((same, accuracy, measured(read_json(folder / "run.json"))["seconds"]))
    same, accuracy, seconds = zip(*found, strict=True)
    shown = [model, "anti-aliased" if antialias else "plain"]
    for values in (same, accuracy):
        shown += [f"{mean(values):.2%}", ", ".join(f"{100 * value:.2f}" for value in values)]
    return [*shown, f"{mean(seconds):.0f}"]


def _shorten(source: Path, target: Path) -> None:
    """Writes the first examples of an IDX file: a header of 4 bytes and 4 for each axis, then the values."""
    content = gzip.decompress(source.read_bytes())
    axes, total = content[3], int.from_bytes(content[4:8])
    start, count = 4 + 4 * axes, TRAINED if source.name.startswith("train") else TESTED
    size = (len(content) - start) // total
    target.parent.mkdir(parents=True, exist_ok=True)
    header = content[:4] + count.to_bytes(4) + content[8:start]
    target.write_bytes(gzip.compress(header + content[start : start + count * size], mtime=0))


if __name__ == "__main__":
    main()
