"""The table at the end of a run: every model, what it scored, whether it ran, and who is champion."""

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from convoy import journal, params
from convoy.checksums import sha256
from convoy.model.scores import shown
from convoy.tracking import outbox, registry


def ran_since(since: int) -> dict[str, dict]:
    """Returns the last journal entry of every stage that started at or after ``since``, in Unix seconds."""
    entries = journal.entries()
    return {entry["stage"]: entry for entry in entries if datetime.fromisoformat(entry["started"]).timestamp() >= since}


def show(since: int | None, targets: Sequence[str] = ()) -> None:
    """Prints the table, and under it what ran and how to look further.

    Args:
        since: start of the run that ends now, in Unix seconds; None leaves out what ran.
        targets: stages that the run was asked for; by default all.
    """
    console = Console(width=None if Console().is_terminal else 120)
    ran = {} if since is None else ran_since(since)
    for dataset in params.load()["ingest"]:
        console.print(_table(dataset, ran, since is not None))
        decision = _read(Path("data/register", dataset, "decision.json"))
        if decision:
            verdict = "promoted" if decision["promoted"] else "not promoted"
            console.print(
                f"version {decision['version']} ({decision['model']}) {verdict}: {decision['reason']}", soft_wrap=True
            )
            page = Path("data/register", dataset, "comparison.html")  # a former version wrote none
            console.print(f"side by side: {page}\n" if page.exists() else "", highlight=False, soft_wrap=True)
            if registry.champion(dataset) is None and decision["champion"]:
                console.print(
                    f"warning: the registry in use has no champion of {dataset}; was mlflow.db deleted? To register "
                    f"again: dvc repro --force --single-item register@{dataset}\n",
                    soft_wrap=True,
                )
    if since is not None:
        sections = params.load()
        stages = sum(len(sections[params.section_of(stage)]) for stage in params.STAGES)
        if ran:
            console.print(
                f"{len(ran)} of {stages} stages ran, in {time.time() - since:.0f} s: {', '.join(ran)}.",
                highlight=False,
                soft_wrap=True,
            )
        elif targets:
            console.print(
                f"Nothing to do: up to date are {', '.join(targets)}, and what they need.",
                highlight=False,
                soft_wrap=True,
            )
        else:
            console.print(f"Nothing to do: all {stages} stages are up to date.", highlight=False)
    console.print("Curves, pictures and the registry: convoy ui", highlight=False)


def _table(dataset: str, ran: dict[str, dict], with_state: bool) -> Table:
    holder = registry.champion(dataset)
    table = Table(title=dataset, title_justify="left", box=box.SIMPLE_HEAD)
    rows = {model: _facts(dataset, model) for model in params.models(dataset)}
    metric = next((metrics["metric"] for _, metrics in rows.values() if metrics), "accuracy")
    for heading in ("model", "parameters", f"test {metric}", "95 % interval", "validation", "seconds"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    if with_state:
        table.add_column("state")
    table.add_column("registry")
    for model, (facts, metrics) in rows.items():
        state = ["ran" if f"train@{model}" in ran else "cached" if facts else "not run"] if with_state else []
        if not facts or not metrics:
            table.add_row(model, *["-"] * 5, *state, "")
            continue
        digest = sha256(Path("data/train", dataset, model, "model.keras"))
        current = holder is not None and holder.tags.get("model_sha256") == digest
        table.add_row(
            model,
            f"{metrics['parameters']:,}",
            shown(metric, metrics[metric]),
            " - ".join(shown(metric, metrics[f"{metric}_{end}"], 1) for end in ("low", "high")),
            shown(metric, metrics[f"val_{metric}"]),
            f"{took['seconds']:.0f}" if (took := outbox.measured(facts)) else "-",
            *state,
            f"champion, version {holder.version}" if current else "",
        )
    return table


def _facts(dataset: str, model: str) -> tuple[dict | None, dict | None]:
    """Returns run.json and metrics.json; not one that a former version wrote, which does not name its metric."""
    metrics = _read(Path("data/evaluate", dataset, model, "metrics.json"))
    return _read(Path("data/train", dataset, model, "run.json")), metrics if metrics and "metric" in metrics else None


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None
