"""The servable model: a picture's bytes, a sentence or a volume in, a label with probabilities out.

MLflow keeps this file and the code that it uses beside the network, and calls ``_load_pyfunc`` wherever the model is
loaded or served; nothing is pickled. Raw examples are prepared by their kind, as in ingest, so that nothing differs
between training and serving.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convoy.data.shards import objects
from convoy.errors import InputRefusedError
from convoy.kinds.base import Raw

BLOCK = 256  # examples predicted at a time; bounds memory


class Servable:
    """A registered model as MLflow calls it.

    Args:
        folder: holds ``model.keras`` and ``input.json``.
    """

    def __init__(self, folder: Path) -> None:
        from convoy.model import backend, predictor  # they import Keras

        backend.prepare()
        self._predictor = predictor.Predictor.load(folder)
        self._kind = self._predictor.kind

    def predict(self, asked: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Returns a row per example: label, probability and probabilities (class -> its probability).

        Of a translation: translation, and probability, the geometric mean over its tokens.

        Args:
            asked: one column: ``image`` (the bytes of a PNG, JPEG...), ``volume`` (those of an .npy, GIF or TIFF),
                ``text``, or ``source``, the sentence to translate. In JSON, bytes are base64.
            params: none are known; MLflow's signature of the call.

        Raises:
            MlflowException: an example cannot be read; served over HTTP this is status 400 with the reason.
        """
        values = asked[self._kind.column].tolist()
        parts = [self._answer(values, start) for start in range(0, len(values), BLOCK)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"label": [], "probability": []})

    def _answer(self, values: list[Raw], start: int) -> pd.DataFrame:
        from mlflow.exceptions import MlflowException  # of whoever called

        examples = []
        for number, value in enumerate(values[start : start + BLOCK], start):
            try:
                examples.append(self._kind.prepare(value, self._predictor.takes))
            except InputRefusedError as error:
                raise MlflowException.invalid_parameter_value(f"{self._kind.column} {number}: {error}") from None
        block = {self._kind.column: together(examples)}
        if not self._kind.has_classes:
            return pd.DataFrame(self._predictor.answer(block), columns=list(self._kind.answers))
        found, classes = self._predictor.classified(block), self._predictor.classes
        return pd.DataFrame(
            {
                "label": [classes[row.argmax()] for row in found],
                "probability": found.max(axis=1),
                "probabilities": [dict(zip(classes, row.tolist(), strict=True)) for row in found],
            }
        )


def _load_pyfunc(path: str) -> Servable:
    return Servable(Path(path))


def together(examples: Sequence[np.ndarray | str]) -> np.ndarray:
    """Returns examples as one array, (n, ...); of objects, if they are texts."""
    return objects(examples) if isinstance(examples[0], str) else np.stack(examples)
