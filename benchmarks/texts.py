"""Texts, pairs and volumes: ``python benchmarks/texts.py [NAME...] [--seeds 3]``, raw data in $CONVOY_DATASETS.

For each of EXPERIMENTS a clone of the checkout at HEAD in a temporary folder gets a params.yaml with that data set
alone, as a user would write it, and runs ``dvc repro``; prints tables for RESULTS.md. How many sentences are translated
per second is among what evaluate prints.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "rt-polarity": {
        "ingest": {"kind": "text", "test": 0.1, "val": 0.1, "near_duplicates": False},
        "augment": {"copies": 0, "seed": 0},
        "train": {"architecture": "text_cnn"},
    },
    "trec": {
        "ingest": {
            "kind": "text",
            "files": {"train": "train_5500.label", "test": "TREC_10.label"},
            "val": 0.02,  # nothing is chosen by it: the recipe was, by folds
            "near_duplicates": False,
        },
        "augment": {"copies": 0, "seed": 0},
        # Case as in Kim's own code, of all his data sets in this alone; twice his sizes, by folds of the training file.
        "train": {"architecture": "text_cnn", "case": True, "sizes": {"embedding": 600, "maps": 200}},
    },
    "multi30k-en-de": {
        "ingest": {
            "kind": "translation",
            "columns": {"source": "en", "target": "de"},
            "near_duplicates": False,
        },
        "augment": {"copies": 0, "seed": 0, "subwords": 5000},
        "train": {"architecture": "conv_seq2seq"},
    },
    "adrenalmnist3d": {
        "ingest": {"kind": "volumes", "size": [28, 28, 28], "mode": "grey", "near_duplicates": False},
        "augment": {"copies": 0, "seed": 0},
        "train": {
            "architecture": "conv3d",
            "sizes": {"style": "stack", "normalise": True, "width": 0.125, "units": 2048},
        },
    },
}


def main() -> None:
    """Trains and evaluates; needs about 90 minutes on 2 cores, most of them for multi30k-en-de."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, of which the mean is shown")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("CONVOY_DATASETS", "")).resolve()
    for name in arguments.names or EXPERIMENTS:
        if not (folder / name).is_dir():
            sys.exit(f"no {folder / name}: set CONVOY_DATASETS to the folder that holds it")
        seeds = 1 if name == "multi30k-en-de" else arguments.seeds
        with tempfile.TemporaryDirectory() as scratch:
            show(name, run(name, folder / name, Path(scratch, "convoy"), seeds))


def run(name: str, raw: Path, clone: Path, seeds: int) -> list[tuple[dict, dict]]:
    """Returns run.json and metrics.json of each seed."""
    subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
    chosen, dataset = EXPERIMENTS[name], name.replace("-", "_")
    params = {
        "fetch": {dataset: {"path": str(raw)}},
        "ingest": {dataset: chosen["ingest"]},
        "augment": {dataset: chosen["augment"]},
        "train": {f"seed{seed}": {"dataset": dataset, "seed": seed, **chosen["train"]} for seed in range(seeds)},
        "register": {dataset: {}},
    }
    YAML().dump(params, clone / "params.yaml")
    # Into the clone's own store: these models must not compete for a champion on the user's server.
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    subprocess.run(["dvc", "repro"], cwd=clone, env=environment, check=True)
    results = []
    for model in params["train"]:
        trained, evaluated = (clone / "data" / stage / dataset / model for stage in ("train", "evaluate"))
        files = (trained / "run.json", evaluated / "metrics.json")
        results.append(tuple(json.loads(file.read_text()) for file in files))
    return results


def show(name: str, results: list[tuple[dict, dict]]) -> None:
    """Prints a table: the mean over the seeds of every number."""
    print(f"\n{name}, {len(results)} seeds; mean (of each)")
    wanted = ("parameters", "epochs", "seconds", "examples_per_second", "accuracy", "auc", "macro_f1")
    wanted += ("bleu", "bleu_low", "bleu_high", "chrf", "exact_match")
    for key in wanted:
        values = [one[key] for facts, metrics in results for one in (facts | metrics,) if key in one]
        if values:
            print(f"| {key} | {statistics.mean(values):,.4f} | {', '.join(f'{value:,.4f}' for value in values)} |")
    if "bleu_signature" in results[0][1]:
        print(f"| signature | {results[0][1]['bleu_signature']} |")


if __name__ == "__main__":
    main()
