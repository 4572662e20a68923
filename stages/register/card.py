"""The model card of a registered version, in Markdown: MLflow shows it beside the version.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv:1810.03993, section 4.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from convoy.model.scores import shown, with_interval
from convoy.tracking.outbox import measured

WEAKEST = 3  # classes that are named
READS = {
    "images": "A picture: the bytes of a PNG, JPEG, BMP, GIF, TIFF, WEBP or PPM file; read as {size} pixels, {mode}.",
    "volumes": "A volume or clip: the bytes of an .npy, GIF or TIFF file, brought to {size} voxels, {mode}.",
    "text": "A sentence; of longer texts the first {length} tokens are read.",
    "translation": "A sentence in the source language; of longer ones the first {length} tokens are read.",
}
# Metrics that the card explains; the others are in the version's tags.
EXPLAINED = {
    "macro_f1": "F1, mean over the classes",
    "auc": "area under the ROC curve",
    "chrf": "chrF",
    "exact_match": "exactly the expected translation",
    "ece_scaled": "expected calibration error, as served",
    "shift_consistency": "same answer for a shifted or moved example",
    "robust_accuracy": "accuracy under noise, blur, contrast and pixelation",
}
OF_100 = ("chrf",)  # the others are shares


def summary(model: str, facts: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Returns a version in one line."""
    value, low, high = with_interval(metrics)
    took = measured(facts)
    text = (
        f"{model} ({facts['architecture']}, {facts['parameters']:,} parameters): test {metrics['metric']} {value} "
        f"(95 % interval {low} to {high}, {metrics['examples']} examples)"
    )
    return f"{text}; trained in {took['seconds']:.0f} s." if took else f"{text}."


def data(about: dict[str, Any]) -> str:
    """Returns a data set in one line."""
    counts = ", ".join(f"{count:,} {split}" for split, count in about["examples"].items())
    classes = f" of {len(about['classes'])} classes" if about["classes"] else ""
    return f"{about['dataset']}: {about['kind']}{classes}; {counts}."


def card(
    model: str,
    version: str,
    about: dict[str, Any],
    takes: dict[str, Any],
    facts: dict[str, Any],
    metrics: dict[str, Any],
    tags: dict[str, str],
    reason: str,
    evaluated: Path,
) -> str:
    """Returns the card.

    Args:
        model: an entry of train.
        version: its number in the registry.
        about: about.json of its data set.
        takes: its input.json.
        facts: its run.json.
        metrics: its metrics.json.
        tags: of the version; parity and latency among them.
        reason: why it is champion, or is not.
        evaluated: data/evaluate/<dataset>/<model>.
    """
    size = " x ".join(map(str, takes.get("size", ())))
    classes = about["classes"]
    lines = [summary(model, facts, metrics), "", f"**Decision.** {_plain(reason)}", "", f"**Data.** {data(about)}"]
    if classes:
        lines[-1] += f" Classes: {', '.join(map(_plain, classes[:20]))}{', ...' if len(classes) > 20 else ''}."
    lines += [
        "",
        f"**Takes.** {READS[about['kind']].format(**takes | {'size': size})}",
        "",
        "**Scores** (test split)",
        "",
    ]
    lines += ["| | |", "|---|---|", f"| without a model | {shown(metrics['metric'], metrics['baseline'])} |"]
    for key, title in EXPLAINED.items():
        if key in metrics:
            lines.append(f"| {title} | {metrics[key]:.1f} |" if key in OF_100 else f"| {title} | {metrics[key]:.2%} |")
    lines.append(
        f"| one raw example, where it was registered | {tags['latency.p50_ms']} ms, 95 % within "
        f"{tags['latency.p95_ms']} ms |"
    )
    lines += ["", "**Limits.**", *(f"- {one}" for one in limits(about, metrics, evaluated)), ""]
    lines += [f"Where it comes from: `convoy trace {about['dataset']}@{version}`."]
    return "\n".join(lines)


def limits(about: dict[str, Any], metrics: dict[str, Any], evaluated: Path) -> list[str]:
    """Returns what one should not expect of a model."""
    found = []
    if about["classes"]:
        found.append("It answers with one of its classes, whatever it is shown.")
        table = pd.read_csv(evaluated / "tables/classes.csv", dtype={"class": str}, keep_default_na=False)
        weakest = table[table["examples"] > 0].sort_values("recall", kind="stable").head(WEAKEST)
        named = (f"{_plain(row['class'])} ({row['recall']:.0%} of {row['examples']})" for _, row in weakest.iterrows())
        found.append(f"Found least often: {', '.join(named)}.")
    _, low, high = with_interval(metrics, digits=1)
    found.append(f"{metrics['examples']:,} test examples leave the score open between {low} and {high}.")
    return found


def _plain(name: str) -> str:
    """Returns the name of a class, which is raw data, so that Markdown shows it as it is."""
    return "".join(f"&#{ord(sign)};" if sign in "<>&|*_`[]#\\~!" else sign for sign in name)
