"""Writes data/register/<dataset>/comparison.html: all models of a data set side by side, who is champion, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from convoy import params
from convoy.checksums import sha256
from convoy.files import read_json
from convoy.model import scores
from convoy.pages.page import later, many, template, uri, words

# Metrics whose numbers are better the smaller they are; of all others, the larger. Parameters and seconds likewise.
SMALLER = ("val_loss", "log_loss", "ece", "ece_scaled")
# What a model has of its own: not the data's, and not a means to another number.
OTHER = ("metric", "baseline", "examples", "parameters", "temperature")
OPEN = 12  # rows of a table, above which it is folded


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the data set.

    Attributes:
        name: the entry of params.yaml.
        metrics: its metrics.json.
        facts: its run.json.
        bytes: of its file.
        champion: it is the registry's.
    """

    name: str
    metrics: dict[str, Any]
    facts: dict[str, Any]
    bytes: int
    champion: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers.

    Attributes:
        title: above it.
        values: of each model, as a number and as it is shown; None: it has none, or the number is filled in later.
        smaller: the smaller the better.
    """

    title: str
    values: list[tuple[float | None, str] | None]
    smaller: bool


def write(target: Path, outcome: dict[str, Any], champion: str | None) -> None:
    """Writes ``target``/comparison.html, and the pictures in it to ``target``/plots.

    Args:
        target: data/register/<dataset>.
        outcome: the content of decision.json.
        champion: SHA-256 of the champion's model.keras.
    """
    dataset = outcome["dataset"]
    models = _models(dataset, champion)
    metric = models[0].metrics["metric"]
    (target / "plots").mkdir(exist_ok=True)
    costs = {"parameters": [model.metrics["parameters"] for model in models],
             "operations per example": [model.facts["flops"] for model in models]}  # fmt: skip
    plots = []
    for name, values in costs.items():
        file = target / f"plots/{name.split()[0]}.png"
        draw_cost(models, name, values).savefig(file)
        plots.append((f"test {metric} and {name}", uri(file.read_bytes(), "png")))
    page = template(Path(__file__).with_name("comparison.html.jinja")).render(
        outcome=outcome,
        metric=metric,
        models=models,
        bars=_bars(models),
        columns=_columns(models),
        plots=plots,
        baseline=scores.shown(metric, models[0].metrics["baseline"]),
        examples=models[0].metrics["examples"],
        score=scores.shown,
        many=many,
        folded=OPEN,
    )
    (target / "comparison.html").write_bytes(page.encode())


def _models(dataset: str, champion: str | None) -> list[Model]:
    """Returns the evaluated models of params.yaml, the best on the validation split first."""
    found = []
    for name in params.models(dataset):
        evaluated, trained = (Path("data", stage, dataset, name) for stage in ("evaluate", "train"))
        if (evaluated / "metrics.json").exists():
            file = trained / "model.keras"
            metrics, facts = read_json(evaluated / "metrics.json"), read_json(trained / "run.json")
            found.append(Model(name, metrics, facts, file.stat().st_size, sha256(file) == champion))
    return sorted(
        found, key=lambda model: (-model.metrics[f"val_{model.metrics['metric']}"], model.metrics["val_loss"])
    )


def _columns(models: list[Model]) -> list[Column]:
    """Returns what is told of every model behind its main metric."""
    metric = models[0].metrics["metric"]

    def column(title: str, values: list[float | None], form: str, smaller: bool = True) -> Column:
        shown = [None if value is None else (value, form.format(value)) for value in values]
        return Column(title, shown, smaller)

    def took(title: str, key: str, smaller: bool = True) -> Column:
        return Column(title, [(None, later(key, model.facts)) for model in models], smaller)

    val = [model.metrics[f"val_{metric}"] for model in models]
    own = (metric, f"val_{metric}", *OTHER)
    others = dict.fromkeys(
        name
        for model in models
        for name, value in model.metrics.items()
        if name not in own and not name.endswith(("_low", "_high")) and isinstance(value, int | float)
    )
    columns = [
        Column("validation", [(value, scores.shown(metric, value)) for value in val], False),
        column("parameters", [model.metrics["parameters"] for model in models], "{:,}"),
        column("model, MB", [model.bytes / 1e6 for model in models], "{:,.2f}"),
        took("training, s", "seconds"),
        took("memory, MiB", "memory"),
        took("training, examples/s", "examples_per_second", False),
        took("validation, examples/s", "validation_examples_per_second", False),
        *(
            column(words(name), [model.metrics.get(name) for model in models], "{:.3f}", name in SMALLER)
            for name in others
        ),
    ]
    return [one for one in columns if any(value is not None for value in one.values)]


def _bars(models: list[Model]) -> list[tuple[float, float, float]]:
    """Returns where the interval of each main metric begins and ends, and the metric: 0 to 100 of the common scale."""
    metric = models[0].metrics["metric"]
    ends = [[model.metrics[key] for key in (f"{metric}_low", f"{metric}_high", metric)] for model in models]
    first, last = min(low for low, *_ in ends), max(high for _, high, _ in ends)
    span = last - first or 1
    return [tuple(100 * (value - first) / span for value in row) for row in ends]


def draw_cost(models: list[Model], name: str, values: list[float]) -> Figure:
    """Draws the main metric, with its interval, over what each model costs; the champion is orange."""
    metric = models[0].metrics["metric"]
    figure = Figure((4.4, 3.4), dpi=220, layout="constrained")
    axes = figure.add_subplot(xlabel=name, ylabel=f"test {metric}", xscale="log")
    first, last = min(values), max(values)
    for model, cost in zip(models, values, strict=True):
        value, low, high = (model.metrics[key] for key in (metric, f"{metric}_low", f"{metric}_high"))
        colour = "C1" if model.champion else "C0"
        axes.plot([cost, cost], [low, high], marker="_", color=colour, linewidth=1)
        axes.plot(cost, value, "o", color=colour)
        left = cost**2 > first * last  # towards the middle there is room for a name
        place = {"xytext": (-6 if left else 6, 4), "ha": "right" if left else "left"}
        paper = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}  # over the lines of others
        axes.annotate(model.name, (cost, value), textcoords="offset points", fontsize=9, bbox=paper, **place)
    margin = max(1.5, (last / first) ** 0.1)
    axes.set_xlim(first / margin, last * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if last < 30 * first else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scores.shown(metric, value, 1)))
    axes.grid(alpha=0.3)
    return figure
