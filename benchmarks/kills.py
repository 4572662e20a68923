"""Kills ``dvc repro`` at its n-th write, at random times and by full disks, runs it again, compares what it leaves.

Usage: ``python benchmarks/kills.py [--points 50] [--random 10] [--full 10] [--seed 0]``; Linux. A copy of the checkout
lies in a temporary folder, its params.yaml cut down to the digits and one small LeNet-5. It runs the whole pipeline,
fetch to register, once without a kill. Then, for each point, an equal copy starts the pipeline with a
``sitecustomize``. This counts each time one of its processes - DVC, the stages, the uploader to MLflow - opens a file
to write, or renames, removes, makes or syncs one. It kills all of them at the n-th time, for equally many n in each
stage. At the random points a clock kills.

For the full disks the copy lies on a tmpfs that is too small. Its sizes are spread evenly between the need of the
checkout and that of the finished pipeline. The pipeline has to end with a message and no traceback; then the tmpfs
grows, which takes the right to mount.

After each point the steps of ``make repro`` run alone. They have to succeed and leave the same dvc.lock, the same files
in data/ byte for byte, nothing half-written, no process, one version with the alias champion, and no open run. A point
takes a minute on 2 cores. Prints Markdown for RESULTS.md, and the failures.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES = ("fetch", "ingest", "augment", "train", "evaluate", "register")
ROAD = "python -m flows check && dvc repro"  # as make repro goes it
ENTRY = {"dataset": "digits", "architecture": "lenet5", "epochs": 4, "learning_rate": 2e-3, "warmup": 1}
HOOK = """
import os, signal, sys

root, counter, limit = os.environ["KILLS_ROOT"], os.environ["KILLS_COUNTER"], int(os.environ["KILLS_AT"])
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
count = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
who = os.environ.get("DVC_STAGE", "dvc")[0].encode()
changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink")
sync = os.fsync


def step():
    os.write(count, who)
    if limit and os.fstat(count).st_size >= limit:
        marker = f"KILLS_COUNTER={counter}".encode()
        for number in sorted(filter(str.isdecimal, os.listdir("/proc")), key=lambda one: int(one) == os.getpid()):
            try:
                with open(f"/proc/{number}/environ", "rb") as file:
                    if marker in file.read():
                        os.kill(int(number), signal.SIGKILL)
            except OSError:
                pass


def here(path):
    return isinstance(path, str) and os.path.abspath(path).startswith(root)


def hook(event, arguments):
    if (event == "open" and (arguments[2] or 0) & writes or event in changes) and here(arguments[0]):
        step()


def fsync(number):
    step()
    sync(number)


os.fsync = fsync
sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Left:
    """What a road leaves.

    Attributes:
        lock: dvc.lock, as text: one command writes its stages in one order.
        files: of data/ that are equal for equal input: path -> SHA-256.
        wrong: what should not be there, or is not.
    """

    lock: str
    files: dict[str, str]
    wrong: tuple[str, ...]


def main() -> None:
    """Sweeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--random", type=int, default=10)
    parser.add_argument("--full", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first = prepare(Path(scratch, "first"), "digits", train=ENTRY)
        writes, seconds, expected = whole(first)
        print(f"{len(writes)} writes in {seconds:.0f} s without a kill\n", flush=True)
        draw = random.Random(arguments.seed)
        clean = first.with_suffix(".clean")
        places: dict[str, list[Any]] = {
            "at a write": points(writes, arguments.points),
            "after seconds": [draw.uniform(0, seconds) for _ in range(arguments.random)],
            "by a full disk of bytes": sizes(clean, first, arguments.full),
        }
        ways = dict(zip(places, (killed, killed_after, filled), strict=True))
        seen: dict[str, Counter[str]] = {kind: Counter() for kind in places}
        for kind, place in [(kind, place) for kind, found in places.items() for place in found]:
            clone = Path(scratch, "killed")
            during, wrong = ways[kind](clean, clone, expected, place)
            seen[kind][during] += 1
            seen[kind]["wrong"] += bool(wrong)
            print(f"{kind} {place:,.0f}, in {during}: {'; '.join(wrong) or 'equal'}", file=sys.stderr, flush=True)
            shutil.rmtree(clone)
    print(f"| ended | times | {' | '.join(STAGES)} | between them | not equal |\n|{'---|' * (len(STAGES) + 4)}")
    for kind, found in seen.items():
        cells = [str(found[stage]) for stage in (*STAGES, "dvc", "wrong")]
        print(f"| {kind} | {len(places[kind])} | {' | '.join(cells)} |")
    sys.exit(any(found["wrong"] for found in seen.values()))


def points(writes: str, count: int) -> list[int]:
    """Returns so many of the writes: as many in each stage and in what DVC then does with it, evenly spaced.

    Args:
        writes: of a road, a letter for each: the first of the stage that writes, or of dvc.
        count: how many.
    """
    begins = sorted(writes.index(stage[0]) for stage in STAGES)
    parts = list(zip([0, *begins[1:]], [*begins[1:], len(writes)], strict=True))
    found = []
    for place, (first, last) in enumerate(parts):
        share = count // len(parts) + (place < count % len(parts))
        found += [first + round((last - first) * (number + 0.5) / share) for number in range(share)]
    return found


def prepare(clone: Path, data: str, **entries: dict[str, Any]) -> Path:
    """Copies the checkout as it stands, with one data set and LeNet-5; and once more to ``<clone>.clean``.

    Args:
        clone: where.
        data: entry of fetch, ingest, augment and register that stays.
        entries: by which those, and that of train, are replaced: stage -> entry.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for file in listed:
        if (ROOT / file).is_file() and file != "dvc.lock":
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, clone / file)
    yaml = YAML()
    params = yaml.load(clone / "params.yaml")
    small = {stage: {data: entries.get(stage, params[stage].get(data, {}))} for stage in STAGES if stage in params}
    yaml.dump(small | {"train": {"lenet5": entries["train"]}}, clone / "params.yaml")
    for words in (
        ["init"],
        ["add", "-A"],
        ["-c", "user.name=k", "-c", "user.email=k@example.org", "commit", "-m", "k"],
    ):
        subprocess.run(["git", *words], cwd=clone, capture_output=True, check=True)
    shutil.copytree(clone, clone.with_suffix(".clean"), symlinks=True)
    return clone


def environment(clone: Path, at: int) -> dict[str, str]:
    """Returns the environment in which a clone's road is counted, and killed at a write; 0: at none."""
    hooks = clone.with_suffix(".hooks")
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(HOOK)
    counter = hooks / "writes"
    counter.unlink(missing_ok=True)
    hidden = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE")
    found = {key: value for key, value in os.environ.items() if key not in hidden}
    path = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", "")])
    return found | {
        "PATH": path, "PYTHONPATH": str(hooks), "PYTHONDONTWRITEBYTECODE": "1", "DVC_NO_ANALYTICS": "1",
        "KILLS_ROOT": str(clone), "KILLS_COUNTER": str(counter), "KILLS_AT": str(at),
    }  # fmt: skip


def whole(clone: Path) -> tuple[str, float, Left]:
    """Goes the road without a kill; returns its writes in the form of ``points``, its seconds and what it leaves."""
    started = time.monotonic()
    surroundings = environment(clone, at=0)
    subprocess.run(["dvc", "repro"], cwd=clone, env=surroundings, check=True, stdout=subprocess.DEVNULL)
    return Path(surroundings["KILLS_COUNTER"]).read_text(), time.monotonic() - started, left(clone)


def killed(clean: Path, clone: Path, expected: Left, at: int) -> tuple[str, list[str]]:
    """Kills the road of a copy at a write, and goes it again; returns the stage that it met, and what is wrong then.

    Args:
        clean: the checkout, in which nothing ran yet.
        clone: where it is copied to.
        expected: what a road without a kill leaves.
        at: the write at which it is killed.
    """
    shutil.copytree(clean, clone, symlinks=True)
    status, during = road(clone, at=at)
    if status != -signal.SIGKILL:
        return "dvc", [f"it was not killed, but ended with status {status}"]
    return during, again(clone, expected)


def killed_after(clean: Path, clone: Path, expected: Left, seconds: float) -> tuple[str, list[str]]:
    """As ``killed``, by a clock."""
    shutil.copytree(clean, clone, symlinks=True)
    _, during = road(clone, after=seconds)
    return during, again(clone, expected)


def filled(clean: Path, clone: Path, expected: Left, size: int) -> tuple[str, list[str]]:
    """As ``killed``, by a disk of so many bytes: the road has to end by itself, with a message."""
    clone.mkdir()
    mount = ["mount", "-t", "tmpfs"]
    subprocess.run([*mount, "-o", f"size={size}", "tmpfs", str(clone)], check=True)
    try:
        shutil.copytree(clean, clone, symlinks=True, dirs_exist_ok=True)
        status, during = road(clone)
        said = clone.with_suffix(".log").read_text()
        wrong = [] if status else ["the disk was not full"]
        if status and ("Traceback" in said or not re.search("Make room|No space left on device|disk is full", said)):
            wrong.append(f"it said: {said[-1000:]}")
        subprocess.run([*mount, "-o", f"remount,size={2**30}", str(clone)], check=True)
        return during, wrong + again(clone, expected)
    finally:
        subprocess.run(["umount", "--lazy", str(clone)], check=True)


def sizes(clean: Path, whole: Path, count: int) -> list[int]:
    """Returns so many sizes of disks, in bytes, that hold the checkout, and not what its road leaves."""
    least, most = (sum(max(8, path.lstat().st_blocks) * 512 for path in at.rglob("*")) for at in (clean, whole))
    most -= (most - least) // 10  # some of it is never there at one time
    return [round(least + (most - least) * (number + 0.5) / count) for number in range(count)]


def road(clone: Path, at: int = 0, after: float | None = None) -> tuple[int, str]:
    """Goes the road, until a write or for so many seconds; returns its status, and the stage in which it ended."""
    surroundings = environment(clone, at)
    with (clone.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(["dvc", "repro"], cwd=clone, env=surroundings, stdout=log, stderr=log)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            for one in processes(surroundings["KILLS_COUNTER"]):
                one.kill()
            process.wait()
    return process.returncode, interrupted(clone.with_suffix(".log").read_text(), process.returncode)


def again(clone: Path, expected: Left) -> list[str]:
    """Goes the road once more, as ``make repro`` does; returns what is wrong then."""
    done = subprocess.run(
        ROAD, cwd=clone, env=environment(clone, at=0), shell=True, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [f"exit status {done.returncode}: {(done.stdout + done.stderr).strip()[-1000:]}"]
    found = left(clone)
    wrong = list(found.wrong)
    if found.lock != expected.lock:
        wrong.append("dvc.lock differs")
    differing = {file for file in found.files | expected.files if found.files.get(file) != expected.files.get(file)}
    return [*wrong, *(f"{file} differs" for file in sorted(differing))]


def interrupted(said: str, status: int) -> str:
    """Returns the stage at which a road ended, by what DVC said; ``dvc`` where it was between two, or ended."""
    running = [line.split("'")[1].partition("@")[0] for line in said.splitlines() if line.startswith("Running stage '")]
    return running[-1] if running and status else "dvc"


def left(clone: Path) -> Left:
    """Looks at what a road left; waits for who still ships to MLflow."""
    counter, stop = str(clone.with_suffix(".hooks") / "writes"), time.monotonic() + 30
    while (running := processes(counter)) and time.monotonic() < stop:
        time.sleep(0.1)
    wrong = [f"process {one.pid} still runs" for one in running]
    data = clone / "data"
    files = [file for file in sorted(data.rglob("*")) if file.is_file()]
    wrong += [f"{file.relative_to(clone)} is left" for file in files if "partial" in file.name or file.suffix == ".npz"]
    wrong += [f"{file.relative_to(clone)} waits" for file in data.glob("runs/*.jsonl")]
    status = subprocess.run(
        [str(Path(sys.executable).with_name("dvc")), "status", "--quiet"], cwd=clone, check=False, capture_output=True
    )
    wrong += ["dvc status is not clean"] if status.returncode else []
    [name] = YAML(typ="safe").load(clone / "params.yaml")["register"]
    try:
        client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
        versions = client.search_model_versions(f"name = '{name}'")
        champion = str(client.get_model_version_by_alias(name, "champion").version)
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    except MlflowException as error:
        wrong.append(f"MLflow: {error}")
    else:
        statuses = sorted(run.info.status for run in runs)
        wrong += [f"{len(versions)} versions, champion {champion}"] if (len(versions), champion) != (1, "1") else []
        wrong += [f"runs are {statuses}"] if "FINISHED" not in statuses or "RUNNING" in statuses else []
    known = ("measured.js", ".gitignore", "journal.jsonl")  # what differs each time, or is DVC's own
    equal = {
        file.relative_to(clone).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name not in known and ".cache" not in file.parts and "runs" not in file.parts
    }
    return Left((clone / "dvc.lock").read_text(), equal, tuple(wrong))


def processes(counter: str) -> list[psutil.Process]:
    """Returns the processes of a road that are there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("KILLS_COUNTER") == counter and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


if __name__ == "__main__":
    main()
