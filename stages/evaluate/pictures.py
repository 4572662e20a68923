"""The pictures of an evaluation."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter


def draw_confusion(table: pd.DataFrame, title: str) -> Figure:
    """Draws a confusion table, coloured by the share of its row, with the counts written in where they fit."""
    counts, n = table.to_numpy(), len(table)
    side = max(4.0, min(14.0, 1.5 + 0.45 * n))  # inches
    figure = Figure((side, side), dpi=110, layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="actual", title=title)
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n), table.columns, rotation=45 if n > 10 else 0)
    axes.set_yticks(range(n), table.index)
    if n <= 30:
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = counts[row, column] > counts[row].sum() / 2
            axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
    return figure


def draw_curves(history: pd.DataFrame, title: str) -> Figure:
    """Draws loss and accuracy over the epochs, for training and validation; columns as in history.csv."""
    figure = Figure((5.5, 5.5), dpi=110, layout="constrained")  # one above the other: narrow screens
    figure.suptitle(title)
    for axes, name in zip(figure.subplots(2, 1, sharex=True), ("loss", "accuracy"), strict=True):
        axes.plot(history["epoch"], history[name], marker=".", label="training")
        axes.plot(history["epoch"], history[f"val_{name}"], marker=".", label="validation")
        axes.set(ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set(xlabel="epoch")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return figure


def draw_calibration(curves: dict[str, pd.DataFrame], title: str) -> Figure:
    """Draws accuracy over confidence, and how many examples are so certain; see ``calibration.reliability``.

    Source: Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    figure = Figure((5, 5.5), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for name, table in curves.items():
        upper.plot(table["confidence"], table["accuracy"], marker="o", markersize=4, label=name)
        lower.plot(table["confidence"], table["examples"], marker="o", markersize=4)
    upper.set(ylabel="accuracy", title=title, xlim=(0, 1.02), ylim=(0, 1.02))
    upper.legend(loc="upper left")
    lower.set(xlabel="confidence", ylabel="examples", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


def draw_receptive_fields(picture: np.ndarray, fields: dict[str, list[tuple[int, int]]], title: str) -> Figure:
    """Draws on a picture what the middle unit of each layer sees; of layers that see the same, the first is named.

    Args:
        picture: uint8, (height, width, channels).
        fields: layer -> its first and last row, and its first and last column; they may lie beyond the edge.
        title: above all.
    """
    height, width, channels = picture.shape
    figure = Figure((7, 5.2), dpi=110, layout="constrained")
    axes = figure.add_subplot(title=f"{title}: what the middle unit of a layer sees")
    axes.imshow(picture[..., 0] if channels == 1 else picture, cmap="gray" if channels == 1 else None, alpha=0.6)
    named: dict[tuple, str] = {}
    for layer, edges in fields.items():
        named.setdefault(tuple(edges), layer)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(named)))
    for ((rows, columns), layer), colour in zip(named.items(), colours, strict=True):
        size = (columns[1] - columns[0] + 1, rows[1] - rows[0] + 1)
        label = f"{layer}: {size[1]} x {size[0]}"
        corner = (columns[0] - 0.5, rows[0] - 0.5)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.5, label=label))
    margin = 0.1 * max(height, width)
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), xlabel="pixels", ylabel="pixels")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), ncols=1 + len(named) // 26)
    return figure


def draw_attention(looked: list[tuple[list[str], list[str], np.ndarray]], title: str) -> Figure:
    """Draws where the tokens of translations looked: one field per translation, a row per token, a column per source's.

    Args:
        looked: source tokens, translation's tokens and weights (translation's, source's) of each.
        title: above all.

    Source: Bahdanau et al. 2014, arXiv:1409.0473, figure 3.
    """
    sizes = [0.28 * len(source) + 1.6 for source, _, _ in looked]  # inches
    height = 0.28 * max(len(tokens) for _, tokens, _ in looked) + 2.0
    figure = Figure((min(30.0, sum(sizes)), min(20.0, height)), dpi=110, layout="constrained")
    figure.suptitle(title)
    for axes, (source, tokens, weights) in zip(
        np.atleast_1d(figure.subplots(1, len(looked), width_ratios=sizes)), looked, strict=True
    ):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        # A token may hold a sign that has a meaning in titles and labels.
        axes.set_xticks(range(len(source)), [token.replace("$", r"\$") for token in source], rotation=90)
        axes.set_yticks(range(len(tokens)), [token.replace("$", r"\$") for token in tokens])
        axes.tick_params(labelsize=8)
    return figure
