"""95 % intervals of a classifier's scores for which no closed formula is in a library.

Of scores without any error they are a point, as neither resampled examples nor their influence know what was not seen.
"""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

LEVEL = 0.95
RESAMPLES = 1000


def macro_f1(counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the interval of the mean F1 of all classes, by the bootstrap over examples.

    To resample examples is to draw the counts of a confusion matrix from a multinomial distribution. Source: Efron
    and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentiles).

    Args:
        counts: how often each class (row) was taken for each (column), shape (classes, classes).
        seed: of the resamples.
    """
    n, one = counts.sum(), np.eye(len(counts))
    row, column = counts.nonzero()
    drawn = np.random.default_rng(seed).multinomial(n, counts[row, column] / n, RESAMPLES)  # (resamples, such cells)
    occurs = drawn @ (one[row] + one[column])  # as the truth or as an answer; a class that does not has no F1
    right = drawn @ (one[row] * (row == column)[:, None])
    f1 = np.divide(2 * right, occurs, out=np.full(occurs.shape, np.nan), where=occurs > 0)
    low, high = np.quantile(np.nanmean(f1, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def auc(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Returns the interval of the area under the ROC curve: of two classes the second's, of more the mean over all.

    From the influence of each example on it, symmetric in its logit, so that it stays between 0 and 1. Source: DeLong
    et al. 1988, "Comparing the areas under two or more correlated receiver operating characteristic curves"; as
    influence: LeDell et al. 2015, doi:10.1214/15-EJS1035; the logit: Pepe 2003, section 5.2.

    Args:
        labels: int of shape (n,); each class occurs.
        probabilities: shape (n, classes).
    """
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    n = len(labels)
    area, influence = 0.0, np.zeros(n)
    for number in classes:
        mine, given = labels == number, probabilities[:, number]
        rank, positives = rankdata(given), int(mine.sum())
        negatives = n - positives
        # Of an example of the class the share of others below it, of another that of the class above it; ties half.
        place = np.empty(n)
        place[mine] = (rank[mine] - rankdata(given[mine])) / negatives
        place[~mine] = 1 - (rank[~mine] - rankdata(given[~mine])) / positives
        found = place[mine].mean()
        area += found / len(classes)
        influence += (place - found) * np.where(mine, n / positives, n / negatives) / len(classes)
    if not 0 < area < 1:
        return area, area
    reach = norm.ppf((1 + LEVEL) / 2) * np.sqrt(np.mean(influence**2) / n) / (area * (1 - area))
    low, high = expit(logit(area) + np.array([-reach, reach]))
    return float(low), float(high)
