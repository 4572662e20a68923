"""Writes the files of an evaluation, but for its page, which is made of them."""

import json
from pathlib import Path

from stages.evaluate.report.pictures import DRAWN
from stages.evaluate.results import Results


def write(results: Results, target: Path, title: str) -> None:
    """Writes predictions.parquet, tables/ and plots/, and last metrics.json: register takes part by it.

    Args:
        results: of an evaluator.
        target: data/evaluate/<dataset>/<model>.
        title: of pictures.
    """
    for folder in ("tables", "plots"):
        (target / folder).mkdir(parents=True)
    results.predictions.to_parquet(target / "predictions.parquet", index=False)
    for name, table in results.tables.items():
        table.to_csv(target / f"tables/{name}.csv", index=table.index.name is not None)
    for name, shown in results.plots.items():
        DRAWN[name](*shown, title).savefig(target / f"plots/{name}.png")
    (target / "metrics.json").write_text(json.dumps(results.metrics, indent=1))
