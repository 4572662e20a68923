"""Decides whether a challenger takes the champion's place: only where chance is no explanation."""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import binom, binomtest

from convoy.model import scores
from convoy.model.scores import shown

RELEVANT = 0.01  # the gain in accuracy whose chance of being found is told
RESAMPLES = 1000  # of the test split, where no exact test exists


@dataclass(frozen=True)
class Answers:
    """How one model did on the test split.

    Attributes:
        value: of the main metric.
        scores: of each example, shape (n,), 0 to 1; see ``scores.of_examples``.
        texts: the answers themselves, objects of shape (n,).
    """

    value: float
    scores: np.ndarray
    texts: np.ndarray


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why.

    Attributes:
        promote: the challenger becomes champion.
        reason: in a sentence, for people.
        p: the probability of such a lead, or a larger one, if both were equally good; None: nothing was compared.
        power: the probability with which a challenger that is better by RELEVANT is found on this test
            split; None where it was not computed.
        slices: slice -> (its examples, the challenger's score less the champion's).
    """

    promote: bool
    reason: str
    p: float | None = None
    power: float | None = None
    slices: dict[str, tuple[int, float]] = field(default_factory=dict)


def decide(
    challenger: Answers,
    champion: Answers | None,
    expected: np.ndarray,
    *,
    metric: str,
    baseline: float,
    slices: dict[str, np.ndarray],
    min_gain: float,
    alpha: float,
    max_slice_loss: float,
    alone: str = "the first champion",
) -> Decision:
    """Compares two models on the same test examples.

    The challenger has to be better by ``min_gain`` or more, by more than chance explains (``p`` of at most ``alpha``),
    and on no slice of the examples worse by more than ``max_slice_loss`` and than chance explains: of many small ones
    some are always worse. Of equally good ones a share of ``alpha`` or less is promoted.

    Args:
        challenger: the new one.
        champion: the present one, or None where there is none that can read these examples.
        expected: what would have been right, objects of shape (n,).
        metric: the main one of the kind of data; it decides on the test.
        baseline: the metric without a model, e.g. the share of the largest class; the first champion has to beat it.
        slices: name -> which examples belong to it, bool of shape (n,).
        min_gain: by how much the challenger has to exceed the champion, in the main metric.
        alpha: largest probability of taking luck for progress.
        max_slice_loss: in the mean score of a slice's examples.
        alone: why there is no ``champion`` to compare with.
    """
    new = shown(metric, challenger.value)
    if champion is None:
        text = f"{metric} {new} against {shown(metric, baseline)} without a model"
        beats = challenger.value > baseline
        return Decision(beats, f"{alone}: {text}" if beats else f"no better than chance: {text}")
    difference = challenger.scores - champion.scores
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    if metric == "accuracy":
        p, power = mcnemar(won, lost), mcnemar_power(won + lost, len(difference), alpha)
    else:
        p, power = bootstrap(challenger.texts, champion.texts, expected), None
    lead = {name: (int(rows.sum()), float(difference[rows].mean())) for name, rows in slices.items() if rows.any()}
    text = (
        f"{metric} {new} against the champion's {shown(metric, champion.value)} on the same "
        f"{len(difference)} test examples (+{won} -{lost}), p = {p:.2g}"
    )
    gain = challenger.value - champion.value
    signs = {name: np.sign(difference[slices[name]]) for name in lead}
    worse = [name for name, sign in signs.items() if mcnemar((sign < 0).sum(), (sign > 0).sum()) <= alpha]
    worst = min(worse, key=lambda name: lead[name][1], default=None)
    if gain <= 1e-9 or gain < min_gain - 1e-9:  # 0.57 - 0.55 is a gain of 0.02
        verdict = f"not better by min_gain = {min_gain}"
    elif p > alpha:
        verdict = f"not better than chance explains (alpha = {alpha})"
    elif worst is not None and lead[worst][1] < -max_slice_loss:
        verdict = f"better, but worse by {-lead[worst][1]:.3g} on the {lead[worst][0]} examples of {worst}"
    else:
        return Decision(True, f"better: {text}", p, power, lead)
    return Decision(False, f"{verdict}: {text}", p, power, lead)


def limited(decision: Decision, limits: dict[str, tuple[float | None, float | None]]) -> Decision:
    """Returns the decision, or a refusal where the challenger exceeds a limit, or nobody measured what is limited.

    Args:
        decision: of ``decide``.
        limits: name of the limit -> (what was measured, the limit); None: it was not measured, or is not set.
    """
    exceeded = [
        f"{name} = {limit} was not measured" if found is None else f"{found:.4g} exceeds {name} = {limit}"
        for name, (found, limit) in limits.items()
        if limit is not None and (found is None or found > limit)
    ]
    if not decision.promote or not exceeded:
        return decision
    return replace(decision, promote=False, reason=f"{', '.join(exceeded)}, though {decision.reason}")


def mcnemar(won: int, lost: int) -> float:
    """Returns the one-sided exact p of McNemar's test: that of ``won`` or more of the examples on which two differ.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; for comparing
    classifiers: Dietterich 1998, "Approximate Statistical Tests", section 3.1.
    """
    return float(binomtest(int(won), int(won + lost), alternative="greater").pvalue) if won + lost else 1.0


def mcnemar_power(differing: int, n: int, alpha: float) -> float:
    """Returns the probability that a challenger of RELEVANT more accuracy is found, at as many differences.

    Source: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design".
    """
    share = min(1.0, (1 + RELEVANT * n / differing) / 2) if differing else 1.0
    enough = binom.isf(alpha, differing, 0.5) + 1  # the fewest won for which p is at most alpha
    return float(binom.sf(enough - 1, differing, share))


def bootstrap(challenger: np.ndarray, champion: np.ndarray, expected: np.ndarray) -> float:
    """Returns the p of the paired bootstrap, for BLEU: how often resamples of the examples explain the lead.

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", as computed by sacreBLEU.
    """
    from sacrebleu.significance import PairedTest

    systems = [("champion", champion.tolist()), ("challenger", challenger.tolist())]
    _, found = PairedTest(systems, {"BLEU": scores.bleu()}, [expected.tolist()], "bs", RESAMPLES)()
    return found["BLEU"][1].p_value
