"""How do we know that's a stop sign? ``python benchmarks/stop_sign.py``, raw data in $CONVOY_DATASETS/caltech101-10.

A clone of the checkout at HEAD in a temporary folder gets a params.yaml with the ten classes of photos alone and runs
``dvc repro``. Leaves the pictures that evaluate drew in a folder, and stop_signs.png, all stop signs of the test;
prints how many were found, and what becomes of their probability when parts of the photos are changed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parent.parent))
from convoy.data.shards import Shards
from convoy.files import read_json
from convoy.model import backend
from convoy.model.predictor import Predictor
from stages.evaluate.evaluators import explain
from stages.evaluate.report import pictures

SIGN = "stop_sign"
MIRRORED = ["butterfly", "chandelier", "grand_piano", "hawksbill", "helicopter", "ketch", "laptop", "starfish", "watch"]
PARAMS = {
    "ingest": {"photos": {"kind": "images", "size": [64, 64], "mode": "colour", "fit": "pad"}},
    "augment": {
        "photos": {"copies": 4, "seed": 1, "shift": 6, "rotate": 10, "scale": 0.15, "flip": MIRRORED, "erase": 0.05}
    },
    "train": {
        "resnet": {
            "dataset": "photos",
            "architecture": "resnet",
            "sizes": {"stem": "cifar", "depth": 20, "width": 0.5},
            "epochs": 12,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 5e-4,
            "warmup": 1,
        }
    },
    "register": {"photos": {}},
}
FIFTH = 0.2  # of a photo that is covered


def main() -> None:
    """Needs about 4 minutes on 2 cores."""
    raw = Path(os.environ.get("CONVOY_DATASETS", ""), "caltech101-10").resolve()
    if not raw.is_dir():
        sys.exit(f"no {raw}: set CONVOY_DATASETS to the folder that holds it")
    left = Path(tempfile.mkdtemp(prefix="stop_sign-"))
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "convoy")
        subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
        YAML().dump({"fetch": {"photos": {"path": str(raw)}}, **PARAMS}, clone / "params.yaml")
        # Into the clone's own store: this model must not compete for a champion on the user's server.
        environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        subprocess.run(["dvc", "repro", "evaluate@resnet"], cwd=clone, env=environment, check=True)
        evaluated = clone / "data/evaluate/photos/resnet"
        for folder in ("plots", "tables"):
            shutil.copytree(evaluated / folder, left, dirs_exist_ok=True)
        metrics = read_json(evaluated / "metrics.json")
        print(f"\ntest accuracy {metrics['accuracy']:.1%} of {metrics['examples']}, baseline {metrics['baseline']:.1%}")
        backend.prepare()
        signs(Predictor.load(clone / "data/train/photos/resnet"), Shards(clone / "data/ingest/photos/test"), left)
    print(f"\npictures: {left}")


def signs(predictor: Predictor, test: Shards, left: Path) -> None:
    """Draws the stop signs of the test, and prints what they are recognised by."""
    sign = predictor.classes.index(SIGN)
    photos = test.take("image", np.flatnonzero(test.column("label") == sign))
    found = predictor.network.predict(photos, verbose=0)
    names = [predictor.classes[place] for place in found.argmax(axis=1)]
    print(f"stop signs found: {names.count(SIGN)} of {len(photos)}")
    heat = explain.grad_cam(predictor.network, photos, np.full(len(photos), sign))
    captions = [
        f"{row[sign]:.0%} {SIGN}" + (f"\ntaken for {name}" if name != SIGN else "")
        for row, name in zip(found, names, strict=True)
    ]
    pictures.draw_gradcam(photos, heat, captions, f"Grad-CAM for {SIGN}").savefig(left / "stop_signs.png")

    red, green, blue = np.moveaxis(photos.astype(float), -1, 0)
    reddish = red > 1.5 * np.maximum(green, blue) + 10
    middle = np.zeros_like(reddish)
    middle[:, 16:48, 16:48] = True
    for name, where in (("red pixels", reddish), ("the middle quarter", middle)):
        print(f"{heat[where].sum() / heat.sum():.0%} of the heat lies on {name}, which are {where.mean():.0%} of all")
    order = heat.reshape(len(heat), -1).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    rank = order.reshape(heat.shape) / heat[0].size  # 0 the coldest, near 1 the hottest pixel
    elsewhere = np.roll(rank, (32, 32), axis=(1, 2))  # as many pixels of the same shape
    mean = photos.mean(axis=(1, 2), keepdims=True)
    changed = {
        "as they are": photos,
        "hottest fifth covered": np.where((rank >= 1 - FIFTH)[..., None], mean, photos),
        "the same shape elsewhere": np.where((elsewhere >= 1 - FIFTH)[..., None], mean, photos),
        "coldest fifth covered": np.where((rank < FIFTH)[..., None], mean, photos),
        "without colour": np.repeat(photos.mean(axis=-1, keepdims=True), 3, axis=-1),
        "red and blue exchanged": photos[..., ::-1],
        "turned by half": photos[:, ::-1, ::-1],
    }
    rows = []
    for name, pixels in changed.items():
        given = predictor.network.predict(pixels.round().astype(np.uint8), verbose=0)
        rows.append((name, f"{given[:, sign].mean():.0%}", f"{(given.argmax(axis=1) == sign).sum()} of {len(photos)}"))
    print(pd.DataFrame(rows, columns=["photos", "mean probability", "found"]).to_string(index=False))


if __name__ == "__main__":
    main()
