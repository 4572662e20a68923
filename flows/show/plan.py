"""What a pipeline would run, why, and what its trainings would cost: ``convoy plan``."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from convoy import journal
from convoy.files import read_json
from convoy.repo import graph
from convoy.tracking import outbox
from flows.run import devices
from flows.show import live
from stages.train.train import RATES, STEP

REASONS = 3  # named of each stage; the others are counted
START = 10.0  # seconds of a training before its first step and after its last, mostly for imports


def show(targets: Sequence[str], slots: int | None) -> None:
    """Prints every stage with what would become of it.

    Args:
        targets: as in ``pipeline``.
        slots: likewise.
    """
    nodes = graph.read(targets)
    changes = graph.changes(list(nodes))
    last, usual = memory(), live.find_usual_seconds()
    places = devices.find(slots)
    places_named = ", ".join(place.name for place in places[:2]) + (", ..." if len(places) > 2 else "")
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("stage", "would", "because", "device", "seconds", "MiB"):
        table.add_column(heading, justify="right" if heading in ("seconds", "MiB") else "left")
    would: dict[str, str] = {}
    for name, node in nodes.items():
        before = [need for need in node.needs if would[need] != ""]
        if changes[name]:
            would[name], why = "run", _listed(changes[name])
        elif before:
            would[name], why = "run if the data changes", _listed([f"{need} would run" for need in before])
        else:
            would[name], why = "", "up to date"
        table.add_row(
            name,
            would[name],
            why,
            places_named if node.group == "train" and would[name] else "",
            f"{usual[name]:.0f}" if name in usual else "",
            f"{last[name]:,}" if name in last else "",
        )
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    running = [name for name in nodes if would[name]]
    seconds = sum(usual.get(name, 0) for name in running)
    unknown = sum(name not in usual for name in running)
    text = f"{len(running)} of {len(nodes)} stages would run"
    if running:
        text += f", {seconds:.0f} s of work" + (f" and {unknown} that never ran here" if unknown else "")
    console.print(f"{text}; seconds and memory are of the last runs that ended well.", highlight=False)
    if trainings := [nodes[name].entry for name in running if nodes[name].group == "train"]:
        console.print(_costs(costs(trainings), runs()))
        console.print(
            "Operations are of the forward pass of one example, and memory is what the process will need at most; both "
            "are counted from the layers. Seconds follow from the speed of the run that is named.",
            highlight=False,
        )


def memory() -> dict[str, int]:
    """Returns the peak memory, in MiB, of the last run of every stage that ended well."""
    ended = [entry for entry in journal.entries() if entry["status"] == 0]
    return {entry["stage"]: entry["memory"] for entry in ended if "memory" in entry}  # older lines have none


def costs(models: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what trainings would cost, as ``convoy cost`` says it: in a process that has Keras."""
    command = [sys.executable, "-m", "flows", "cost", *models]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {entry["model"]: entry for entry in map(json.loads, done.stdout.splitlines())}
    failed = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return [found.get(model, {"model": model, "unknown": failed}) for model in models]


def runs() -> list[dict[str, Any]]:
    """Returns run.json of every training whose result is here, with what those took that were here too."""
    found = [read_json(path) for path in sorted(Path("data/train").glob("*/*/run.json"))]
    return [facts | outbox.measured(facts) for facts in found]


def speed(cost: Mapping[str, Any], former: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """Returns how many operations per second a training would do, and whose speed that is; None: nobody knows.

    The model's own last run; else the one of its architecture whose examples cost most nearly as much; else ``RATES``.
    Only runs on a device of the same kind count.
    """
    kind = cost["device"].split(":")[0]
    known = [run for run in former if run.get("flops") and run.get("examples_per_second")]
    known = [run for run in known if run["devices"][0].split(":")[0] == kind]
    own = sorted((run for run in known if run["model"] == cost["model"]), key=lambda run: run["finished"], reverse=True)
    alike = [run for run in known if run["architecture"] == cost["architecture"]]
    if chosen := own or sorted(alike, key=lambda run: abs(math.log(run["flops"] / cost["flops"]))):
        nearest = chosen[0]
        return STEP * nearest["flops"] * nearest["examples_per_second"], f"train@{nearest['model']}"
    return RATES.get(kind), f"{RATES[kind]:.0e} operations/s" if kind in RATES else "unknown"


def _costs(found: Sequence[Mapping[str, Any]], former: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("training")
    for heading in ("parameters", "MFLOPs", "examples", "MiB", "epochs", "s/epoch", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("at the speed of")
    for cost in found:
        if "unknown" in cost:
            table.add_row(cost["model"], *[""] * 7, cost["unknown"])
            continue
        rate, whose = speed(cost, former)
        epoch = STEP * cost["flops"] * cost["examples"] / rate if rate else None
        table.add_row(
            cost["model"],
            f"{cost['parameters']:,}",
            f"{cost['flops'] / 1e6:,.1f}",
            f"{cost['examples']:,}",
            f"{cost['memory'] / 2**20:,.0f}",
            str(cost["epochs"]),
            f"{epoch:.1f}" if epoch else "",
            f"{START + epoch * cost['epochs']:.0f}" if epoch else "",
            whose,
        )
    return table


def _listed(reasons: list[str]) -> str:
    rest = f" and {len(reasons) - REASONS} more" if len(reasons) > REASONS else ""
    return ", ".join(reasons[:REASONS]) + rest
