"""Whether models become as good however they are computed: ``python benchmarks/policies.py [--seeds 3]``.

Two recipes of ``benchmarks/recipes.yaml``, each trained with several seeds as plain Keras would compute it - float32,
one step per execution, not compiled - and as convoy chooses on this machine, in one clone of the checkout at HEAD, by
``dvc repro``; raw data is in $CONVOY_DATASETS. Prints, as a table for RESULTS.md, test accuracies of each seed, their
means and, by Welch's t-test, how likely a difference as large is by chance. A quarter of an hour on 2 cores.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from scipy.stats import ttest_ind

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.accuracy import prepare, repro, results

NAMES = ("mnist-quick", "fashion-mnist-resnet")
ARMS: dict[str, dict[str, Any]] = {
    "plain-": {"precision": "float32", "steps_per_execution": 1, "jit_compile": False},
    "auto-": {"precision": "auto"},
}


def main() -> None:
    """Trains, evaluates, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("| recipe | computed | test accuracy, mean | of each seed | s, mean | p of the difference |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            clone = prepare(name, Path(scratch, "convoy"), arguments.seeds)
            yaml = YAML()
            params = yaml.load(clone / "params.yaml")
            models = params["train"]
            params["train"] = {
                f"{arm}{model}": entry | own for arm, own in ARMS.items() for model, entry in models.items()
            }
            yaml.dump(params, clone / "params.yaml")
            repro(clone)
            found = {arm: [results(clone, f"{arm}seed{seed}") for seed in range(arguments.seeds)] for arm in ARMS}
        scores = {arm: [metrics["accuracy"] for _, metrics in ones] for arm, ones in found.items()}
        chance = ttest_ind(*scores.values(), equal_var=False).pvalue
        for arm, ones in found.items():
            facts = ones[0][0]
            how = f"{facts['precision']}, {facts['steps_per_execution']} steps per execution"
            each = ", ".join(f"{score:.2%}" for score in scores[arm])
            seconds = statistics.mean(facts["seconds"] for facts, _ in ones)
            mean = statistics.mean(scores[arm])
            print(f"| {name} | {how} | {mean:.2%} | {each} | {seconds:.0f} | {chance:.2f} |", flush=True)


if __name__ == "__main__":
    main()
