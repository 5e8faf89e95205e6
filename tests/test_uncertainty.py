import dataclasses
import json

import numpy as np
import pytest

from lcgcn_jax import uncertainty
from lcgcn_jax.uncertainty import UncertaintyModel, assess, cross_validate, fit_uncertainty

ABOUT = {"dataset": "d", "fingerprint": "f", "split": "validation"}


def faces(n=200, k=10, seed=0, tail=1.0):
    """Errors whose scale follows from peak, spread and landmark, as a distance of two normals."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 2, (n, k)).astype(np.float32)
    heatmap_std = np.exp(rng.normal(-3.5, 0.4, (n, k))).astype(np.float32)
    of_landmark = np.linspace(0.6, 1.6, k)
    scale = 60 * (1 - confidence) ** 0.5 * heatmap_std**0.9 * of_landmark * tail
    errors = np.linalg.norm(rng.normal(0, scale[..., None], (n, k, 2)), axis=-1)
    return errors, confidence, heatmap_std, scale * np.sqrt(np.pi / 2)


@pytest.mark.parametrize("seed", range(20))
def test_pooling_is_the_closest_nondecreasing_sequence(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(np.arange(8) / 4, 1), rng.uniform(0.5, 3, 8)
    found = uncertainty.pool_adjacent_violators(values, weights)
    assert (np.diff(found) >= -1e-12).all()
    # Minimax form of isotonic regression (Robertson et al. 1988): max over starts of min over ends.
    expected = [
        max(
            min(np.average(values[i : j + 1], weights=weights[i : j + 1]) for j in range(at, 8))
            for i in range(at + 1)
        )
        for at in range(8)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_expected_error_is_what_is_measured_on_other_faces():
    fitted = fit_uncertainty(*faces()[:3], ABOUT)
    errors, confidence, heatmap_std, true = faces(seed=1)
    expected = fitted.expected_error(confidence, heatmap_std)
    # The ends of the map are flat; between them it follows the true mean.
    low, high = np.quantile(true, [0.05, 0.95])
    inner = (true > low) & (true < high)
    ratio = np.log(expected / true)[inner]
    assert abs(ratio.mean()) < 0.06
    assert ratio.std() < 0.12
    judged = assess(errors, expected, confidence)
    assert judged["calibration_error"] < 0.06 * judged["measured_error"]
    best = uncertainty.sparsification_error(errors.ravel(), true.ravel())
    assert judged["ause"] < best + 0.01
    assert judged["ause"] < judged["ause_confidence"] - 0.05 < judged["ause_random"] - 0.05


def test_lower_peaks_and_wider_heat_never_expect_less():
    fitted = fit_uncertainty(*faces()[:3], ABOUT)
    peaks, heatmap_stds = np.meshgrid(np.linspace(0, 1, 40), np.geomspace(1e-4, 1, 40))
    for k in range(10):
        expected = fitted.expected_error(
            np.repeat(peaks[..., None], 10, -1), np.repeat(heatmap_stds[..., None], 10, -1)
        )[..., k]
        assert (np.diff(expected, axis=1) <= 1e-9).all()
        assert (np.diff(expected, axis=0) >= -1e-9).all()
        assert np.ptp(expected) > 1


def test_nonsense_does_not_turn_the_map_round():
    """Where sure heatmaps err more, the map says nothing rather than the reverse of what it is for."""
    errors, confidence, heatmap_std, _ = faces()
    fitted = fit_uncertainty(1 / errors, confidence, heatmap_std, ABOUT)
    assert (fitted.peak_weight, fitted.std_weight) == (0, 0)
    expected = fitted.expected_error(confidence, heatmap_std)
    np.testing.assert_allclose(expected, expected[:1].repeat(len(expected), 0))
    # And if only one of the two is of use, that one is used.
    fitted = fit_uncertainty(heatmap_std * 100.0 * confidence, confidence, heatmap_std, ABOUT)
    assert fitted.peak_weight == 0
    assert fitted.std_weight > 0.8


def test_missing_landmarks_do_not_count():
    errors, confidence, heatmap_std, _ = faces()
    missing = np.random.default_rng(2).random(errors.shape) < 0.3
    missing[:, 3] = True
    some = fit_uncertainty(np.where(missing, np.nan, errors), confidence, heatmap_std, ABOUT)
    wild = confidence.copy(), heatmap_std.copy()
    wild[0][missing], wild[1][missing] = 0.5, 1.0
    again = fit_uncertainty(np.where(missing, np.nan, errors), *wild, ABOUT)
    assert some.to_dict() == again.to_dict()
    # A landmark that was never there is taken for one like the others.
    assert some.offsets[3] == pytest.approx(np.delete(some.offsets, 3).mean(), abs=0.1)
    expected = some.expected_error(confidence, heatmap_std)
    judged, without = (
        assess(values, expected, confidence)
        for values in (np.where(missing, np.nan, errors), errors)
    )
    assert judged["num_landmarks"] == (~missing).sum() < without["num_landmarks"] == errors.size


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_faces_are_enough_for_a_map(n):
    fitted = fit_uncertainty(*faces(n=n)[:3], ABOUT)
    expected = fitted.expected_error(*faces(n=50, seed=3)[1:3])
    assert np.isfinite(expected).all()
    assert expected.min() >= 0


def test_faces_all_alike_give_one_number():
    same = np.full((40, 3), 0.5)
    fitted = fit_uncertainty(np.full((40, 3), 4.0), same, same, ABOUT)
    np.testing.assert_allclose(fitted.expected_error(same, same), 4.0)


def test_no_known_error_is_refused():
    unknown = np.full((4, 3), np.nan)
    for judge in (
        lambda: fit_uncertainty(unknown, np.ones((4, 3)), np.ones((4, 3)), ABOUT),
        lambda: assess(unknown, np.ones((4, 3)), np.ones((4, 3))),
    ):
        with pytest.raises(ValueError, match="no landmark with a known error"):
            judge()


def test_cross_validation_never_sees_the_group():
    errors, confidence, heatmap_std, _ = faces(n=60)
    groups = [f"photo{i // 3:02}" for i in range(60)]
    expected = cross_validate(errors, confidence, heatmap_std, groups)
    first = np.array(groups) == "photo00"
    changed = np.where(first[:, None], 1000.0, errors)
    again = cross_validate(changed, confidence, heatmap_std, groups)
    np.testing.assert_array_equal(again[first], expected[first])
    # Those of other folds saw it.
    assert (again[3:6] > expected[3:6]).all()
    with pytest.raises(ValueError, match="one image"):
        cross_validate(errors, confidence, heatmap_std, ["a"] * 60)


def test_sparsification_of_the_oracle_of_none_and_of_the_reverse():
    errors = np.random.default_rng(0).exponential(1, 4000)
    assert uncertainty.sparsification_error(errors, errors) == pytest.approx(0, abs=1e-12)
    nothing = uncertainty.sparsification_error(errors, np.zeros(4000))
    # The exponential's mean of its smallest part q is 1 + (1 - q) log(1 - q) / q; 1 less its mean over q.
    q = (np.arange(100_000) + 0.5) / 100_000
    oracle = (1 + (1 - q) * np.log1p(-q) / q).mean()
    assert nothing == pytest.approx(1 - oracle, abs=0.02)
    assert uncertainty.sparsification_error(errors, -errors) > nothing


def test_equals_are_taken_away_together():
    errors = np.array([1.0, 3.0, 2.0, 6.0])
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]]
    predicted = np.array([0.0, 0.0, 1.0, 1.0])
    found = {
        round(uncertainty.sparsification_error(errors[order], predicted[order]), 12)
        for order in orders
    }
    # Left: 2, 2, 8/3, 3; of the oracle: 1, 1.5, 2, 3; the mean is 3.
    assert found == {round((1 + 0.5 + 2 / 3 + 0) / 4 / 3, 12)}


def test_reliability_bins_hold_as_many_landmarks_each_in_order():
    errors, confidence, heatmap_std, _ = faces()
    expected = fit_uncertainty(errors, confidence, heatmap_std, ABOUT).expected_error(
        confidence, heatmap_std
    )
    bins = assess(errors, expected, confidence)["reliability"]
    assert [row["num_landmarks"] for row in bins] == [200] * 10
    means = [row["expected_error"] for row in bins]
    assert means == sorted(means)
    last = np.argsort(expected.ravel(), kind="stable")[-200:]
    assert bins[-1]["measured_error"] == pytest.approx(errors.ravel()[last].mean())


def test_plain_types_and_back():
    fitted = fit_uncertainty(*faces()[:3], ABOUT)
    again = UncertaintyModel.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again.to_dict() == fitted.to_dict()
    assert again.fitted_on == ABOUT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_weight": -0.1}, "negative"),
        ({"std_weight": np.nan}, "not finite"),
        ({"scores": np.array([1.0, 1.0])}, "not monotone"),
        ({"errors": np.array([2.0, 1.0])}, "not monotone"),
        ({"scores": np.zeros(0), "errors": np.zeros(0)}, "one at least"),
        ({"offsets": np.array([np.inf])}, "not finite"),
    ],
)
def test_a_map_that_is_none_is_refused(changes, message):
    good = UncertaintyModel(
        0.1, 1.0, np.zeros(1), np.array([0.0, 1.0]), np.array([1.0, 2.0]), ABOUT
    )
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(good, **changes)


def test_weights_are_as_good_as_copies():
    errors, confidence, heatmap_std = faces()[:3]
    errors = np.where(np.random.default_rng(3).random(errors.shape) < 0.1, np.nan, errors)
    twice = np.arange(len(errors)) < 100
    copied = [
        np.concatenate([values, values[twice]]) for values in (errors, confidence, heatmap_std)
    ]
    expected = fit_uncertainty(*copied, ABOUT)
    weights = np.where(twice, 2.0, 1.0)
    found = fit_uncertainty(errors, confidence, heatmap_std, ABOUT, weights=weights)
    assert found.peak_weight == pytest.approx(expected.peak_weight)
    assert found.std_weight == pytest.approx(expected.std_weight)
    np.testing.assert_allclose(found.offsets, expected.offsets)
    # The bins end at other faces.
    of_faces = [fit.expected_error(confidence, heatmap_std) for fit in (found, expected)]
    np.testing.assert_allclose(*of_faces, rtol=0.1)
    same = fit_uncertainty(errors, confidence, heatmap_std, ABOUT, weights=np.ones(len(errors)))
    assert same.to_dict() == fit_uncertainty(errors, confidence, heatmap_std, ABOUT).to_dict()
