import numpy as np
import pytest

from lcgcn_jax.evaluation.fit_uncertainty import cross_validate, fit_uncertainty
from lcgcn_jax.evaluation.metrics import sparsification_error, uncertainty_metrics

FITTED_ON = {"dataset": "d", "fingerprint": "f", "split": "validation"}


def make_faces(n=200, k=10, seed=0):
    """Errors, peaks and standard deviations of heatmaps, and true mean errors.

    An error is the norm of two normal variables, whose scale depends on peak, width and landmark.
    """
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 2, (n, k)).astype(np.float32)
    heatmap_std = np.exp(rng.normal(-3.5, 0.4, (n, k))).astype(np.float32)
    scale = 60 * (1 - confidence) ** 0.5 * heatmap_std**0.9 * np.linspace(0.6, 1.6, k)
    errors = np.linalg.norm(rng.normal(0, scale[..., None], (n, k, 2)), axis=-1)
    return errors, confidence, heatmap_std, scale * np.sqrt(np.pi / 2)


def test_predicted_error_is_the_mean_error_on_other_faces():
    fitted = fit_uncertainty(*make_faces()[:3], FITTED_ON)
    errors, confidence, heatmap_std, true = make_faces(seed=1)
    predicted = fitted.predict(confidence, heatmap_std)
    # The ends of the map are flat; between them it follows the true mean.
    low, high = np.quantile(true, [0.05, 0.95])
    ratio = np.log(predicted / true)[(true > low) & (true < high)]
    assert abs(ratio.mean()) < 0.06
    assert ratio.std() < 0.12
    metrics = uncertainty_metrics(errors, predicted, confidence)
    assert metrics["calibration_error"] < 0.06 * metrics["measured_error"]
    best = sparsification_error(errors.ravel(), true.ravel())
    assert metrics["ause"] < best + 0.01
    assert metrics["ause"] < metrics["ause_confidence"] - 0.05 < metrics["ause_random"] - 0.05


def test_predicted_error_is_monotone_in_peak_and_standard_deviation():
    fitted = fit_uncertainty(*make_faces()[:3], FITTED_ON)
    peaks, heatmap_stds = np.meshgrid(np.linspace(0, 1, 40), np.geomspace(1e-4, 1, 40))
    inputs = (values[..., None].repeat(10, axis=-1) for values in (peaks, heatmap_stds))
    predicted = fitted.predict(*inputs)
    assert (np.diff(predicted, axis=1) <= 1e-9).all()
    assert (np.diff(predicted, axis=0) >= -1e-9).all()
    assert (np.ptp(predicted, axis=(0, 1)) > 1).all()


def test_weights_of_the_score_are_not_negative():
    """If confident heatmaps have larger errors, the predicted error does not depend on them."""
    errors, confidence, heatmap_std, _ = make_faces()
    fitted = fit_uncertainty(1 / errors, confidence, heatmap_std, FITTED_ON)
    assert (fitted.peak_weight, fitted.std_weight) == (0, 0)
    predicted = fitted.predict(confidence, heatmap_std)
    np.testing.assert_allclose(predicted, predicted[:1].repeat(len(predicted), 0))
    # Only one of the two is reversed.
    fitted = fit_uncertainty(heatmap_std * 100.0 * confidence, confidence, heatmap_std, FITTED_ON)
    assert fitted.peak_weight == 0
    assert fitted.std_weight > 0.8


def test_missing_landmarks_are_masked():
    errors, confidence, heatmap_std, _ = make_faces()
    missing = np.random.default_rng(2).random(errors.shape) < 0.3
    missing[:, 3] = True
    masked = np.where(missing, np.nan, errors)
    fitted = fit_uncertainty(masked, confidence, heatmap_std, FITTED_ON)
    other_inputs = np.where(missing, 0.5, confidence), np.where(missing, 1.0, heatmap_std)
    assert fitted.to_dict() == fit_uncertainty(masked, *other_inputs, FITTED_ON).to_dict()
    # A landmark without any annotation gets the mean offset.
    assert fitted.offsets[3] == pytest.approx(np.delete(fitted.offsets, 3).mean(), abs=0.1)
    predicted = fitted.predict(confidence, heatmap_std)
    counts = [
        uncertainty_metrics(values, predicted, confidence)["num_landmarks"]
        for values in (masked, errors)
    ]
    assert counts == [(~missing).sum(), errors.size]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_faces_suffice_for_a_fit(n):
    fitted = fit_uncertainty(*make_faces(n=n)[:3], FITTED_ON)
    predicted = fitted.predict(*make_faces(n=50, seed=3)[1:3])
    assert np.isfinite(predicted).all()
    assert predicted.min() >= 0


def test_equal_faces_have_one_predicted_error():
    values = np.full((40, 3), 0.5)
    fitted = fit_uncertainty(np.full((40, 3), 4.0), values, values, FITTED_ON)
    np.testing.assert_allclose(fitted.predict(values, values), 4.0)


def test_unknown_errors_only_is_an_error():
    unknown, ones = np.full((4, 3), np.nan), np.ones((4, 3))
    with pytest.raises(ValueError, match="no landmark with a known error"):
        fit_uncertainty(unknown, ones, ones, FITTED_ON)
    with pytest.raises(ValueError, match="no landmark with a known error"):
        uncertainty_metrics(unknown, ones, ones)


def test_cross_validation_leaves_the_group_out():
    errors, confidence, heatmap_std, _ = make_faces(n=60)
    groups = [f"photo{i // 3:02}" for i in range(60)]
    predicted = cross_validate(errors, confidence, heatmap_std, groups)
    first = np.array(groups) == "photo00"
    changed = np.where(first[:, None], 1000.0, errors)
    after_change = cross_validate(changed, confidence, heatmap_std, groups)
    np.testing.assert_array_equal(after_change[first], predicted[first])
    assert (after_change[3:6] > predicted[3:6]).all()  # of another fold
    with pytest.raises(ValueError, match="one image"):
        cross_validate(errors, confidence, heatmap_std, ["a"] * 60)


def test_reliability_bins_are_of_equal_size_and_ordered():
    errors, confidence, heatmap_std, _ = make_faces()
    fitted = fit_uncertainty(errors, confidence, heatmap_std, FITTED_ON)
    predicted = fitted.predict(confidence, heatmap_std)
    bins = uncertainty_metrics(errors, predicted, confidence)["reliability"]
    assert [row["num_landmarks"] for row in bins] == [200] * 10
    means = [row["expected_error"] for row in bins]
    assert means == sorted(means)
    last = np.argsort(predicted.ravel(), kind="stable")[-200:]
    assert bins[-1]["measured_error"] == pytest.approx(errors.ravel()[last].mean())


def test_weight_of_a_face_is_equivalent_to_copies():
    errors, confidence, heatmap_std = make_faces()[:3]
    errors = np.where(np.random.default_rng(3).random(errors.shape) < 0.1, np.nan, errors)
    is_double = np.arange(len(errors)) < 100
    copied = [
        np.concatenate([values, values[is_double]]) for values in (errors, confidence, heatmap_std)
    ]
    expected = fit_uncertainty(*copied, FITTED_ON)
    weights = np.where(is_double, 2.0, 1.0)
    weighted = fit_uncertainty(errors, confidence, heatmap_std, FITTED_ON, weights=weights)
    assert weighted.peak_weight == pytest.approx(expected.peak_weight)
    assert weighted.std_weight == pytest.approx(expected.std_weight)
    np.testing.assert_allclose(weighted.offsets, expected.offsets)
    # The bins end at other faces.
    predicted = [fit.predict(confidence, heatmap_std) for fit in (weighted, expected)]
    np.testing.assert_allclose(*predicted, rtol=0.1)
    unweighted = fit_uncertainty(errors, confidence, heatmap_std, FITTED_ON)
    equal = fit_uncertainty(
        errors, confidence, heatmap_std, FITTED_ON, weights=np.ones(len(errors))
    )
    assert equal.to_dict() == unweighted.to_dict()
