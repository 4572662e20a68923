import numpy as np
import pytest
from scipy.special import softmax

from convoy.model.scores import scaled
from stages.evaluate.evaluators.calibration import RANGE, expected_error, reliability, temperature


def test_the_expected_error_is_how_far_certainty_and_truth_are_apart():
    certain = np.tile([[0.9, 0.1]], (100, 1))
    assert expected_error(np.arange(100) >= 90, certain) == pytest.approx(0)  # 90 of 100 are right
    assert expected_error(np.arange(100) >= 50, certain) == pytest.approx(0.4)
    half = np.concatenate([certain[:50], np.tile([[0.4, 0.6]], (50, 1))])
    labels = np.concatenate([np.zeros(50, int), np.arange(50) % 2])
    assert expected_error(labels, half) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)  # 1.0 for 0.9, and 0.5 for 0.6
    assert reliability(labels, half)["examples"].tolist() == [50, 50]
    assert expected_error(np.array([0]), np.array([[1.0, 0.0]])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("exaggerated", [0.5, 1.0, 3.0])
def test_the_temperature_takes_back_by_how_much_a_model_exaggerates(exaggerated):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits, axis=1)])
    said = softmax(logits * exaggerated, axis=1).astype(np.float32)
    found = temperature(labels, said)
    assert found == pytest.approx(exaggerated, rel=0.05)
    after = scaled(said, found)
    assert expected_error(labels, after) < 0.015
    assert (after.argmax(axis=1) == said.argmax(axis=1)).all()


def test_a_model_that_is_always_right_and_sure_keeps_finite_numbers():
    said = np.eye(3, dtype=np.float32)
    found = temperature(np.arange(3), said)
    assert RANGE[0] < found < RANGE[1]
    assert np.isfinite(scaled(said, found)).all()


@pytest.mark.parametrize("n", [30, 300])
def test_without_errors_a_model_is_made_as_certain_as_so_many_examples_allow(n):
    labels = np.arange(n) % 3
    said = np.full((n, 3), 0.1)
    said[np.arange(n), labels] = 0.8
    served = scaled(said, temperature(labels, said)).max(axis=1)
    np.testing.assert_allclose(served, (n + 1) / (n + 2), atol=1e-4)
