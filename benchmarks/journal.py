"""Which share of a training its records take, with MLflow's server there and away.

Usage: ``python benchmarks/journal.py [--rounds 5]``; Linux, two minutes on 2 cores. Small LeNet-5 on the digits, whose
epochs last a third of a second: the most that records can weigh. Each round trains it once with the store of the
checkout, and once with the address of a server that nobody listens at; in both, the seconds are added up in which the
training does nothing but write its journal, one fsync per epoch, and call who brings it to MLflow. Prints Markdown.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.kills import ENTRY, prepare

TRAIN = """
import sys, time
from stages import __main__, record

inside = {"journal": 0.0, "calls": 0}
say = record.Record._say


def timed(self, *words, **more):
    started = time.perf_counter()
    say(self, *words, **more)
    inside["journal"] += time.perf_counter() - started
    inside["calls"] += 1


record.Record._say = timed
started = time.perf_counter()
status = __main__.main("train", "lenet5")
print("measured", time.perf_counter() - started, inside["journal"], inside["calls"])
sys.exit(status)
"""


def main() -> None:
    """Trains and prints a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        arms = {"there": {}, "away": {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed.getsockname()[1]}"}}
        clone = prepare(Path(scratch, "clone"), "digits", train=ENTRY | {"epochs": 30})
        plain = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        for stage in ("fetch", "ingest", "augment"):
            subprocess.run([sys.executable, "-m", "stages", stage, "digits"], cwd=clone, env=plain, check=True)
        seen: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm, variables in arms.items():
                started = time.monotonic()
                done = subprocess.run(
                    [sys.executable, "-c", TRAIN],
                    cwd=clone, env=plain | variables, capture_output=True, text=True, check=True,
                )  # fmt: skip
                [said] = [line for line in done.stdout.splitlines() if line.startswith("measured")]
                whole, journal, calls = map(float, said.split()[1:])
                seen[arm].append((time.monotonic() - started, whole, journal, calls))
        print("| server | process, s | training, s | lines | writing them, ms | share, % |\n|---|---|---|---|---|---|")
        for arm, found in seen.items():
            process, whole, journal, calls = (statistics.median(column) for column in zip(*found, strict=True))
            print(
                f"| {arm} | {process:.1f} | {whole:.1f} | {calls:.0f} | {1000 * journal:.0f} "
                f"| {100 * journal / whole:.2f} |"
            )


if __name__ == "__main__":
    main()
