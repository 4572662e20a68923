"""The flow beside DVC: five trainings on two slots, twelve stages at once, and what a Prefect server that goes costs.

Usage: ``python benchmarks/flows.py [slots|storm|away]``; fifteen minutes on 2 cores. Stages sleep, so that
orchestration is what is measured. Prints Markdown.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

import psutil
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.soak import server
from flows.session import free_port

ROOT = Path(__file__).parent.parent
SLEEP = 20.0
# The command without a check of params.yaml, and with slots of its own: nobody else's training counts.
FLOW = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from flows import cli, pipeline
from flows.run import devices
from flows.show import results
from convoy import params
from convoy.tracking import runs
from stages import check
check.check = runs.end_abandoned = lambda: None
results.show = lambda since: None
params.load = lambda: {{"train": {{}}}}
devices.tempfile.gettempdir = os.getcwd
sys.exit(cli.main(["run", *sys.argv[1:]]))
"""


def checkout(folder: Path, stages: int, seconds: float) -> None:
    """Makes a checkout of so many stages ``train@N`` that sleep."""
    (folder / "data").mkdir(parents=True)
    graph = {
        "train": {
            "foreach": [str(number) for number in range(stages)],
            "do": {"cmd": f"sleep {seconds} && echo ${{item}} > out-${{item}}", "outs": ["out-${item}"]},
        }
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": graph}))
    (folder / "flow.py").write_text(FLOW)
    dvc(folder, "init", "--no-scm", "-q")


def dvc(folder: Path, *words: str) -> None:
    """Runs DVC in ``folder``."""
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def flow(folder: Path, slots: int, **variables: str) -> tuple[float, float, str]:
    """Runs the flow; returns seconds of the whole command, seconds of its stages, and what it printed if it failed."""
    begin = time.time()
    words = [sys.executable, "flow.py", "--slots", str(slots)]
    env = os.environ | {"PREFECT_HOME": str(folder / "prefect")} | variables
    done = subprocess.run(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.time() - begin
    if done.returncode:
        return seconds, 0.0, done.stdout
    first = next(line for line in done.stdout.splitlines() if "Beginning flow run" in line)
    started = datetime.combine(datetime.now(), datetime.strptime(first.split(" ")[0], "%H:%M:%S.%f").time())
    return seconds, max(path.stat().st_mtime for path in folder.glob("out-*")) - started.timestamp(), ""


def slots() -> None:
    """Five trainings on two slots against ``dvc repro``."""
    with tempfile.TemporaryDirectory() as scratch:
        serial, parallel = Path(scratch, "serial"), Path(scratch, "parallel")
        checkout(serial, 5, SLEEP)
        checkout(parallel, 5, SLEEP)
        begin = time.time()
        dvc(serial, "repro")
        alone = time.time() - begin
        whole, stages, failed = flow(parallel, 2)
        assert not failed, failed
        locks = [YAML(typ="safe").load(folder / "dvc.lock") for folder in (serial, parallel)]
    print("| dvc repro, s | flow on 2 slots, s | its stages, s | ideal, s | of the ideal | per stage, s | dvc.lock |")
    print("|---|---|---|---|---|---|---|")
    ideal = 3 * SLEEP
    print(
        f"| {alone:.1f} | {whole:.1f} | {stages:.1f} | {ideal:.0f} | {ideal / stages:.2f} ({ideal / whole:.2f} of all) "
        f"| {(stages - ideal) / 3:.2f} | {'equal' if locks[0] == locks[1] else 'DIFFERS'} |\n"
    )


def storm(rounds: int = 20, stages: int = 12) -> None:
    """Twelve stages at once, again and again."""
    failures = lost = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "checkout")
            checkout(folder, stages, 0.5)
            failures += bool(flow(folder, stages)[2])
            lost += stages - len(YAML(typ="safe").load(folder / "dvc.lock")["stages"])
            shutil.rmtree(folder / "prefect", ignore_errors=True)
    print(f"{rounds} times {stages} stages at once: {failures} failures, {lost} entries of dvc.lock lost\n")


def away() -> None:
    """Five trainings on two slots: with a server, without the one that is set, with one that is killed meanwhile."""
    print("| Prefect server | s | stages in dvc.lock |\n|---|---|---|", flush=True)
    for what in ("there", "never there", "killed in the middle"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "checkout")
            checkout(folder, 5, SLEEP)
            address = f"http://127.0.0.1:{free_port()}/api"
            own = {"PREFECT_HOME": str(Path(scratch, "home")), "PREFECT_API_URL": address}
            with server(folder, os.environ | own) as process:
                if what == "never there":
                    process.kill()
                elif what == "killed in the middle":
                    threading.Thread(target=kill, args=(folder, process), daemon=True).start()
                whole, _, failed = flow(folder, 2, PREFECT_API_URL=address)
            done = 0 if failed else len(YAML(typ="safe").load(folder / "dvc.lock")["stages"])
        print(f"| {what} | {whole:.1f} | {done} |", flush=True)


def kill(folder: Path, process: psutil.Process) -> None:
    """Kills a process when two stages of a checkout are done, and others are under way."""
    while len(list(folder.glob("out-*"))) < 2:
        time.sleep(0.5)
    time.sleep(SLEEP / 2)
    process.kill()


if __name__ == "__main__":
    for word in sys.argv[1:] or ("slots", "storm", "away"):
        {"slots": slots, "storm": storm, "away": away}[word]()
