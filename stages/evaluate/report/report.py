"""Writes data/evaluate/<dataset>/<model>/report.html: what the model can do, what it gets wrong, and what it costs.

The page is one file without network or script, made of what the stage has written already and of what train wrote; a
plot or a table of which nothing is said here stands at its end, under its own name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from convoy import kinds
from convoy.data.shards import Shards, spread
from convoy.files import read_json
from convoy.model import scores
from convoy.pages.page import later, many, measured_js, picture, template, uri, words
from convoy.tracking import outbox

# In the order of the page: the name that plots/<name>.png and tables/<name>.csv have -> title, and what is to be seen.
SECTIONS = {
    "curves": ("Learning curves", "Loss and score after each epoch. Where the curve of the validation split turns away "
               "from that of the training, the model begins to learn by heart."),
    "classes": ("Scores of each class", "Precision: the part that is right of what was given this class. Recall: the "
                "part of the class that was found. F1: their harmonic mean."),
    "confusion": ("Confusion", "What an example is (row), and what the model takes it for (column); the colour is the "
                  "share of the row."),
    "errors": ("Most certain errors", "Wrong answers, the most certain first: some of them have a wrong label, the "
               "others show what the model does not see."),
    "samples": ("Translations", "Evenly spaced from the worst to the best by chrF, the likeness of their character "
                "sequences, of 100."),
    "attention": ("Attention", "Where each word of a translation (row) looked in its source (column): of a bad, a "
                  "usual and the best one."),
    "calibration": ("Calibration", "Whether 80 % certain is right in 80 of 100 cases; below the dashed line the model "
                    "is too certain. The temperature was fitted on the validation split."),
    "slices": ("Parts of the test split", "The accuracy on each class, on thirds of the examples by their size, and on "
               "each source, with its 95 % interval: what is low, is to be gained. Of translations: the share that is "
               "equal to its reference."),
    "gradcam": ("Where it looked", "Where the evidence for the answer lies (Grad-CAM), of right answers and errors."),
    "ngrams": ("Phrases that decide", "The n-grams that did most for each class, and what they add to its score beyond "
               "what they add to the others."),
    "shifts": ("Elsewhere", "How many answers are right, and how many stay, when what is shown moves."),
    "corruptions": ("Damaged examples", "How many answers are right when the examples get worse in known ways."),
    "filters": ("Filters", "Of the first layer, each on its own scale; grey is 0."),
    "activations": ("Activation maps", "An example, and what layers on the way up make of it."),
    "receptive_fields": ("Receptive fields", "How much of the input a unit of each layer sees."),
}  # fmt: skip
WITHOUT = {"accuracy": "always the most common class", "bleu": "the source as it is"}  # what the baseline does
# Columns of tables that are no numbers, whatever they hold: a class may be called 001, and any of them NA. The first
# column says what a row is about.
TEXTS = dict.fromkeys((0, "path", "label", "predicted", "text", "source", "target", "value", "ngram"), str)

# Caps that keep the page small; what it leaves out stands in the tables beside it.
SAMPLES, CONFUSED = 20, 12
TOOK = ("seconds", "examples_per_second", "validation_examples_per_second", "memory")  # of outbox.measured
OPEN, ROWS, COLUMNS = 12, 200, 16  # rows above which a table is folded, and cut; columns above which it is left out
EDGE = 96  # pixels, height of a picture


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of plots/: its address, which holds it, and its size in pixels."""

    src: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; what it does not have is None.

    Attributes:
        name: as in SECTIONS, or that of a file.
        title: above it.
        said: what is to be seen.
        plot: from plots/.
        table: up to ROWS rows of it.
        rows: of the whole table.
        file: that has the whole table.
    """

    name: str
    title: str
    said: str
    plot: Plot | None
    table: pd.DataFrame | None
    rows: int
    file: str


def write(target: Path, trained: Path, test: Shards) -> None:
    """Writes ``target``/report.html, equal bytes for equal files, and beside it measured.js.

    Args:
        target: what evaluate has written: metrics.json, predictions.parquet, tables/ and plots/.
        trained: what train has written.
        test: the examples that were predicted.
    """
    facts, takes, metrics = (
        read_json(file) for file in (trained / "run.json", trained / "input.json", target / "metrics.json")
    )
    page = template(Path(__file__).with_name("report.html.jinja")).render(
        facts=facts,
        classes=len(takes["classes"]),
        noun=kinds.get(takes["kind"]).noun,
        many=many,
        tiles=_tiles(metrics, facts, trained),
        metrics={name: value for name, value in metrics.items() if name != "metric"},
        sections=_sections(target, trained),
        errors=_errors(target, takes, test),
        samples=_samples(target),
        confused=_confused(target),
        folded=OPEN,
        number=number,
        cell=cell,
    )
    (target / "report.html").write_bytes(page.encode())
    (target / "measured.js").write_text(measured_js(facts, outbox.measured(facts)))


def number(value: Any) -> str:
    """Returns a number for people: 1,234, 0.9812 or 1.2e-05; of a list its items, anything else as it is."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def cell(value: Any) -> str:
    """Returns a value of a table, where numbers stand below one another: 0.900, not 0.9 under 0.875."""
    return f"{value:.3f}" if isinstance(value, float) and (value == 0 or 1e-3 <= abs(value) < 1e3) else number(value)


def _tiles(metrics: dict[str, Any], facts: dict[str, Any], trained: Path) -> list[tuple[str, str, str]]:
    """Returns name, value and explanation of what is to be seen first."""
    name = metrics["metric"]
    value, low, high = scores.with_interval(metrics)
    val, baseline = (scores.shown(name, metrics[key]) for key in (f"val_{name}", "baseline"))
    tiles = [
        (f"test {name}", value, f"{low} to {high} (95 % interval), {many(metrics['examples'], 'example')}"),
        ("without a model", baseline, WITHOUT[name]),
        (f"validation {name}", val, "by which the best model is chosen"),
    ]
    if "ece" in metrics:
        note = f"{metrics['ece_scaled']:.3f} at temperature {metrics['temperature']:.2f}"
        tiles.append(("calibration error", f"{metrics['ece']:.3f}", note))
    took = {key: later(key, facts) for key in TOOK}
    size = (trained / "model.keras").stat().st_size / 1e6
    return [
        *tiles,
        ("model", f"{size:.2g} MB" if size < 10 else f"{size:,.0f} MB", many(facts["parameters"], "parameter")),
        ("training", took["seconds"] + " s", f"{many(facts['epochs'], 'epoch')}, on {number(facts['devices'])}"),
        (
            "speed",
            took["examples_per_second"] + "/s",
            "examples in training; " + took["validation_examples_per_second"] + "/s in validation",
        ),
        ("memory", took["memory"] + " MiB", "at most, in training"),
    ]


def _sections(target: Path, trained: Path) -> list[Section]:
    """Returns the parts that have a plot or a table, in the order of SECTIONS, then all others."""
    plots = {file.stem: file for file in sorted(target.glob("plots/*.png"))}
    tables = {file.stem: file for file in sorted(target.glob("tables/*.csv"))} | {"curves": trained / "history.csv"}
    found = []
    for name in dict.fromkeys([*SECTIONS, *plots, *tables]):
        if name not in plots and name not in tables:
            continue
        title, said = SECTIONS.get(name, (words(name).capitalize(), ""))
        plot = table = None
        if name in plots:
            with Image.open(plots[name]) as image:
                plot = Plot(uri(plots[name].read_bytes(), "png"), *image.size)
        rows = 0
        if name in tables and name not in ("confusion", "errors", "samples"):  # the page says these otherwise
            whole = _read(tables[name])
            rows = len(whole)
            table = whole.head(ROWS) if len(whole.columns) <= COLUMNS else None
        file = "history.csv" if name == "curves" else f"tables/{name}.csv"
        found.append(Section(name, title, said, plot, table, rows, file))
    return found


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, keep_default_na=False, converters=TEXTS)


def _errors(target: Path, takes: dict[str, Any], test: Shards) -> dict[str, Any]:
    """Returns the most certain errors, each with its picture if it is one, and how many answers are wrong."""
    file = target / "tables/errors.csv"
    if not file.exists():
        return {}
    found = _read(file).head(kinds.get(takes["kind"]).errors).to_dict("records")
    whole = pd.read_parquet(target / "predictions.parquet", columns=["path", "correct"])
    if "array" in takes:
        places = pd.Index(whole["path"]).get_indexer([error["path"] for error in found])
        for error, pixels in zip(found, test.take(takes["array"], places), strict=True):
            error["src"], error["width"], error["height"], error["enlarged"] = picture(pixels, EDGE)
    return {"rows": found, "count": int((~whole["correct"]).sum())}


def _samples(target: Path) -> list[dict[str, Any]]:
    file = target / "tables/samples.csv"
    if not file.exists():
        return []
    table = _read(file)
    return table.iloc[spread(len(table), SAMPLES)].to_dict("records")


def _confused(target: Path) -> list[tuple[str, str, int]]:
    """Returns the most frequent confusions: what it was, what it was taken for, and how often."""
    file = target / "tables/confusion.csv"
    if not file.exists():
        return []
    table = pd.read_csv(file, keep_default_na=False, converters={0: str}, index_col=0)  # columns are classes here
    counts = table.to_numpy(copy=True)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:CONFUSED]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [(table.index[row], table.columns[column], int(counts[row, column]))
            for row, column in pairs if counts[row, column]]  # fmt: skip
