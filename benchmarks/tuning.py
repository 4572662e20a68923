"""The search of ``flows tune`` against random search: ``python benchmarks/tuning.py [TABLE.csv]``.

Every combination of VALUES is trained once, LeNet-5 on the digits of scikit-learn, and how good it is after each epoch
on the validation split goes into a table. Then searches are played on it, SEEDS of each kind, which costs no training:
with and without TPE, with and without Hyperband, made by the functions that ``flows tune`` uses. A value between two of
the table is the nearest of them; as there, what was tried before costs nothing, and counts as a trial.

Prints a table for RESULTS.md; TABLE.csv is read if it exists, else written.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from copy import deepcopy
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import numpy as np
import optuna
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from convoy.errors import DivergedError
from convoy.machine.progress import track
from convoy.machine.room import cores
from convoy.schema import prepare
from flows.tune.study import make_pruner, make_sampler, suggest
from stages.augment.augment import augment
from stages.fetch.fetch import fetch
from stages.ingest.ingest import ingest
from stages.search_space import Choice, Interval
from stages.train.train import fitting, opened

EPOCHS, TRIALS, SEEDS = 9, 60, 100
BEST = 0.02  # the goal of a search: one of this part of all combinations, the best
VALUES: dict[str, list[Any]] = {
    "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "optimizer": ["adam", "sgd"],
    "batch": [32, 128],
    "kernel": [3, 5],
    "width": [0.5, 1.0, 2.0],
}
RANGES = {name: Choice(tuple(values)) for name, values in VALUES.items()} | {
    "learning_rate": Interval(3e-4, 3e-2, log=True),
    "width": Interval(0.5, 2.0, log=True),
}


def main() -> None:
    """Trains, plays and prints; needs about ten minutes on 2 cores."""
    began = time.monotonic()
    file = Path(sys.argv[1]).resolve() if sys.argv[1:] else None
    table = pd.read_csv(file) if file and file.exists() else train_all()
    if file:
        table.to_csv(file, index=False)
    trained = time.monotonic() - began
    finals = table[f"epoch{EPOCHS}"].sort_values(ascending=False)
    goal = finals.iloc[round(BEST * len(table)) - 1]
    print(f"{len(table)} combinations, validation accuracy {finals.iloc[-1]:.2%} to {finals.iloc[0]:.2%}, median "
          f"{finals.median():.2%}; goal {goal:.2%}, which {(finals >= goal).sum()} reach\n")  # fmt: skip
    print(f"Median (quartiles; mean) of {SEEDS} searches; where the goal is not reached, {TRIALS + 1} trials.\n")
    print("| search | trials to the goal | epochs to it | not reached | mean best after 15 trials | after 30 |")
    print("|---|---|---|---|---|---|")
    whole, early = optuna.pruners.NopPruner(), make_pruner(EPOCHS, 0)
    for name, chooses, ends in (
        ("random", optuna.samplers.RandomSampler, whole),
        ("random, Hyperband", optuna.samplers.RandomSampler, early),
        ("TPE", make_sampler, whole),
        ("TPE, Hyperband (`flows tune`)", make_sampler, early),
    ):
        _say(name, [play(table, chooses(seed), deepcopy(ends), seed) for seed in range(SEEDS)], goal)
    print(f"\n{trained:.0f} s of training, {time.monotonic() - began - trained:.0f} s of playing")


def train_all() -> pd.DataFrame:
    """Returns a row for each combination: its values, the seconds it took, and the accuracy after each epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        fetch("digits", sample="digits")
        ingest("digits", kind="images", size=(32, 32), mode="grey", val=0.2)
        augment("digits", copies=0, seed=0)
        context, values = get_context("spawn"), list(product(*VALUES.values()))
        with ProcessPoolExecutor(cores(), context, initializer=_one_thread) as pool:
            rows = list(track(pool.map(train_one, values), "training", "combinations", len(values)))
        os.chdir(Path(__file__).parent)
    return pd.DataFrame(rows)


def train_one(values: tuple[Any, ...]) -> dict[str, Any]:
    """Trains one combination, in a worker process."""
    from stages.train.fit import fit
    from stages.train.speed import policy  # import Keras, which plays have no use for

    rate, optimizer, batch, kernel, width = values
    entry = {
        "dataset": "digits", "architecture": "lenet5", "epochs": EPOCHS, "learning_rate": rate, "batch": batch,
        "optimizer": optimizer, "sizes": {"kernel": kernel, "width": width},
    }  # fmt: skip
    _, arguments = prepare("train", "one", entry)
    data, val, takes = opened("one", arguments.pop("dataset"), arguments)
    scores: dict[str, float] = {}

    def log(row: dict[str, float], epoch: int) -> None:
        scores[f"epoch{epoch}"] = row["val_accuracy"]

    began = time.monotonic()
    settings = fitting(arguments)
    settings |= policy.choose("one", data, takes, settings, worth=math.inf)[0]
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            fit.fit(data, val, takes, title="one", log=log, **settings)
    except DivergedError:
        scores = {f"epoch{epoch}": scores.get(f"epoch{epoch}", 0.0) for epoch in range(1, EPOCHS + 1)}
    return dict(zip(VALUES, values, strict=True)) | {"seconds": time.monotonic() - began} | scores


def play(
    table: pd.DataFrame, chooses: optuna.samplers.BaseSampler, ends: optuna.pruners.BasePruner, seed: int
) -> list[tuple[int, float]]:
    """Returns the epochs that each trial of a search trained, and what it reached (0: it was ended)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=chooses, pruner=ends, study_name=f"seed {seed}")
    curves = {tuple(row[name] for name in VALUES): row for row in table.to_dict("records")}
    done: dict[tuple, float] = {}
    found = []
    for _ in range(TRIALS):
        trial = study.ask()
        values = suggest(trial, RANGES)
        key = tuple(min(VALUES[name], key=_distance(values[name])) for name in VALUES)
        if key in done:
            found.append((0, done[key]))
            study.tell(trial, done[key] or None, state=None if done[key] else optuna.trial.TrialState.PRUNED)
            continue
        for epoch in range(1, EPOCHS + 1):
            trial.report(curves[key][f"epoch{epoch}"], epoch)
            if epoch < EPOCHS and trial.should_prune():
                break
        score = curves[key][f"epoch{EPOCHS}"] if epoch == EPOCHS else 0.0
        study.tell(trial, score or None, state=None if score else optuna.trial.TrialState.PRUNED)
        done[key] = score
        found.append((epoch, score))
    return found


def _distance(value: Any) -> Callable[[Any], float]:
    if isinstance(value, str):
        return lambda other: float(other != value)
    return lambda other: abs(np.log(other / value))


def _say(name: str, searches: list[list[tuple[int, float]]], goal: float) -> None:
    trials, epochs = [], []
    for found in searches:
        reached = next((number for number, (_, score) in enumerate(found, 1) if score >= goal), None)
        trials.append(TRIALS + 1 if reached is None else reached)
        epochs.append(sum(trained for trained, _ in found[: reached or TRIALS]))
    best = [mean(max(score for _, score in found[:count]) for found in searches) for count in (15, 30)]
    share = sum(number > TRIALS for number in trials) / SEEDS
    print(f"| {name} | {_spread(trials)} | {_spread(epochs)} | {share:.0%} | {best[0]:.2%} | {best[1]:.2%} |")


def _spread(numbers: list[int]) -> str:
    low, middle, high = quantiles(numbers, n=4)
    return f"{middle:.0f} ({low:.0f} - {high:.0f}; {mean(numbers):.0f})"


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"


if __name__ == "__main__":
    main()
