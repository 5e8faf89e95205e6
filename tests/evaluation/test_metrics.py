import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcgcn_jax.evaluation.metrics import (
    MetricState,
    average_precision,
    bootstrap_interval,
    face_errors,
    roc_auc,
)

RNG = np.random.default_rng(0)
N, K = 40, 7
TRUE = RNG.uniform(0, 200, (N, K, 2))
PREDICTED = TRUE + RNG.normal(0, 5, (N, K, 2))
DISTANCE = RNG.uniform(50, 120, N)
VISIBLE = RNG.random((N, K)) < 0.8
VISIBLE[:, 0] = True
ERRORS = RNG.gamma(4.0, 0.015, 500)  # about a tenth of them above 0.1


def test_face_errors_are_mean_distances_over_the_normalizing_one():
    expected = []
    for face in range(N):
        total, count = 0.0, 0
        for k in range(K):
            if VISIBLE[face, k]:
                dx, dy = PREDICTED[face, k] - TRUE[face, k]
                total, count = total + (dx**2 + dy**2) ** 0.5, count + 1
        expected.append(total / count / DISTANCE[face])
    np.testing.assert_allclose(face_errors(PREDICTED, TRUE, VISIBLE, DISTANCE), expected)


@pytest.mark.parametrize("junk", [1e6, np.nan])
def test_landmarks_that_are_not_annotated_do_not_count(junk):
    dirty = np.where(VISIBLE[..., None], TRUE, junk)
    np.testing.assert_array_equal(
        face_errors(PREDICTED, dirty, VISIBLE, DISTANCE),
        face_errors(PREDICTED, TRUE, VISIBLE, DISTANCE),
    )


def test_float32_predictions_lose_nothing_more():
    rough = PREDICTED.astype(np.float32)
    np.testing.assert_array_equal(
        face_errors(rough, TRUE, VISIBLE, DISTANCE),
        face_errors(rough.astype(np.float64), TRUE, VISIBLE, DISTANCE),
    )


def test_nme_and_failure_rate_are_in_percent():
    figures = MetricState.from_errors(np.array([0.02, 0.04, 0.1, 0.3])).compute()
    assert figures["nme"] == pytest.approx(11.5)
    assert figures["fr10"] == 25.0  # exactly 0.1 has not failed


def test_auc_is_the_area_under_the_cumulative_error_curve():
    thresholds = np.linspace(0, 0.1, 100_001)
    below = np.searchsorted(np.sort(ERRORS), thresholds, side="right") / len(ERRORS)
    area = np.trapezoid(below, thresholds) / 0.1
    assert MetricState.from_errors(ERRORS).compute()["auc10"] == pytest.approx(area, abs=1e-4)


@pytest.mark.parametrize("cuts", [[250], [1, 499], [0, 100, 100]])
def test_states_of_parts_add_up(cuts):
    merged = MetricState()
    for part in np.split(ERRORS, cuts):
        merged = merged.merge(MetricState.from_errors(part))
    assert merged.compute() == pytest.approx(MetricState.from_errors(ERRORS).compute(), rel=1e-12)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.data())
def test_any_parts_in_any_order_add_up(data):
    numbers = st.floats(0, 10) | st.sampled_from([0.1, np.nextafter(0.1, 1)])
    errors = np.array(data.draw(st.lists(numbers, min_size=1, max_size=40)))
    part_of = np.array(data.draw(st.lists(st.integers(0, 5), min_size=40, max_size=40)))
    states = [MetricState.from_errors(errors[part_of[: len(errors)] == i]) for i in range(6)]
    # Merged one by one in some order, and as pairs: as hosts and batches come in.
    one_by_one = functools.reduce(MetricState.merge, data.draw(st.permutations(states)))
    pairs = [states[i].merge(states[i + 1]) for i in (0, 2, 4)]
    whole = MetricState.from_errors(errors)
    for merged in (one_by_one, pairs[0].merge(pairs[1].merge(pairs[2]))):
        assert (merged.count, merged.failures) == (whole.count, whole.failures)
        assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12, abs=1e-12)
    assert whole.merge(MetricState()) == MetricState().merge(whole) == whole


def test_no_face_has_no_figures():
    assert all(np.isnan(value) for value in MetricState().compute().values())
    assert np.isnan(bootstrap_interval(np.zeros(0))).all()


def test_bootstrap_interval_is_as_wide_as_the_standard_error_says():
    low, high = bootstrap_interval(ERRORS)
    half = 1.96 * ERRORS.std() / len(ERRORS) ** 0.5
    assert low == pytest.approx(ERRORS.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(ERRORS.mean() + half, abs=0.15 * half)


def test_bootstrap_intervals_cover_the_truth():
    samples = np.random.default_rng(1).normal(0.04, 0.01, (200, 60))
    intervals = [bootstrap_interval(sample, level=0.9, resamples=300) for sample in samples]
    covered = np.mean([low <= 0.04 <= high for low, high in intervals])
    assert 0.83 < covered < 0.96


@pytest.mark.parametrize("distance", [0.0, -3.0, np.nan])
def test_a_normalizing_distance_must_be_positive(distance):
    distances = DISTANCE.copy()
    distances[3] = distance
    with pytest.raises(ValueError, match="not positive"):
        face_errors(PREDICTED, TRUE, VISIBLE, distances)


def test_a_face_must_have_a_visible_landmark():
    visible = VISIBLE.copy()
    visible[5] = False
    with pytest.raises(ValueError, match="without any visible landmark"):
        face_errors(PREDICTED, TRUE, visible, DISTANCE)


def count_pairs(scores, positive):
    """AUROC by looking at every pair of a positive and a negative."""
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return sum(pairs) / len(pairs)


def sum_steps(scores, positive):
    """Average precision by its definition, threshold by threshold."""
    total = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        new_recall = positive[chosen].sum() / positive.sum()
        total += (new_recall - recall) * positive[chosen].mean()
        recall = new_recall
    return total


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
@settings(max_examples=60, deadline=None)
def test_auroc_and_average_precision_with_ties(rows):
    scores = np.array([score / 5 for score, _ in rows])
    positive = np.array([label for _, label in rows])
    assert roc_auc(scores, positive) == pytest.approx(count_pairs(scores, positive))
    assert average_precision(scores, positive) == pytest.approx(sum_steps(scores, positive))
    order = np.random.default_rng(0).permutation(len(rows))
    assert roc_auc(scores[order], positive[order]) == pytest.approx(roc_auc(scores, positive))


def test_auroc_and_average_precision_at_their_ends():
    positive = np.array([True, True, False, False, False])
    scores = np.array([0.9, 0.8, 0.3, 0.2, 0.1])
    assert roc_auc(scores, positive) == average_precision(scores, positive) == 1
    assert roc_auc(-scores, positive) == 0
    assert roc_auc(np.zeros(5), positive) == 0.5
    assert average_precision(np.zeros(5), positive) == pytest.approx(0.4)
    for same in (np.ones(5, bool), np.zeros(5, bool)):
        assert roc_auc(scores, same) is None
        assert average_precision(scores, same) is None
