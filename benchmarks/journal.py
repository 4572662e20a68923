"""What a training's records take of its time, with MLflow's server there and away.

Usage: ``python benchmarks/journal.py [--rounds 5]``; Linux, four minutes on 2 cores. Small LeNet-5 on the digits, whose
epochs last a third of a second: the most that records can weigh. Each round trains it with the store of the checkout,
with the address of a server that nobody listens at, and with nobody who ships. Told are medians: seconds of the epochs;
what the training waits for in them, while it writes its journal, one fsync per epoch, and as a share of them; what it
takes to start who ships, before them; and how long the stage then waits for the last lines to be shipped, after them.
What the shipping process computes meanwhile shows in the seconds of the epochs. Prints Markdown.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.kills import ENTRY, prepare

TRAIN = """
import json, subprocess, sys, time
from collections import Counter
from convoy.model import backend  # first of all: it imports Keras quietly
from convoy.tracking import outbox
from stages import __main__
from stages.train.fit import fit

spent = Counter()


def timed(name, function):
    def call(*words, **more):
        started = time.perf_counter()
        try:
            return function(*words, **more)
        finally:
            spent[name] += time.perf_counter() - started
    return call


outbox.Record._say = timed("journal", outbox.Record._say)
if sys.argv[1] == "nobody":
    outbox.Shipper = lambda number, name: subprocess.Popen(["true"])
ship = timed("start", outbox.Shipper)


def shipper(number, name):
    process = ship(number, name)
    process.wait = timed("wait", process.wait)
    return process


outbox.Shipper, fit.fit = shipper, timed("epochs", fit.fit)
status = __main__.main("train", "lenet5")
print("measured", json.dumps(spent))
sys.exit(status)
"""


def main() -> None:
    """Trains and prints a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        arms = {"there": {}, "away": away, "nobody": {}}
        clone = prepare(Path(scratch, "clone"), "digits", train=ENTRY | {"epochs": 30})
        plain = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        for stage in ("fetch", "ingest", "augment"):
            subprocess.run([sys.executable, "-m", "stages", stage, "digits"], cwd=clone, env=plain, check=True)
        seen: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm, variables in arms.items():
                shutil.rmtree(clone / "data/runs", ignore_errors=True)  # what waits there is not this one's
                done = subprocess.run(
                    [sys.executable, "-c", TRAIN, arm],
                    cwd=clone, env=plain | variables, capture_output=True, text=True, check=True,
                )  # fmt: skip
                [said] = [line for line in done.stdout.splitlines() if line.startswith("measured")]
                seen[arm].append(json.loads(said.removeprefix("measured")))
        print("| who ships | epochs, s | journal, ms | share, % | start, ms | wait at the end, s |")
        print("|---|---|---|---|---|---|")
        for arm, found in seen.items():
            middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
            print(
                f"| {arm} | {middle['epochs']:.2f} | {1000 * middle['journal']:.0f} "
                f"| {100 * middle['journal'] / middle['epochs']:.2f} | {1000 * middle['start']:.0f} "
                f"| {middle['wait']:.1f} |"
            )


if __name__ == "__main__":
    main()
