"""How good models become on real data: ``python benchmarks/accuracy.py [RECIPE...] [--seeds 3]``.

For each recipe of ``benchmarks/recipes.yaml`` a clone of the checkout at HEAD in a temporary folder gets a params.yaml
with its entries alone, as a user would write it, and runs ``dvc repro``; raw data is in $CONVOY_DATASETS. Prints tables
for RESULTS.md. How many sentences are translated per second is among what evaluate prints.
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

sys.path.insert(0, str(Path(__file__).parent.parent))
from convoy.tracking.outbox import measured

RECIPES: dict[str, dict[str, Any]] = YAML(typ="safe").load(Path(__file__).with_name("recipes.yaml"))


def main() -> None:
    """Trains and evaluates; needs hours on 2 cores, 40 minutes of them for multi30k-en-de."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument(
        "--seeds", type=int, help="trainings of each, of which the mean is shown; 3, or as the recipe says"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed, so that a table can be continued")
    arguments = parser.parse_args()
    for name in arguments.names or RECIPES:
        seeds, first = arguments.seeds or RECIPES[name].get("seeds", 3), arguments.first
        with tempfile.TemporaryDirectory() as scratch:
            clone = prepare(name, Path(scratch, "convoy"), seeds, first)
            repro(clone)
            show(name, [results(clone, f"seed{seed}") for seed in range(first, first + seeds)])


def prepare(name: str, clone: Path, seeds: int, first: int = 0) -> Path:
    """Makes a clone whose params.yaml has one recipe, with models ``seed<n>`` for so many seeds from ``first`` on."""
    chosen = RECIPES[name]
    raw = Path(os.environ.get("CONVOY_DATASETS", ""), chosen.get("raw", name)).resolve()
    if not raw.is_dir():
        sys.exit(f"no {raw}: set CONVOY_DATASETS to the folder that holds it")
    subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
    models = {
        f"seed{seed}": {"dataset": "data", "seed": seed, **chosen["train"]} for seed in range(first, first + seeds)
    }
    params = {"fetch": {"data": {"path": str(raw)}}, "ingest": {"data": chosen["ingest"]}}
    params |= {"augment": {"data": chosen["augment"]}, "train": models, "register": {"data": {}}}
    YAML().dump(params, clone / "params.yaml")
    return clone


def own_store() -> dict[str, str]:
    """Returns an environment with a clone's own MLflow: models here must not compete for a champion of the user's."""
    return {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}


def repro(clone: Path, *targets: str) -> None:
    """Runs ``dvc repro`` there."""
    subprocess.run(["dvc", "repro", *targets], cwd=clone, env=own_store(), check=True)


def results(clone: Path, model: str) -> tuple[dict, dict]:
    """Returns run.json, with what the training took, and metrics.json of a model."""
    trained, evaluated = (clone / "data" / stage / "data" / model for stage in ("train", "evaluate"))
    facts, metrics = (json.loads(file.read_text()) for file in (trained / "run.json", evaluated / "metrics.json"))
    return facts | measured(facts, clone), metrics


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
