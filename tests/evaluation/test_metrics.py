import numpy as np
import pytest

from lcgcn_jax.evaluation.metrics import (
    bootstrap_interval,
    error_metrics,
    face_errors,
    roc_auc_and_average_precision,
    sparsification_error,
)

RNG = np.random.default_rng(0)
N, K = 40, 7
TRUE = RNG.uniform(0, 200, (N, K, 2))
PREDICTED = TRUE + RNG.normal(0, 5, (N, K, 2))
DISTANCE = RNG.uniform(50, 120, N)
VISIBLE = RNG.random((N, K)) < 0.8
VISIBLE[:, 0] = True
ERRORS = RNG.gamma(4.0, 0.015, 500)  # about a tenth of them above 0.1


def test_face_error_is_the_mean_distance_over_the_normalizing_distance():
    expected = []
    for face in range(N):
        total, count = 0.0, 0
        for k in range(K):
            if VISIBLE[face, k]:
                dx, dy = PREDICTED[face, k] - TRUE[face, k]
                total, count = total + (dx**2 + dy**2) ** 0.5, count + 1
        expected.append(total / count / DISTANCE[face])
    np.testing.assert_allclose(face_errors(PREDICTED, TRUE, VISIBLE, DISTANCE), expected)


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_landmarks_without_annotation_do_not_count(value):
    true = np.where(VISIBLE[..., None], TRUE, value)
    np.testing.assert_array_equal(
        face_errors(PREDICTED, true, VISIBLE, DISTANCE),
        face_errors(PREDICTED, TRUE, VISIBLE, DISTANCE),
    )


def test_float32_predictions_are_subtracted_in_float64():
    single = PREDICTED.astype(np.float32)
    np.testing.assert_array_equal(
        face_errors(single, TRUE, VISIBLE, DISTANCE),
        face_errors(single.astype(np.float64), TRUE, VISIBLE, DISTANCE),
    )


@pytest.mark.parametrize("distance", [0.0, -3.0, np.nan])
def test_nonpositive_normalizing_distance_is_an_error(distance):
    distances = DISTANCE.copy()
    distances[3] = distance
    with pytest.raises(ValueError, match="not positive"):
        face_errors(PREDICTED, TRUE, VISIBLE, distances)


def test_face_without_annotated_landmarks_is_an_error():
    visible = VISIBLE.copy()
    visible[5] = False
    with pytest.raises(ValueError, match="no annotated landmark"):
        face_errors(PREDICTED, TRUE, visible, DISTANCE)


def test_nme_and_failure_rate_are_in_percent():
    metrics = error_metrics(np.array([0.02, 0.04, 0.1, 0.3]))
    assert metrics["nme"] == pytest.approx(11.5)
    assert metrics["fr10"] == 25.0  # an error of exactly 0.1 is no failure


def test_auc_is_the_area_under_the_cumulative_error_curve():
    thresholds = np.linspace(0, 0.1, 100_001)
    fractions = np.searchsorted(np.sort(ERRORS), thresholds, side="right") / len(ERRORS)
    area = np.trapezoid(fractions, thresholds) / 0.1
    assert error_metrics(ERRORS)["auc10"] == pytest.approx(area, abs=1e-4)


def test_metrics_of_an_empty_set_are_nan():
    assert np.isnan(np.hstack(list(error_metrics(np.zeros(0)).values()))).all()


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    low, high = bootstrap_interval(ERRORS)
    half = 1.96 * ERRORS.std() / len(ERRORS) ** 0.5
    assert low == pytest.approx(ERRORS.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(ERRORS.mean() + half, abs=0.15 * half)


def test_bootstrap_intervals_cover_the_true_mean():
    samples = np.random.default_rng(1).normal(0.04, 0.01, (200, 60))
    intervals = [bootstrap_interval(sample, level=0.9, resamples=300) for sample in samples]
    coverage = np.mean([low <= 0.04 <= high for low, high in intervals])
    assert 0.83 < coverage < 0.96


@pytest.mark.parametrize("values", [[0.03], [0.03, 0.03, 0.03]])
def test_bootstrap_interval_of_one_value_is_that_value(values):
    assert bootstrap_interval(np.array(values)) == pytest.approx((0.03, 0.03))


def count_pairs(scores, positive):
    """AUROC from all pairs of a positive and a negative."""
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return sum(pairs) / len(pairs)


def sum_steps(scores, positive):
    """Average precision by its definition, threshold by threshold."""
    total = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        selected = scores >= threshold
        new_recall = positive[selected].sum() / positive.sum()
        total += (new_recall - recall) * positive[selected].mean()
        recall = new_recall
    return total


def test_auroc_and_average_precision_with_ties():
    rng = np.random.default_rng(0)
    for count in range(2, 40):
        scores = rng.integers(0, 6, count) / 5
        positive = np.append([True, False], rng.random(count - 2) < rng.random())
        areas = roc_auc_and_average_precision(scores, positive)
        assert areas == pytest.approx((count_pairs(scores, positive), sum_steps(scores, positive)))
        order = rng.permutation(count)
        assert areas == roc_auc_and_average_precision(scores[order], positive[order])


def test_auroc_and_average_precision_of_extreme_rankings():
    positive = np.array([True, True, False, False, False])
    scores = np.array([0.9, 0.8, 0.3, 0.2, 0.1])
    assert roc_auc_and_average_precision(scores, positive) == (1, 1)
    assert roc_auc_and_average_precision(-scores, positive)[0] == 0
    assert roc_auc_and_average_precision(np.zeros(5), positive) == pytest.approx((0.5, 0.4))
    for one_class in (np.ones(5, bool), np.zeros(5, bool)):
        assert roc_auc_and_average_precision(scores, one_class) == (None, None)


def test_sparsification_error_of_the_oracle_of_a_constant_and_of_the_reverse():
    errors = np.random.default_rng(0).exponential(1, 4000)
    assert sparsification_error(errors, errors) == pytest.approx(0, abs=1e-12)
    constant = sparsification_error(errors, np.zeros(4000))
    # The mean of the smallest fraction q of an exponential is 1 + (1 - q) log(1 - q) / q.
    q = (np.arange(100_000) + 0.5) / 100_000
    oracle = (1 + (1 - q) * np.log1p(-q) / q).mean()
    assert constant == pytest.approx(1 - oracle, abs=0.02)
    assert sparsification_error(errors, -errors) > constant


def test_landmarks_of_equal_uncertainty_are_removed_together():
    errors = np.array([1.0, 3.0, 2.0, 6.0])
    uncertainty = np.array([0.0, 0.0, 1.0, 1.0])
    # Mean errors of the remaining landmarks: 2, 2, 8/3, 3; of the oracle: 1, 1.5, 2, 3; overall mean: 3.
    expected = (1 + 0.5 + 2 / 3 + 0) / 4 / 3
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        assert sparsification_error(errors[order], uncertainty[order]) == pytest.approx(expected)
