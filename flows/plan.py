"""What a pipeline would run, and why: ``python -m flows plan``."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from flows import board, devices, graph, journal

REASONS = 3  # named of each stage; the others are counted


def show(targets: Sequence[str], slots: int | None) -> None:
    """Prints every stage with what would become of it.

    Args:
        targets: as of ``pipeline``.
        slots: likewise.
    """
    nodes = graph.read(targets)
    changes = graph.changes(list(nodes))
    last, usual = memory(), board.usual_seconds()
    places = devices.found(slots)
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


def memory() -> dict[str, int]:
    """Returns the peak memory, in MiB, of the last run of every stage that ended well."""
    ended = [entry for entry in journal.entries() if entry["status"] == 0]
    return {entry["stage"]: entry["memory"] for entry in ended if "memory" in entry}  # older lines have none


def _listed(reasons: list[str]) -> str:
    rest = f" and {len(reasons) - REASONS} more" if len(reasons) > REASONS else ""
    return ", ".join(reasons[:REASONS]) + rest
