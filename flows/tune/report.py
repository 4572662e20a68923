"""Writes data/tune/<model>/report.html: what a search tried, what mattered, and what it found.

It is one file without network or script. Its pictures are ours: those of ``optuna.visualization.matplotlib`` leave out
where pruned trials ended, the entry's own values and the best trial, name each of all trials in a legend, and let the
labels of parallel axes overlap.
"""

import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from convoy.model import scores
from convoy.pages.page import many, share, template, uri
from flows.tune.study import TrialResult
from stages.search_space import Choice, Interval, Search

AXES = 8  # of the parallel coordinates: the values that explain most
OPEN = 12  # rows of a table, above which it is folded
GREY = "0.75"


def write(
    page: Path,
    search: Search,
    trials: list[TrialResult],
    best: TrialResult,
    own: TrialResult,
    importances: Mapping[str, float],
    written: bool,
    examples: int,
) -> None:
    """Writes the page.

    Args:
        page: the file.
        search: what was searched.
        trials: the trials, oldest first.
        best: the best of them.
        own: that with the values of the entry.
        importances: name of a value -> share of the differences that it explains; {} if nothing is known.
        written: params.yaml has the values of ``best`` now.
        examples: of the validation split.
    """
    order = sorted(search.ranges, key=lambda name: -importances.get(name, 0))
    figures = {
        "Each epoch of each trial": draw_curves(search, trials, best, own),
        "Trial by trial": draw_progress(search, trials, own),
        "Values and outcome": draw_parallel(search, trials, best, order[:AXES]),
    }
    ranked = sorted(trials, key=lambda one: (one.value is None, search.signed(one.value or 0), one.number))
    text = template(Path(__file__).with_name("report.html.jinja")).render(
        search=search,
        trials=ranked,
        best=best,
        own=own,
        order=order,
        importances=importances,
        written=written,
        figures=[(title, *_embedded(figure)) for title, figure in figures.items()],
        error=None if search.smaller else math.sqrt(best.value * (1 - best.value) / examples),
        examples=examples,
        epochs=sum(len(one.curve) for one in trials),
        whole=search.train["epochs"] * sum(one.same is None and one.state != "failed" for one in trials),
        seconds=sum(one.seconds for one in trials),
        count={state: sum(one.state == state for one in trials) for state in ("complete", "pruned", "failed")},
        score=lambda value: format_value(search, value),
        say=lambda value: value if isinstance(value, str) else json.dumps(value),
        many=many,
        share=share,
        folded=OPEN,
    )
    page.write_bytes(text.encode())


def format_value(search: Search, value: float) -> str:
    """Returns a value of the objective for people."""
    return f"{value:.4f}" if search.smaller else scores.shown("accuracy", value)


def draw_curves(search: Search, trials: list[TrialResult], best: TrialResult, own: TrialResult) -> Figure:
    """Draws the objective after each epoch: of all trials in grey, of the best orange, of the entry's values blue."""
    figure, axes = _figure(search, "epoch")
    for one in trials:
        if one.curve and one.number not in (best.number, own.number):
            axes.plot(
                *zip(*one.curve.items(), strict=True), color=GREY, linewidth=0.8, marker="." * (len(one.curve) == 1)
            )
    axes.plot(*zip(*own.curve.items(), strict=True), ".-", color="C0", label="the entry's values")
    if best.number != own.number:
        axes.plot(*zip(*best.curve.items(), strict=True), ".-", color="C1", label=f"trial {best.number}, the best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def draw_progress(search: Search, trials: list[TrialResult], own: TrialResult) -> Figure:
    """Draws the outcome of each trial, where it ended early as a cross, and the best so far."""
    figure, axes = _figure(search, "trial")
    line, numbers, choose = [], [], min if search.smaller else max
    for one in trials:
        if one.state == "pruned" and one.curve:
            axes.plot(one.number, one.curve[max(one.curve)], "x", color=GREY)
        elif one.value is not None:
            axes.plot(one.number, one.value, "o", color="C0", markersize=4)
            line.append(choose([one.value, *line[-1:]]))
            numbers.append(one.number)
    axes.step(numbers, line, where="post", color="C1", label="best so far")
    axes.axhline(own.value, color="C0", linestyle=":", label="the entry's values")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def draw_parallel(search: Search, trials: list[TrialResult], best: TrialResult, names: list[str]) -> Figure:
    """Draws a line for each complete trial through its values, an axis for each, to its outcome; light is good."""
    whole = [one for one in trials if one.value is not None and one.same is None]
    low, high = min(one.value for one in whole), max(one.value for one in whole)
    scale = Normalize(low, high) if high > low else Normalize(low - 1, low)
    figure = Figure((1.5 * (len(names) + 2), 3.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for one in sorted(whole, key=lambda one: -search.signed(one.value)):
        heights = [_height(search.ranges[name], one.values[name]) for name in names]
        height = float(scale(one.value))
        colour = "C1" if one is best else colormaps["viridis"](1 - height if search.smaller else height)
        axes.plot([*heights, height], color=colour, linewidth=2.2 if one is best else 0.9)
    for place, name in enumerate(names):
        axes.axvline(place, color="0.4", linewidth=0.8)
        for height, label in _ticks(search.ranges[name]):
            paper = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}
            axes.annotate(
                label, (place, height), (3, 0), textcoords="offset points", fontsize=7, va="center", bbox=paper
            )
    for height, value in ((0, low), (1, high)):
        axes.annotate(
            format_value(search, value),
            (len(names), height),
            (4, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
        )
    axes.axvline(len(names), color="0.4", linewidth=0.8)
    axes.set_xticks(range(len(names) + 1), [*names, search.objective], fontsize=8)
    axes.set_xlim(-0.1, len(names) + 0.6)
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _figure(search: Search, below: str) -> tuple[Figure, Any]:
    figure = Figure((5.2, 3.6), dpi=160, layout="constrained")
    axes = figure.add_subplot(xlabel=below, ylabel=search.objective)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(search, value)))
    axes.grid(alpha=0.3)
    return figure, axes


def _height(one: Interval | Choice, value: Any) -> float:
    """Returns where a value stands on its axis, from 0 to 1."""
    if isinstance(one, Choice):
        return one.labels.index(json.dumps(value)) / (len(one.labels) - 1)
    if one.log:
        return math.log(value / one.low) / math.log(one.high / one.low)
    return (value - one.low) / (one.high - one.low)


def _ticks(one: Interval | Choice) -> list[tuple[float, str]]:
    if isinstance(one, Choice):
        return [(place / (len(one.labels) - 1), label[:16]) for place, label in enumerate(one.labels)]
    return [(0, f"{one.low:g}"), (1, f"{one.high:g}")]


def _embedded(figure: Figure) -> tuple[str, int, int]:
    """Returns a figure as an address that holds it, and its width and height in CSS pixels."""
    content = BytesIO()
    figure.savefig(content, format="png")
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    return uri(content.getvalue(), "png"), width, height
