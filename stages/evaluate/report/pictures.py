"""The pictures of an evaluation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from convoy.data.shards import spread


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


# What explains a network. Pictures are put together as one array: many axes in a figure would take seconds.


def draw_filters(filters: np.ndarray, title: str) -> Figure:
    """Draws the filters of a first layer, each on its own scale, in which grey is 0.

    Args:
        filters: float, (maps, height, width, channels) of 1 or 3 channels; the first 64 are drawn.
        title: above all.
    """
    drawn = filters[:64]
    largest = np.abs(drawn).max(axis=(1, 2, 3), keepdims=True)
    cells = (drawn / np.where(largest > 0, largest, 1) + 1) / 2
    cells = np.broadcast_to(cells, (*cells.shape[:3], 3)).repeat(8, axis=1).repeat(8, axis=2)  # sharp edges
    some = "" if len(drawn) == len(filters) else f"the first {len(drawn)} of "
    size = " x ".join(map(str, filters.shape[1:]))
    return _sheet(cells, [""] * len(cells), 16, 8.0, f"{title}: {some}{len(filters)} filters, {size}")


def draw_activations(picture: np.ndarray, caption: str, found: dict[str, np.ndarray], title: str) -> Figure:
    """Draws a picture, and what layers on the way up made of it: those of their maps that differ most between places.

    Args:
        picture: uint8, (height, width, channels).
        caption: of it.
        found: layer -> float (height, width, maps), each drawn from its smallest to its largest value.
        title: above all.
    """
    side, columns = 64, 10  # pixels of a map, maps of a layer
    first = _resized(_colours(picture), side)
    cells = np.ones((len(found), side, columns * (side + 4), 3))
    for row, maps in zip(cells, found.values(), strict=True):
        scaled = (maps - maps.min()) / (np.ptp(maps) or 1)
        for place, number in enumerate(np.argsort(-maps.std(axis=(0, 1)), kind="stable")[:columns]):
            start = place * (side + 4)
            row[:, start : start + side] = colormaps["viridis"](_resized(scaled[..., number], side))[..., :3]
    top = np.ones_like(cells[:1])
    top[0, :, :side] = first
    captions = [f"{name}: {' x '.join(map(str, maps.shape))}" for name, maps in found.items()]
    return _sheet(np.concatenate([top, cells]), [caption, *captions], 1, 8.0, f"{title}: activation maps")


def draw_gradcam(examples: np.ndarray, heat: np.ndarray, captions: list[str], title: str) -> Figure:
    """Draws pictures, and beside each where the evidence for a class lies.

    Args:
        examples: uint8, (n, height, width, channels).
        heat: float (n, height, width), 0 or more, each drawn from 0 to its own largest.
        captions: of each.
        title: above all.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, figure 1.
    """
    cells = np.concatenate([_colours(examples), _overlaid(examples, heat)], axis=2)
    return _sheet(cells, captions, 5, 11.0, title)


def draw_gradcam_slices(examples: np.ndarray, heat: np.ndarray, captions: list[str], title: str) -> Figure:
    """Draws up to 8 slices of volumes or frames of clips, and below each where the evidence for a class lies.

    Args:
        examples: uint8, (n, depth, height, width, channels).
        heat: float (n, depth, height, width), 0 or more, each drawn from 0 to its own largest.
        captions: of each.
        title: above all.
    """
    some = spread(heat.shape[1], 8)
    cells = np.concatenate([_colours(examples), _overlaid(examples, heat)], axis=2)[:, some]
    cells = np.pad(cells, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1)  # white between slices
    cells = np.concatenate(np.moveaxis(cells, 1, 0), axis=2)  # (n, 2 height, slices * (width + 1), 3)
    captions = [f"{caption}; slices {', '.join(map(str, some))}" for caption in captions]
    return _sheet(cells, captions, 1, 8.0, title)


def _colours(examples: np.ndarray) -> np.ndarray:
    """Returns uint8 values of one or three channels as colours: float 0..1, three channels."""
    return np.broadcast_to(examples / 255, (*examples.shape[:-1], 3))


def _overlaid(examples: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns examples (n, ..., channels) in grey under their heat (n, ...), as colours (n, ..., 3)."""
    largest = heat.max(axis=tuple(range(1, heat.ndim)), keepdims=True)
    heat = heat / np.where(largest > 0, largest, 1)
    over = 0.7 * heat[..., None]  # what is cold stays as it is
    return (1 - over) * _colours(examples).mean(axis=-1, keepdims=True) + over * colormaps["turbo"](heat)[..., :3]


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    """Returns (height, width, ...) as a square of ``side`` pixels, each the value of the nearest."""
    rows, columns = (np.arange(side) * size // side for size in picture.shape[:2])
    return picture[rows][:, columns]


def _sheet(cells: np.ndarray, captions: list[str], columns: int, inches: float, title: str) -> Figure:
    """Draws pictures of one size, (n, height, width, 3), in rows of ``columns``, each below its caption."""
    n, height, width, _ = cells.shape
    columns = min(columns, n)
    across = max(2, width // 24)
    scale = inches / (columns * (width + across))  # inches of a pixel
    lines = max(caption.count("\n") + bool(caption) for caption in captions)
    down = max(across, round((0.06 + 0.13 * lines) / scale))
    sheet = np.ones((-(-n // columns) * (height + down), columns * (width + across), 3))
    figure = Figure((inches, sheet.shape[0] * scale + 0.35), dpi=100)
    size = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1 - 0.35 / size[1]))
    for number, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        row, column = down + number // columns * (height + down), across // 2 + number % columns * (width + across)
        sheet[row : row + height, column : column + width] = cell
        axes.text(column, row - 0.03 / scale, caption, fontsize=8, va="bottom", parse_math=False)
    axes.imshow(sheet, aspect="auto")
    axes.set_axis_off()
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / size[1], va="top")
    return figure


def draw_gradcam_text(texts: list[list[str]], heat: np.ndarray, captions: list[str], title: str) -> Figure:
    """Draws the beginnings of texts, coloured where the evidence for a class lies.

    Args:
        texts: tokens of each, with the spaces that stand between them.
        heat: float (n, time), 0 or more, each drawn from 0 to its own largest, which may lie in the filling after it.
        captions: of each.
        title: above all.
    """
    columns, most = 100, 3  # signs of a line, lines of a text
    across, down = 0.07, 0.18  # inches of a sign and of a line: 7 whole pixels, or the roundings add up along a line
    size = 72 * across / (1233 / 2048)  # points, of a font whose signs are so wide
    lines: list[tuple[str, np.ndarray]] = []
    for text, hot, caption in zip(texts, heat, captions, strict=True):
        signs = _drawable("".join(text))[: columns * most]
        hot = np.repeat(hot[: len(text)], [len(token) for token in text])[: len(signs)] / (hot.max() or 1)
        lines.append((caption.replace("\n", ", "), np.zeros(0)))
        cuts = range(0, len(signs), columns)
        lines += [(signs[cut : cut + columns], hot[cut : cut + columns]) for cut in cuts] + [("", np.zeros(0))]
    colours = np.full((len(lines), columns), np.nan)
    figure = Figure((columns * across + 0.4, len(lines) * down + 0.5), dpi=100)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.2 / width, 0, columns * across / width, 1 - 0.5 / height))
    for row, (line, hot) in enumerate(lines):
        colours[row, : len(hot)] = hot
        font = {"family": "DejaVu Sans Mono"} if len(hot) else {"weight": "bold"}
        axes.text(-0.5, row, _drawable(line), fontsize=size, va="center", parse_math=False, **font)
    axes.imshow(colours, cmap="Reds", vmin=0, vmax=1.6, aspect="auto")  # not to its darkest, for letters to be read
    axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def draw_ngrams(table: pd.DataFrame, title: str) -> Figure:
    """Draws what the n-grams that did most for a class did for it in all: the first 6 of up to 12 classes.

    Args:
        table: that of ``ngrams.ngrams``.
        title: above all.
    """
    best = [rows.head(6) for _, rows in table.groupby("class", sort=False)][:12]
    columns = 2 if len(best) > 2 else 1
    halves = [best[half * -(-len(best) // columns) : (half + 1) * -(-len(best) // columns)] for half in range(columns)]
    lines = max(sum(len(rows) + 1 for rows in half) for half in halves)
    figure = Figure((6.5 * columns, 0.2 * lines + 1.0), dpi=100, layout="constrained")
    figure.suptitle(f"{title}: the n-grams that did most for a class", fontsize=10)
    for axes, half in zip(figure.subplots(1, columns, squeeze=False, sharex=True)[0], halves, strict=True):
        at, labels = 0, []
        for rows in half:
            axes.text(0, at, f" {_drawable(rows['class'].iloc[0])}", weight="bold", va="center", parse_math=False)
            labels.append("")
            places = np.arange(at + 1, at + 1 + len(rows))
            axes.barh(places, rows["total"], color="steelblue")
            for place, one in zip(places, rows.itertuples(), strict=True):
                axes.text(one.total, place, f" {one.sentences}", va="center", fontsize=7)
            labels += [_drawable(text if len(text) <= 44 else text[:43] + "…") for text in rows["ngram"]]
            at += 1 + len(rows)
        axes.set(ylim=(at - 0.4, -0.6), xlabel="score above that of the classes' mean, summed over so many sentences")
        axes.xaxis.label.set_size(8)
        axes.set_yticks(range(at), labels, fontsize=8, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _drawable(text: str) -> str:
    """Returns a text with a square for every sign that the font does not have; Matplotlib would warn of each."""
    known = get_font(findfont("DejaVu Sans Mono")).get_charmap()
    return "".join(" " if sign.isspace() else sign if ord(sign) in known else "□" for sign in text)


def draw_shifts(table: pd.DataFrame, title: str) -> Figure:
    """Draws accuracy, with its interval, and consistency over the distance of a shift; see ``invariance.shifts``."""
    shifts, others = table[table["change"] == "shift"], table[table["change"] != "shift"]
    figure = Figure((5, 3.8), dpi=110, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=f"shift, {'tokens' if len(others) else 'pixels'}")
    axes.plot(shifts["distance"], shifts["accuracy"], marker="o", markersize=4, label="accuracy")
    axes.fill_between(shifts["distance"], shifts["low"], shifts["high"], alpha=0.2)
    axes.plot(shifts["distance"], shifts["consistency"], marker="o", markersize=4, label="answers that stay")
    for one in others.itertuples():
        label = f"{one.change} exchanged: accuracy {one.accuracy:.1%}, {one.consistency:.1%} stay"
        axes.axhline(one.accuracy, color="grey", linestyle="--", label=label)
    _shares(axes)
    return figure


def draw_corruptions(table: pd.DataFrame, title: str) -> Figure:
    """Draws accuracy over the level of each corruption; see ``robustness.corruptions``.

    Source: Hendrycks and Dietterich 2019, arXiv:1903.12261.
    """
    whole = table[table["level"] == 0]
    figure = Figure((5, 3.8), dpi=110, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="level of corruption")
    for name, rows in table[table["level"] > 0].groupby("corruption", sort=False):
        rows = pd.concat([whole, rows])
        axes.plot(rows["level"], rows["accuracy"], marker="o", markersize=4, label=name)
        axes.fill_between(rows["level"], rows["low"], rows["high"], alpha=0.1)
    axes.set_ylabel("accuracy")
    _shares(axes)
    return figure


def _shares(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_explained(examples: Any, heat: np.ndarray, captions: list[str], title: str) -> Figure:
    """Draws the Grad-CAM of predicted classes over tokens (n, time), pictures or volumes, as ``heat`` has axes."""
    draw = {2: draw_gradcam_text, 3: draw_gradcam, 4: draw_gradcam_slices}[heat.ndim]
    return draw(examples, heat, captions, f"{title}: Grad-CAM for the predicted class")


DRAWN: dict[str, Callable[..., Figure]] = {  # plots/<name>.png -> its function
    "activations": draw_activations,
    "attention": draw_attention,
    "calibration": draw_calibration,
    "confusion": draw_confusion,
    "corruptions": draw_corruptions,
    "curves": draw_curves,
    "filters": draw_filters,
    "gradcam": draw_explained,
    "ngrams": draw_ngrams,
    "receptive_fields": draw_receptive_fields,
    "shifts": draw_shifts,
}
