"""What evaluators find, for ``report`` to draw and to write."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass
class Results:
    """The results of one model.

    Attributes:
        metrics: of metrics.json.
        predictions: one row per test example, of predictions.parquet.
        tables: name -> content of tables/<name>.csv; an index is a column there if it has a name.
        plots: name -> what plots/<name>.png shows: the arguments of its function in ``report.pictures.DRAWN``.
        notes: a line for each of these that is not there, with the reason.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    predictions: pd.DataFrame | None = None
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    plots: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
