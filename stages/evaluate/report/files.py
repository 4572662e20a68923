"""Writes the files of an evaluation, but for its page, which is made of them."""

import json
import shutil
from pathlib import Path

from stages.evaluate.report.pictures import DRAWN
from stages.evaluate.results import Results


def write(results: Results, target: Path, title: str) -> None:
    """Writes metrics.json, predictions.parquet, tables/ and plots/, in place of what was there.

    Args:
        results: of an evaluator.
        target: data/evaluate/<dataset>/<model>.
        title: of pictures.
    """
    shutil.rmtree(target, ignore_errors=True)
    for folder in ("tables", "plots"):
        (target / folder).mkdir(parents=True)
    (target / "metrics.json").write_text(json.dumps(results.metrics, indent=1))
    results.predictions.to_parquet(target / "predictions.parquet", index=False)
    for name, table in results.tables.items():
        table.to_csv(target / f"tables/{name}.csv", index=table.index.name is not None)
    for name, shown in results.plots.items():
        DRAWN[name](*shown, title).savefig(target / f"plots/{name}.png")
