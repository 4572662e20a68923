"""What a classifier says to changed test examples, for ``invariance`` and ``robustness``."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from convoy.data.shards import Shards, spread
from convoy.model.predictor import Predictor

TOGETHER = 64  # changed examples predicted at a time; bounds memory


@dataclass(frozen=True)
class Sample:
    """Some test examples of a classifier, evenly chosen, so that all classes and sources are among them.

    Attributes:
        predictor: the classifier.
        array: name of the array that is changed: image, volume or text.
        examples: that array of the chosen ones.
        labels: names of their classes.
        predicted: what the classifier says to them as they are.
    """

    predictor: Predictor
    array: str
    examples: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, predictor: Predictor, test: Shards, answers: pd.DataFrame, most: int) -> "Sample":
        """Chooses up to ``most`` examples of ``test``; ``answers`` has label and predicted of all of them."""
        array, rows = predictor.array, spread(len(test), most)
        labels, predicted = (answers[name].to_numpy(object)[rows] for name in ("label", "predicted"))
        return cls(predictor, array, test.take(array, rows), labels, predicted)

    def answers(self, changed: np.ndarray) -> np.ndarray:
        """Returns the classes that the classifier gives to ``changed`` examples, objects of shape (n,)."""
        blocks = (changed[start : start + TOGETHER] for start in range(0, len(changed), TOGETHER))
        found = [name for block in blocks for name, _ in self.predictor.answer({self.array: block})]
        return np.array(found, object)


def share(right: np.ndarray) -> dict[str, float | int]:
    """Returns examples, accuracy and its 95 % interval (Wilson 1927) of answers that are ``right`` or not, (n,)."""
    low, high = proportion_confint(int(right.sum()), len(right), alpha=0.05, method="wilson")
    return {"examples": len(right), "accuracy": float(right.mean()), "low": float(low), "high": float(high)}
