"""convoy beside AutoKeras with equal time: ``python benchmarks/automl.py [digits fashion-mnist]``.

``make BENCHMARKS=1 setup`` installs AutoKeras. Of each data set a clone of the checkout at HEAD searches by ``python -m
flows tune`` for so many minutes, then trains and evaluates what the search wrote into params.yaml by ``dvc repro``.
AutoKeras' ``ImageClassifier`` then gets the same examples, split in the same way, and as many seconds as both took
together; it is ended when they are over, and its best model so far is taken. Each runs in a process of its own, with
nothing beside it. Of both the test accuracy is printed, as a table for RESULTS.md. Fashion-MNIST needs
$CONVOY_DATASETS; an hour on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.accuracy import own_store, prepare, results

MINUTES = {"digits": 3, "fashion-mnist": 10}  # of the search; what is trained at its end comes on top
# Of Fashion-MNIST: a network that suits photos, and few epochs, so that ten minutes have several trials.
ENTRY: dict[str, Any] = {
    "architecture": "resnet",
    "sizes": {"stem": "cifar", "depth": 14, "width": 1},
    "augmentation": {"shift": 2, "flip": 0.5},
    "epochs": 6,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "warmup": 0.5,
    "precision": "auto",
}
RANGES: dict[str, dict[str, Any]] = {
    "digits": {
        "train": {"learning_rate": {"low": 3e-4, "high": 1e-2, "log": True}, "batch": [32, 64, 128]},
        "sizes": {"kernel": [3, 5], "maps": [{"low": 4, "high": 32}, {"low": 8, "high": 64}]},
    },
    "fashion-mnist": {
        "train": {"learning_rate": {"low": 0.03, "high": 0.3, "log": True}, "batch": [64, 128, 256]},
        "sizes": {"width": [0.5, 1]},
    },
}


def main() -> None:
    """Runs both on every data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="DATASET", help=", ".join(MINUTES))
    parser.add_argument("--minutes", type=float, help="of each search, instead")
    parser.add_argument("--other", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.other:
        clone, scratch, seconds = arguments.other
        autokeras(Path(clone), Path(scratch), float(seconds))
        return
    print("| data set | seconds | convoy, test accuracy | trials | AutoKeras, test accuracy | trials |\n|" + "---|" * 6)
    for name in arguments.names or MINUTES:
        with tempfile.TemporaryDirectory() as scratch:
            clone, minutes = Path(scratch, "convoy"), arguments.minutes or MINUTES[name]
            seconds, trials, accuracy = convoy(name, clone, minutes)
            done = subprocess.run(
                [sys.executable, __file__, "--other", str(clone), scratch, str(seconds)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            said = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if not said:
                sys.exit(f"AutoKeras: {done.stderr.strip()[-2000:]}")
            other = json.loads(said[-1])
            cells = [name, f"{seconds:.0f}", f"{accuracy:.2%}", trials, f"{other['accuracy']:.2%}", other["trials"]]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def convoy(name: str, clone: Path, minutes: float) -> tuple[float, int, float]:
    """Searches, trains, evaluates; returns the seconds of that, the trials, and the test accuracy."""
    if name == "digits":
        subprocess.run(["git", "clone", "--quiet", str(ROOT), clone], check=True)
        params = YAML(typ="safe").load(ROOT / "params.yaml")
        entry = params["train"]["lenet5"] | {"dataset": "data"}
        params = {section: {"data": params[section]["digits"]} for section in ("fetch", "ingest", "augment")}
        params |= {"train": {"seed0": entry}, "register": {"data": {}}}
    else:
        prepare(name, clone, 1)
        params = YAML(typ="safe").load(clone / "params.yaml")
        params["train"]["seed0"] = {"dataset": "data", "seed": 0} | ENTRY
    params["tune"] = {"seed0": {"trials": 1000} | RANGES[name]}
    YAML().dump(params, clone / "params.yaml")
    data = ["augment@data"]
    subprocess.run(["dvc", "repro", *data], cwd=clone, env=own_store(), check=True, stdout=sys.stderr)
    began = time.monotonic()
    tune = [sys.executable, "-m", "flows", "tune", "seed0", "--minutes", str(minutes)]
    subprocess.run(tune, cwd=clone, env=own_store(), check=True, stdout=sys.stderr)
    subprocess.run(["dvc", "repro", "evaluate@seed0"], cwd=clone, env=own_store(), check=True, stdout=sys.stderr)
    seconds = time.monotonic() - began
    [state] = clone.glob("data/tune/seed0/*.db")
    import optuna

    storage = f"sqlite:///{state}"
    names = optuna.get_all_study_names(storage)
    trials = sum(len(optuna.load_study(study_name=one, storage=storage).trials) for one in names)
    return seconds, trials, results(clone, "seed0")[1]["accuracy"]


def autokeras(clone: Path, scratch: Path, seconds: float) -> None:
    """Has AutoKeras search for so long, and prints how good its best model is."""
    stop = time.monotonic() + seconds  # its imports and the reading count, as ours do
    import autokeras as ak
    import keras
    import numpy as np
    from keras_tuner.errors import FatalError

    from convoy.data.shards import Shards

    class EndedError(FatalError):
        """The time is over; of other errors the search makes failed trials."""

    class Deadline(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            if time.monotonic() > stop:
                raise EndedError

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        shards = Shards(clone / "data/ingest/data" / name)
        return np.asarray(shards.column("image")), np.asarray(shards.column("label"))

    build = ak.ClassificationHead.build

    def counted(self: ak.ClassificationHead, *arguments: Any, **options: Any) -> Any:
        # AutoKeras 3.0.0 has the number of classes as an integer of numpy, which Keras 3.15 refuses.
        self.shape = [int(length) for length in self.shape]
        return build(self, *arguments, **options)

    ak.ClassificationHead.build = counted
    keras.utils.set_random_seed(0)
    found = ak.ImageClassifier(max_trials=1000, directory=scratch, project_name="autokeras", overwrite=True, seed=0)
    with suppress(EndedError):
        found.fit(*split("train"), validation_data=split("val"), callbacks=[Deadline()], verbose=0)
    tuner = found.tuner
    trials = [one for one in tuner.oracle.trials.values() if one.score is not None]
    accuracy = 0.0
    if trials:
        model = tuner.get_best_models(1)[0]
        images, labels = split("test")
        answers = model.predict(images, verbose=0)
        chosen = answers.argmax(-1) if answers.shape[-1] > 1 else (answers[:, 0] > 0.5).astype(int)
        accuracy = float((chosen == labels).mean())
    print(json.dumps({"accuracy": accuracy, "trials": len(tuner.oracle.trials)}), flush=True)


if __name__ == "__main__":
    main()
