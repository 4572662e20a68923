"""What ``stages/train/speed/cost.py`` expects beside what was measured: memory of every architecture, at two sizes.

Usage: ``python benchmarks/cost.py [MODEL ...]``; twenty minutes on 2 cores. Each model is trained for an epoch, by
``python -m stages`` in a process of its own, on the samples that ship with convoy. Prints Markdown.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from flows.show import plan

DATA = {  # data set: entries of fetch, ingest and augment
    "digits": ("digits", {"kind": "images", "size": [32, 32], "mode": "grey"}, {"copies": 1}),
    "digits64": ("digits", {"kind": "images", "size": [64, 64], "mode": "grey"}, {"copies": 0}),
    "digits112": ("digits", {"kind": "images", "size": [112, 112], "mode": "colour", "test": 0.6}, {"copies": 0}),
    "docs": ("docs", {"kind": "text"}, {"copies": 0}),
    "reviews": ("reviews", {"kind": "text"}, {"copies": 0}),
    "numbers": ("numbers", {"kind": "translation", "near_duplicates": False}, {"copies": 0, "subwords": 400}),
    "clips": ("clips", {"kind": "volumes", "size": [8, 16, 16], "mode": "grey"}, {"copies": 0}),
    "clips32": ("clips", {"kind": "volumes", "size": [16, 32, 32], "mode": "grey", "test": 0.5}, {"copies": 0}),
}
SMALL = {"stem": "small", "width": 0.25}
CIFAR = {"stem": "cifar", "depth": 20, "width": 0.5}
CLIPS = {"style": "resnet", "depth": 10, "stem": "small", "width": 0.125}
HALF = {"precision": "bfloat16"}
# model: data set, architecture, what else its entry says; the sizes of params.yaml, then larger ones
MODELS = {
    "lenet5": ("digits", "lenet5", {}),
    "lenet5, large": ("digits", "lenet5", {"batch": 1024, "sizes": {"maps": [24, 64], "units": [480, 336]}}),
    "lenet5, wide": ("digits112", "lenet5", {"batch": 16, "sizes": {"maps": [6, 40], "units": [2000, 2000]}}),
    "plain_cnn": ("digits", "plain_cnn", {}),
    "plain_cnn, large": ("digits64", "plain_cnn", {}),
    "plain_cnn, half": ("digits64", "plain_cnn", HALF | {"batch": 512}),
    "alexnet": ("digits", "alexnet", {"sizes": SMALL}),
    "alexnet, large": ("digits64", "alexnet", {"sizes": SMALL | {"width": 0.5}}),
    "googlenet": ("digits", "googlenet", {"sizes": SMALL}),
    "googlenet, large": ("digits64", "googlenet", {"sizes": SMALL}),
    "googlenet, half": ("digits64", "googlenet", HALF | {"sizes": SMALL}),
    "resnet": ("digits", "resnet", {"optimizer": "sgd", "sizes": CIFAR}),
    "resnet, large": ("digits64", "resnet", {"optimizer": "sgd", "sizes": CIFAR}),
    "resnet, half": ("digits64", "resnet", HALF | {"optimizer": "sgd", "sizes": CIFAR, "batch": 256}),
    "resnet, 50 layers": ("digits112", "resnet", {"optimizer": "sgd", "sizes": {"depth": 50}, "batch": 32}),
    "text_cnn": ("reviews", "text_cnn", {}),
    "text_cnn, large": ("docs", "text_cnn", {"batch": 512}),
    "char_cnn": ("docs", "char_cnn", {"batch": 32, "length": 123, "sizes": {"width": 0.25}}),
    "char_cnn, large": ("reviews", "char_cnn", {"batch": 128, "length": 1014, "sizes": {"width": 0.5}}),
    "conv_seq2seq": ("numbers", "conv_seq2seq", {"batch": 32, "sizes": {"width": 0.375}}),
    "conv_seq2seq, large": ("numbers", "conv_seq2seq", {"batch": 256}),
    "conv3d": ("clips", "conv3d", {"sizes": CLIPS}),
    "conv3d, large": ("clips32", "conv3d", {"sizes": CLIPS}),
    "conv3d, huge": ("clips32", "conv3d", {"batch": 128, "sizes": CLIPS | {"width": 0.25}}),
    "conv3d, stack": ("clips32", "conv3d", {"sizes": {"style": "stack", "width": 0.25, "units": 512}}),
}


def stage(folder: Path, *words: str) -> None:
    """Runs one stage in ``folder``."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "stages", *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")


def main(models: list[str]) -> None:
    """Trains the models and prints the table."""
    chosen = {name.replace(", ", "_").replace(" ", "_"): MODELS[name] for name in models or MODELS}
    used = {dataset: DATA[dataset] for dataset, _, _ in chosen.values()}
    sections = {
        "fetch": {name: {"sample": sample} for name, (sample, _, _) in used.items()},
        "ingest": {name: ingest for name, (_, ingest, _) in used.items()},
        "augment": {name: {"seed": 1} | augment for name, (_, _, augment) in used.items()},
        "train": {
            name: {"dataset": dataset, "architecture": architecture, "epochs": 1, "learning_rate": 2e-3} | entry
            for name, (dataset, architecture, entry) in chosen.items()
        },
        "register": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        (folder / "params.yaml").write_text(json.dumps(sections))
        for name in used:
            for word in ("fetch", "ingest", "augment"):
                stage(folder, word, name)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(ROOT)
        print("| model | parameters | MFLOPs | expected, MiB | measured, MiB | off by | 10^9 operations/s |")
        print("|---|---|---|---|---|---|---|")
        for cost in plan.costs(list(chosen)):
            name = cost["model"]
            stage(folder, "train", name)
            expected, measured = cost["memory"] / 2**20, plan.memory()[f"train@{name}"]
            rate, _ = plan.speed(cost, [run for run in plan.runs() if run["model"] == name])
            print(
                f"| {name} | {cost['parameters']:,} | {cost['flops'] / 1e6:,.1f} | {expected:,.0f} | {measured:,} "
                f"| {expected / measured - 1:+.0%} | {rate / 1e9:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
