"""Writes data/ingest/<dataset>/report.html: can this data be trusted, at a glance and without network?

The page is one file: style, charts (SVG) and small pictures are in it; no script. It follows from the stage's other
output alone - no date, nothing random - so that equal data gives equal bytes. Everything that comes from the data is
escaped, and everything that grows with it has a cap; what the page leaves out stands in the tables beside it.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from convoy import kinds
from convoy.files import read_sealed
from convoy.pages.page import many, shown, template
from stages.ingest.report.charts import chart_facts, compare_classes
from stages.ingest.report.findings import judge
from stages.ingest.report.gallery import Gallery, choose_samples
from stages.ingest.report.left_out import list_conflicts, list_copies, list_near, list_reasons
from stages.ingest.report.shortcuts import find_shortcuts
from stages.ingest.report.values import FEW, NAMES

COLUMNS = ("path", "label", "split", "sha256", "near")  # of the manifest; the others are facts


def report(folder: Path) -> None:
    """Writes ``folder``/report.html about the finished output of ingest in ``folder``."""
    about = read_sealed(folder / "about.json")
    manifest = pd.read_parquet(folder / "manifest.parquet")
    refused, doubles = _table(folder / "quarantine.csv"), _table(folder / "duplicates.csv")
    facts = [name for name in manifest.columns if name not in COLUMNS]
    kind = kinds.get(about["kind"])
    gallery = Gallery(folder, manifest, kind)
    hints = find_shortcuts(manifest, facts)
    page = template(Path(__file__).with_name("report.html.jinja")).render(
        about=about,
        many=many,
        noun=kind.noun,
        total=len(manifest),
        left_out=len(refused),
        findings=judge(about, manifest, refused, facts, hints, gallery),
        balance=compare_classes(about["counts"], about["classes"]),
        samples=choose_samples(about, manifest, gallery),
        charts=chart_facts(about, manifest, facts),
        hints=hints,
        conflicts=list_conflicts(doubles, gallery),
        near=list_near(doubles, manifest, gallery),
        copies=list_copies(doubles, gallery),
        reasons=list_reasons(refused, doubles),
        reading={**about["reading"], **about["options"]},
        lines=_lines,
        few=FEW,
    )
    (folder / "report.html").write_bytes(page.encode())


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)  # a class may be called NA


def _lines(note: object) -> list[str]:
    """Returns a note of the reader, or an option, as lines of text."""
    if isinstance(note, Mapping):
        lines = [f"{shown(name)}: {shown(', '.join(_lines(value)))}" for name, value in note.items()]
    elif isinstance(note, list):
        lines = [shown(", ".join(map(str, note)))]
    else:
        lines = [shown(note)]
    return lines if len(lines) <= 2 * NAMES else [*lines[: 2 * NAMES], f"and {len(lines) - 2 * NAMES:,} more"]
