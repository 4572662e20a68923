"""Twenty scheduled runs in a row, each of changed data and each killed once: what grows, and what shrinks it again.

Usage: ``python benchmarks/soak.py [--runs 20] [--clean 5] [--seed 0]``; Linux, half an hour on 2 cores. A copy of the
checkout in a temporary folder has one data set, which ``dvc import-url`` copies from a folder beside it. It has a small
LeNet-5, a remote, a Prefect server, and one ``convoy schedule`` for all runs. Before each run some pictures come and
some go. Each run's processes are children of the schedule's; they are killed at a random time, and the next run has to
succeed. After it the script measures its seconds, bytes on the disk by place, the databases, and the schedule's open
files and memory. After every ``--clean`` runs, ``convoy clean --keep-last 1 --keep-champions`` frees space; the
sizes after it have to level off. Prints Markdown for RESULTS.md; exits with 1 if a run failed or left something behind.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.kills import prepare, processes
from flows.session import free_port

PICTURES, COME, GO, SIDE = 400, 20, 10, 32  # at first; new and removed before each run
ENTRIES: dict[str, dict[str, Any]] = {
    "ingest": {"kind": "images", "size": [SIDE, SIDE], "mode": "grey"},
    "augment": {"copies": 1, "seed": 0, "shift": 2},
    "train": {"dataset": "bars", "architecture": "lenet5", "epochs": 3, "learning_rate": 2e-3},
}
PLACES = ("data", ".dvc/cache", "mlartifacts", "mlflow.db")  # of the checkout
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
LONGEST = 300  # seconds of a run
TRIES = 3  # runs that may be cancelled or crash after a kill until one ends well


def main() -> None:
    """Runs, kills, measures, cleans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--clean", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, wrong, seconds = random.Random(arguments.seed), [], []
    with tempfile.TemporaryDirectory() as scratch:
        source, clone = Path(scratch, "source"), Path(scratch, "clone")
        change(source, draw, PICTURES, 0)
        prepare(clone, "bars", **ENTRIES)
        shutil.rmtree(clone.with_suffix(".clean"))
        environment = surroundings(clone)
        (clone / "params.yaml").write_text(
            (clone / "params.yaml").read_text().replace("fetch:\n  bars: {}", "fetch: {}")
        )
        for words in (
            ["dvc", "import-url", str(source), "data/raw/bars"],
            ["dvc", "remote", "modify", "--local", "storage", "url", str(Path(scratch, "storage"))],
        ):
            subprocess.run(words, cwd=clone, env=environment, check=True, capture_output=True)
        with server(clone, environment), living(clone, environment, "flows", "schedule") as schedule:
            address = environment["PREFECT_API_URL"]
            deployment = wait(lambda: found(address, "deployments/name/nightly/nightly"), 120)["id"]
            print("| run | s | killed after, s | tries | " + " | ".join((*PLACES, "remote", "prefect.db")), end=" | ")
            print("open files | memory, MiB |\n|" + "---|" * 12, flush=True)
            for number in range(arguments.runs):
                change(source, draw, COME if number else 0, GO if number else 0)
                after = draw.uniform(5, statistics.median(seconds) if seconds else 30)
                killed = start(address, deployment)
                time.sleep(after)
                kill(schedule)
                wait(lambda run=killed: state(address, run) in ENDED, LONGEST, f"the end of run {number}, killed")
                tries, ended = 0, ""
                while tries < TRIES and ended != "COMPLETED":
                    tries, began, run = tries + 1, time.monotonic(), start(address, deployment)
                    wait(lambda run=run: state(address, run) in ENDED, LONGEST, f"the end of run {number}")
                    ended = state(address, run)
                if ended != "COMPLETED":
                    wrong.append(f"run {number}: {ended} after {TRIES} tries")
                seconds.append(time.monotonic() - began)
                status = subprocess.run(["dvc", "status", "-q"], cwd=clone, env=environment, check=False)
                wrong += [f"run {number}: dvc status is not clean"] if status.returncode else []
                wrong += [f"run {number}: {file} is left" for file in clone.glob("data/runs/*.jsonl")]
                open_files, memory = alive(schedule)
                sizes = disk(clone, Path(scratch, "storage"), environment)
                print(f"| {number} | {seconds[-1]:.0f} | {after:.0f} | {tries} | {sizes} | {open_files} | "
                      f"{memory:.0f} |", flush=True)  # fmt: skip
                if (number + 1) % arguments.clean == 0:
                    wrong += clean(clone, environment)
                    print(f"| cleaned | | | | {disk(clone, Path(scratch, 'storage'), environment)} | | |", flush=True)
        wrong += [f"process {one.pid} still runs: {one.cmdline()}" for one in processes(environment["KILLS_COUNTER"])]
    print("\n" + ("\n".join(wrong) or "Every run ended well after the kill before it; nothing was left."))
    sys.exit(bool(wrong))


def change(source: Path, draw: random.Random, come: int, go: int) -> None:
    """Adds pictures of lines, across and down, and takes others away."""
    there = sorted(source.rglob("*.png"))
    for file in draw.sample(there, go):
        file.unlink()
    for _ in range(come):
        rng = np.random.default_rng(draw.getrandbits(32))
        picture = rng.integers(0, 60, (SIDE, SIDE), np.uint8)
        label, line = draw.choice(("across", "down")), draw.randrange(2, SIDE - 2)
        picture[(line, slice(None)) if label == "across" else (slice(None), line)] = 255
        (source / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(source / label / f"{draw.getrandbits(64):016x}.png")


def surroundings(clone: Path) -> dict[str, str]:
    """Returns the environment of all processes, by which they are known; Prefect's own home among it."""
    hidden = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE")
    found = {key: value for key, value in os.environ.items() if key not in hidden}
    return found | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", "")]), "DVC_NO_ANALYTICS": "1",
        "PREFECT_HOME": str(clone.with_suffix(".prefect")), "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api", "KILLS_COUNTER": str(clone),
    }  # fmt: skip


@contextmanager
def server(clone: Path, environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Runs a Prefect server at the address that is set in the environment."""
    port = environment["PREFECT_API_URL"].split(":")[-1].removesuffix("/api")
    with living(clone, environment, "prefect", "server", "start", "--host", "127.0.0.1", "--port", port) as process:
        wait(lambda: found(environment["PREFECT_API_URL"], "health"), 180)
        yield process


@contextmanager
def living(clone: Path, environment: dict[str, str], *words: str) -> Iterator[psutil.Process]:
    """Runs a module of Python until the end of the context, with all that it starts."""
    with clone.with_suffix(f".{words[0]}.log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=clone, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    process = psutil.Process(started.pid)
    try:
        yield process
    except SystemExit:  # of ``wait``
        print(clone.with_suffix(f".{words[0]}.log").read_text()[-5000:], file=sys.stderr)
        raise
    finally:
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.Error):
                one.kill()
        started.wait()


def found(address: str, path: str) -> Any:
    """Returns what the server says, or None if it does not answer well."""
    with suppress(httpx.TransportError):
        answer = httpx.get(f"{address}/{path}", timeout=30)
        return answer.json() if answer.is_success else None
    return None


def start(address: str, deployment: str) -> str:
    """Asks for a run; returns its id."""
    asked = {"state": {"type": "SCHEDULED", "message": "soak"}}
    answer = httpx.post(f"{address}/deployments/{deployment}/create_flow_run", json=asked, timeout=30)
    return answer.raise_for_status().json()["id"]


def state(address: str, run: str) -> str:
    """Returns the type of a run's state."""
    return (found(address, f"flow_runs/{run}") or {}).get("state_type", "")


def kill(schedule: psutil.Process) -> None:
    """Kills all that the schedule has started."""
    for process in schedule.children(recursive=True):
        with suppress(psutil.Error):
            process.kill()


def wait(asked: Any, seconds: float, what: str = "the server") -> Any:
    """Waits until ``asked`` returns something true; returns that."""
    stop = time.monotonic() + seconds
    while not (answer := asked()):
        if time.monotonic() > stop:
            sys.exit(f"{what} did not come within {seconds} s")
        time.sleep(0.5)
    return answer


def clean(clone: Path, environment: dict[str, str]) -> list[str]:
    """Commits, and removes what neither the champion nor the last version needs; returns what went wrong."""
    wrong = []
    for words in (
        ["git", "add", "-A"], ["git", "-c", "user.name=k", "-c", "user.email=k@example.org", "commit", "-qm", "k"],
        [sys.executable, "-m", "flows", "clean", "--keep-last", "1", "--keep-champions"],
    ):  # fmt: skip
        done = subprocess.run(words, cwd=clone, env=environment, check=False, capture_output=True, text=True)
        wrong += [f"{' '.join(words)}: {done.stderr.strip()[-300:]}"] if done.returncode else []
    return wrong


def disk(clone: Path, storage: Path, environment: dict[str, str]) -> str:
    """Returns MiB by place, as cells of a table; a file with several names counts once in each."""
    places = [*(clone / place for place in PLACES), storage, Path(environment["PREFECT_HOME"], "prefect.db")]
    sizes = []
    for place in places:
        files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        sizes.append(sum({file.stat().st_ino: file.stat().st_size for file in files}.values()) / 2**20)
    return " | ".join(f"{size:.1f}" for size in sizes)


def alive(schedule: psutil.Process) -> tuple[int, float]:
    """Returns the open files and the memory, in MiB, of the process that keeps the schedule."""
    return schedule.num_fds(), schedule.memory_info().rss / 2**20


if __name__ == "__main__":
    main()
