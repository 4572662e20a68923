"""The numbers that the page draws: classes, sizes, and the facts of the examples.

The template draws them. matplotlib was tried and refused: its import takes 0.65 s of a core and a chart 0.1 to 0.2 s
more, where the whole page takes 0.4 s. Its SVG is five times as long and has no dark colours and no counts to point at.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from convoy.data.shards import spread
from stages.ingest.report.values import FEW, VALUES, count_values, extremes

ROWS, ALL_ROWS = 60, 1000  # classes in the chart and in the folded table
BINS = 36
WIDE, HIGH = 420, 150  # of a chart


def compare_classes(counts: Mapping[str, Mapping[str, int]], classes: list[str]) -> dict:
    """Returns the rows of the class chart, in the order of the classes; above ROWS, also all sizes as a curve."""
    longest = {split: max(of.values(), default=0) or 1 for split, of in counts.items()}
    chosen = extremes(counts["train"], ROWS)

    def row(label: str) -> dict:
        cells = [(of[label], 100 * of[label] / longest[split]) for split, of in counts.items()]
        return {"label": label, "cells": cells, "few": counts["train"][label] < FEW}

    result = {"rows": [row(label) for label in classes if label in chosen], "all": [], "curve": None}
    if len(classes) > ROWS:
        sizes = np.sort(np.fromiter(counts["train"].values(), np.int64))[::-1]
        places = spread(len(sizes), 200)
        points = [(WIDE * place / (len(sizes) - 1), HIGH * (1 - sizes[place] / sizes[0])) for place in places]
        result["curve"] = {"points": points, "largest": int(sizes[0]), "smallest": int(sizes[-1])}
        result["all"] = [row(label) for label in classes[:ALL_ROWS]]
    return result


def chart_facts(about: dict, manifest: pd.DataFrame, facts: list[str]) -> dict:
    """Returns what the page draws of the facts: those that never change, a scatter of sizes, bars and histograms."""
    result: dict[str, Any] = {"same": {}, "scatter": None, "bars": [], "histograms": []}
    drawn = set()
    if {"height", "width"} <= set(facts) and manifest["height"].nunique() > 1 < manifest["width"].nunique():
        width, height = manifest["width"].to_numpy(), manifest["height"].to_numpy()
        result["scatter"] = _scatter(width, height, about["options"]["size"])
        drawn = {"height", "width"}
    for name in facts:
        values, different = manifest[name], manifest[name].nunique()
        if different == 1:
            result["same"][name] = values.iloc[0]
        elif name not in drawn and pd.api.types.is_numeric_dtype(values) and different > VALUES:
            result["histograms"].append({"name": name, **_histogram(values.to_numpy())})
        elif name not in drawn:
            counts = count_values(values)
            bars = [(value, int(count), 100 * count / counts.iloc[0]) for value, count in counts[:VALUES].items()]
            result["bars"].append({"name": name, "bars": bars, "rest": len(counts) - len(bars)})
    return result


def _histogram(values: np.ndarray) -> dict:
    """Returns bars (left, top, width, height, what it says), ticks and quantiles; the last bar is the long tail."""
    low, high = int(values.min()), int(values.max())
    near_top = int(np.quantile(values, 0.99))
    top = high if high <= 2 * near_top else near_top
    step = _step(top - low, BINS)
    first = low // step * step
    bins = (top - first) // step + 1
    counts = np.bincount(np.minimum((values.astype(np.int64) - first) // step, bins - 1), minlength=bins)
    wide, bars = WIDE / bins, []
    for place, count in enumerate(counts.tolist()):
        start_, end = first + place * step, first + (place + 1) * step - 1
        name = f"{start_:,} and more" if place == bins - 1 and high > end else f"{start_:,} to {end:,}"
        tall = HIGH * count / counts.max()
        bars.append((place * wide, HIGH - tall, wide - 1, tall, f"{name if step > 1 else f'{start_:,}'}: {count:,}"))
    ticks = [(value, WIDE * (value - first) / (bins * step)) for value in _ticks(first, first + bins * step)]
    quantiles = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).round().astype(int).tolist()
    return {"bars": bars, "ticks": ticks, "quantiles": quantiles, "peak": int(counts.max())}


def _scatter(width: np.ndarray, height: np.ndarray, size: list[int]) -> dict:
    """Returns circles (x, y, radius, what it says) of the sizes, ticks of both axes, and where the stored size is."""
    low = min(width.min(), height.min(), *size[-2:])
    high = max(width.max(), height.max(), *size[-2:])
    logarithmic = high > 10 * low
    scale = np.log if logarithmic else np.asarray
    low, high = (low / 1.3, high * 1.3) if logarithmic else (max(0, low - (high - low) / 10), high + (high - low) / 10)

    def place(value: np.ndarray | float) -> np.ndarray:
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    cells = 48  # per axis: each circle stands for the pictures of about one size
    across, up = (np.minimum(place(values) * cells, cells - 1).astype(int) for values in (width, height))
    found = pd.DataFrame({"across": across, "up": up, "width": width, "height": height}).groupby(["across", "up"])
    table = found.agg(n=("width", "size"), width=("width", "median"), height=("height", "median"))
    side = 300
    circles = [
        (
            side * float(place(row.width)),
            side * (1 - float(place(row.height))),
            1.5 + 8 * math.sqrt(row.n / table["n"].max()),
            f"about {row.width:.0f} x {row.height:.0f}: {row.n:,}",
        )
        for row in table.itertuples()
    ]
    wanted = [m * 10**power for power in range(7) for m in (1, 2, 5)] if logarithmic else _ticks(low, high)
    ticks = [(value, side * float(place(value))) for value in wanted if low <= value <= high]
    stored = side * float(place(size[-1])), side * (1 - float(place(size[-2])))
    return {"side": side, "circles": circles, "ticks": ticks, "stored": stored, "logarithmic": logarithmic}


def _step(span: float, most: int) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, ... that spans ``span`` in up to ``most`` steps."""
    power = 0
    while True:
        for factor in (1, 2, 5):
            if span <= most * factor * 10**power:
                return factor * 10**power
        power += 1


def _ticks(low: float, high: float) -> list[int]:
    step = _step(high - low, 6)
    return list(range(math.ceil(low / step) * step, math.floor(high) + 1, step))
