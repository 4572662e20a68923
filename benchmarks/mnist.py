"""The picture models on MNIST: ``python benchmarks/mnist.py [MODEL...]``, IDX files in $CONVOY_DATASETS/mnist.

Clones the checkout at HEAD into a temporary folder, changes one entry of params.yaml - ``fetch.digits`` takes the IDX
files instead of the embedded sample - and lowers the epochs of the four large models, whose training splits are now
45 times larger. Then ``dvc repro``; prints a table for RESULTS.md.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.accuracy import repro
from convoy.tracking.outbox import measured

EPOCHS = {"plain_cnn": 3, "alexnet": 2, "googlenet": 2, "resnet": 2}  # lenet5 keeps its 20


def main() -> None:
    """Trains and evaluates; needs about an hour on 2 cores."""
    raw = Path(os.environ.get("CONVOY_DATASETS", ""), "mnist").resolve()
    if not list(raw.glob("*-ubyte.gz")):
        sys.exit(f"no IDX files in {raw}: set CONVOY_DATASETS to the folder that holds mnist/")
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "convoy")
        subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
        yaml = YAML()
        params = yaml.load(clone / "params.yaml")
        params["fetch"]["digits"] = {"path": str(raw)}
        for stage in ("fetch", "ingest", "augment", "register"):
            params[stage] = {"digits": params[stage]["digits"]}
        for model, entry in list(params["train"].items()):
            if entry["dataset"] != "digits" or (sys.argv[1:] and model not in sys.argv[1:]):
                del params["train"][model]
            elif model in EPOCHS:
                params["train"][model]["epochs"] = EPOCHS[model]
        yaml.dump(params, clone / "params.yaml")
        repro(clone)
        print("| model | parameters | epochs | test accuracy | 95 % interval | train, s | images/s |")
        print("|---|---|---|---|---|---|---|")
        for model in params["train"]:
            facts = json.loads((clone / "data/train/digits" / model / "run.json").read_text())
            facts |= measured(facts, clone)
            scores = json.loads((clone / "data/evaluate/digits" / model / "metrics.json").read_text())
            print(
                f"| {model} | {facts['parameters']:,} | {facts['epochs']} | {scores['accuracy']:.2%} | "
                f"{scores['accuracy_low']:.2%} - {scores['accuracy_high']:.2%} | {facts['seconds']:.0f} | "
                f"{facts['examples_per_second']:,} |"
            )


if __name__ == "__main__":
    main()
