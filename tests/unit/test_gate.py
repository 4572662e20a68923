"""The gate promotes what is better, and seldom what is only lucky."""

import numpy as np
import pytest

from stages.register import gate
from stages.register.gate import Answers, decide, mcnemar, mcnemar_power

SETTINGS = {"metric": "accuracy", "baseline": 0.5, "slices": {}, "min_gain": 0.0, "alpha": 0.05, "max_slice_loss": 0.1}
EXPECTED = np.array(["yes"] * 400, object)


def answers(right):
    """Answers that are right where ``right`` says so."""
    texts = np.where(right, "yes", "no").astype(object)
    return Answers(float(np.mean(right)), right.astype(float), texts)


def first(count, of=400):
    return np.arange(of) < count


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [(0, 0, 1.0), (5, 0, 1 / 32), (8, 2, 56 / 1024), (9, 1, 11 / 1024), (0, 5, 1.0), (10, 10, 0.588099)],
)
def test_the_exact_p_is_that_of_tossing_a_coin(won, lost, p):
    assert mcnemar(won, lost) == pytest.approx(p, rel=1e-5)  # by hand: sums of binomial coefficients over 2 ** n


@pytest.mark.parametrize(
    ("challenger", "champion", "settings", "promote", "said"),
    [
        (first(240), None, {}, True, "the first champion: accuracy 60.00% against 50.00% without a model"),
        (first(200), None, {}, False, "no better than chance: accuracy 50.00%"),
        (first(360), first(350), {}, True, "better: accuracy 90.00% against the champion's 87.50%"),
        (first(354), first(350), {}, False, "not better than chance explains (alpha = 0.05)"),
        (first(354), first(350), {"alpha": 0.1}, True, "on the same 400 test examples (+4 -0), p = 0.062"),
        (first(350), first(350), {}, False, "not better by min_gain = 0.0"),
        (first(340), first(350), {}, False, "not better by min_gain = 0.0"),
        (first(360), first(350), {"min_gain": 0.03}, False, "not better by min_gain = 0.03"),
        (first(360), first(350), {"min_gain": 0.025}, True, "better: "),
    ],
)
def test_a_challenger_has_to_be_better_than_chance_explains(challenger, champion, settings, promote, said):
    champion = champion if champion is None else answers(champion)
    decision = decide(answers(challenger), champion, EXPECTED, **SETTINGS | settings)
    assert decision.promote is promote
    assert said in decision.reason


def test_a_champion_that_cannot_read_the_examples_is_named_in_the_reason():
    settings = SETTINGS | {"alone": "version 3 cannot read such pictures"}
    decision = decide(answers(first(240)), None, EXPECTED, **settings)
    assert decision.reason.startswith("version 3 cannot read such pictures: accuracy 60.00%")


def test_a_slice_may_not_get_worse():
    rows = np.arange(400)
    champion, challenger = answers(rows < 300), answers((rows >= 20) & (rows < 380))
    slices = {"zero": rows < 40, "others": rows >= 40, "none": rows < 0}
    decision = decide(challenger, champion, EXPECTED, **SETTINGS | {"slices": slices})
    assert not decision.promote
    assert decision.reason.startswith("better, but worse by 0.5 on the 40 examples of zero: accuracy 90.00%")
    assert decision.slices == {"zero": (40, -0.5), "others": (360, pytest.approx(80 / 360))}
    assert decide(challenger, champion, EXPECTED, **SETTINGS | {"slices": slices, "max_slice_loss": 0.5}).promote


@pytest.mark.parametrize(("lost", "promoted"), [(4, True), (5, False)])  # 1 / 2^4 is more than alpha, 1 / 2^5 is less
def test_the_loss_on_a_small_slice_that_chance_explains_does_not_count(lost, promoted):
    rows = np.arange(400)
    champion, challenger = answers(rows < 300), answers((rows >= lost) & (rows < 380))
    settings = SETTINGS | {"slices": {"small": rows < 8}}  # more than max_slice_loss either way
    assert decide(challenger, champion, EXPECTED, **settings).promote is promoted


def test_of_many_small_sources_some_are_worse_by_chance_and_hold_nobody_back():
    rng, rows = np.random.default_rng(0), np.arange(400)
    champion = rng.random(400) < 0.7
    challenger = champion.copy()
    challenger[rng.permutation(np.flatnonzero(~champion))[:60]] = True
    challenger[rng.permutation(np.flatnonzero(champion))[:20]] = False
    slices = {f"source {number}": rows // 4 == number for number in range(100)}
    assert decide(answers(challenger), answers(champion), EXPECTED, **SETTINGS | {"slices": slices}).promote


def test_fault_23_of_200_pairs_that_are_equally_good_few_are_promoted():
    rng = np.random.default_rng(0)
    promoted = 0
    for _ in range(200):
        easy = rng.uniform(size=400)  # what one model gets right the other often does too
        one, other = (rng.beta(8, 1, 400) > easy for _ in range(2))
        promoted += decide(answers(one), answers(other), EXPECTED, **SETTINGS).promote
    assert promoted <= 16  # of 200; the larger of two would be promoted about 100 times
    assert promoted > 0


@pytest.mark.slow
def test_fault_23_of_200_pairs_of_translations_that_are_equally_good_few_are_promoted(monkeypatch):
    monkeypatch.setattr(gate, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    words = np.array(["one", "two", "three", "four", "five", "six", "seven", "eight"], object)
    sentences = rng.integers(0, len(words), (60, 10))
    expected = np.array([" ".join(words[row]) for row in sentences] + [None], object)[:-1]

    def translated():
        wrong = rng.uniform(size=sentences.shape) < rng.beta(1, 4, (60, 1))
        given = np.where(wrong, rng.integers(0, len(words), sentences.shape), sentences)
        texts = np.array([" ".join(words[row]) for row in given] + [None], object)[:-1]
        value = gate.scores.main("bleu", expected, texts)
        return Answers(value, np.zeros(60), texts)

    settings = SETTINGS | {"metric": "bleu", "baseline": 0.0}
    promoted = sum(decide(translated(), translated(), expected, **settings).promote for _ in range(200))
    assert promoted <= 16
    good, bad = translated(), Answers(5.0, np.zeros(60), expected[::-1])
    assert decide(good, bad, expected, **settings).promote


def test_a_limit_that_was_not_measured_promotes_nobody():
    better = gate.Decision(True, "better: accuracy 90 %")
    assert gate.limited(better, {"max_ece": (0.1, 0.2), "max_size": (3.0, None)}) == better
    refused = gate.limited(better, {"max_ece": (None, 0.2), "max_size": (3.0, None)})
    assert not refused.promote
    assert refused.reason == "max_ece = 0.2 was not measured, though better: accuracy 90 %"


@pytest.mark.parametrize(("differing", "n", "share"), [(20, 400, 0.6), (40, 1000, 0.625), (0, 100, 0.0)])
def test_power_is_the_share_of_better_challengers_that_are_found(differing, n, share):
    rng = np.random.default_rng(0)
    won = rng.binomial(differing, share, 20_000)
    found = np.mean([mcnemar(int(one), differing - int(one)) <= 0.05 for one in won[:4000]])
    assert mcnemar_power(differing, n, 0.05) == pytest.approx(found, abs=0.02)
