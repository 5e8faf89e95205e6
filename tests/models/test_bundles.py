import dataclasses
import errno
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import IBUG68, LandmarkScheme
from lcgcn_jax.models.bundles import (
    CARD,
    CONFIG,
    WEIGHTS,
    Bundle,
    abstract_weights,
    find_bundle,
    load_bundle,
    save_bundle,
    save_uncertainty,
)
from lcgcn_jax.models.weights import split_weights
from lcgcn_jax.uncertainty import UncertaintyModel

SCHEME = LandmarkScheme.from_dict({"name": "three", "num_landmarks": 3, "mirror_pairs": [[0, 2]]})
MODEL = {
    "heatmap": {"name": "toy", "width": 4},
    "decode": "dark",
    "graph": {"embedding_widths": [5, 2], "gcn_widths": [4, 2], "norm": "batch"},
    "bn_momentum": 0.9,
}
NAME = "heatmap_model.first.conv.kernel"


@pytest.fixture
def bundle(toy):
    _, params, batch_stats = abstract_weights(MODEL, 3)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=w.shape).astype(np.float32)
        for name, w in (params | batch_stats).items()
    }
    return Bundle(MODEL, SCHEME, 64, weights)


@pytest.fixture
def saved(bundle, tmp_path):
    save_bundle(tmp_path / "model", bundle, "# A model\n")
    return tmp_path / "model"


def test_bundle_that_cannot_be_written_leaves_no_folder(bundle, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        save_bundle(tmp_path / "model", bundle, "# A model\n")
    assert list(tmp_path.iterdir()) == []


def test_bundle_loads_as_saved(bundle, saved):
    loaded = load_bundle(saved)
    assert (loaded.model, loaded.scheme, loaded.image_size) == (MODEL, SCHEME, 64)
    assert loaded.weights.keys() == bundle.weights.keys()
    for name, value in bundle.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)
        assert loaded.weights[name].dtype == np.float32
    assert (saved / CARD).read_text() == "# A model\n"


def test_float16_bundle_is_half_as_large_and_loads_as_float32(bundle, saved, tmp_path):
    save_bundle(tmp_path / "half", bundle, "", dtype=np.float16)
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (saved, tmp_path / "half")]
    num_halved = sum(np.size(value) for value in bundle.weights.values() if np.ndim(value) > 1)
    # The header of the file has the offsets of the weights as decimal numbers.
    assert sizes[0] - sizes[1] == pytest.approx(2 * num_halved, abs=len(bundle.weights) * 4)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    loaded = load_bundle(tmp_path / "half")
    assert {value.dtype for value in loaded.weights.values()} == {np.dtype(np.float32)}
    for name, value in bundle.weights.items():
        is_matrix = value.ndim > 1
        assert stored[name].dtype == (np.float16 if is_matrix else np.float32)
        np.testing.assert_array_equal(loaded.weights[name], stored[name].astype(np.float32))
        np.testing.assert_allclose(loaded.weights[name], value, rtol=1e-3 if is_matrix else 0)
    _, params, batch_stats = loaded.create()
    assert {value.dtype for value in (params | batch_stats).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, "bfloat16"])
def test_floating_point_weights_load_as_float32(bundle, saved, dtype):
    stored = {name: value.astype(dtype) for name, value in bundle.weights.items()}
    save_file(stored, saved / WEIGHTS)
    for name, value in load_bundle(saved).weights.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, stored[name].astype(np.float32))


def test_transposed_views_load_as_saved(bundle, tmp_path):
    weights = {name: np.asfortranarray(value) for name, value in bundle.weights.items()}
    save_bundle(tmp_path / "model", dataclasses.replace(bundle, weights=weights), "")
    loaded = load_bundle(tmp_path / "model")
    for name, value in bundle.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)


def test_model_has_the_weights_of_the_bundle(bundle):
    _, params, batch_stats = split_weights(bundle.create().merge())
    assert params.keys() | batch_stats.keys() == bundle.weights.keys()
    for name, value in (params | batch_stats).items():
        np.testing.assert_array_equal(value, bundle.weights[name])


def test_existing_bundle_is_replaced(bundle, saved):
    newer = dataclasses.replace(
        bundle, weights={name: value + 1 for name, value in bundle.weights.items()}
    )
    save_bundle(saved, newer, "# Newer\n")
    np.testing.assert_array_equal(load_bundle(saved).weights[NAME], newer.weights[NAME])
    assert {path.name for path in saved.iterdir()} == {WEIGHTS, CONFIG, CARD}


def test_workdir_refers_to_its_best_model(bundle, tmp_path):
    save_bundle(tmp_path / "run" / "best", bundle, "")
    assert find_bundle(tmp_path / "run") == tmp_path / "run" / "best"


def test_run_without_validation_is_an_error(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run: .*not been validated yet"):
        find_bundle(tmp_path / "run")


@pytest.mark.parametrize(("exists", "message"), [(True, "neither a bundle"), (False, "no such")])
def test_folder_without_bundle_is_an_error(tmp_path, exists, message):
    if exists:
        (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"folder: {message}"):
        load_bundle(tmp_path / "folder")


def load_error(path):
    with pytest.raises(InputError) as error:
        load_bundle(path)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_weights_are_an_error(saved, size):
    path = saved / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    assert load_error(saved).startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop(NAME), f"1 weight cannot be used .* {NAME} is missing"),
        (lambda w: w.update(extra=np.zeros(2, np.float32)), "extra does not exist in the model"),
        (
            lambda w: w.update({NAME: w[NAME][..., :2].copy()}),
            rf"{NAME} has shape \(3, 3, 3, 2\) instead of \(3, 3, 3, 4\)",
        ),
        (lambda w: w.update({NAME: w[NAME].astype(np.int8)}), f"{NAME} has type int8"),
        (lambda w: w.update({NAME: np.nan * w[NAME]}), f"{NAME} has values that are NaN"),
    ],
    ids=["missing", "extra", "shape", "type", "nan"],
)
def test_weights_that_do_not_match_the_configuration_are_an_error(saved, change, reason):
    path = saved / WEIGHTS
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    message = load_error(saved)
    assert message.startswith(f"{path}: ")
    assert re.search(reason, message)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(format=2), "format 2, but this version reads format 1"),
        (lambda c: c.pop("format"), "no 'format'"),
        (lambda c: c.pop("model"), "no 'model'"),
        (lambda c: c["model"].pop("graph"), "no 'graph'"),
        (
            lambda c: c["model"].update(heatmap_offset="left"),
            "heatmap_offset: got 'left'; expected",
        ),
        (lambda c: c["model"]["heatmap"].update(name="resnet"), "no heatmap model 'resnet'"),
        (lambda c: c["model"]["graph"].update(norm="group"), "model.graph.norm: got 'group'"),
        (lambda c: c.update(image_size="large"), "large"),
        (lambda c: c.update(image_size=None), "None"),
        (lambda c: c["scheme"].update(mirror=[1, 2, 0]), "mirroring twice"),
    ],
)
def test_invalid_configuration_is_an_error(saved, change, reason):
    path = saved / CONFIG
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    message = load_error(saved)
    assert message.startswith(f"{path}: not the configuration of a bundle: ")
    assert reason in message


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_configuration_other_than_a_json_object_is_an_error(saved, content):
    (saved / CONFIG).write_bytes(content.encode("latin-1"))
    assert load_error(saved).startswith(f"{saved / CONFIG}: not the configuration of a bundle")


def test_weights_for_another_number_of_landmarks_are_an_error(bundle, tmp_path):
    save_bundle(tmp_path / "model", dataclasses.replace(bundle, scheme=IBUG68), "")
    assert "instead of" in load_error(tmp_path / "model")


CALIBRATION = UncertaintyModel(
    0.2,
    1.3,
    np.array([0.1, 0.0, -0.2]),
    np.array([-1.0, 2.0]),
    np.array([1.5, 9.0]),
    {"split": "s"},
)


def test_uncertainty_is_saved_and_loaded(bundle, saved, tmp_path):
    assert load_bundle(saved).calibration is None
    before = json.loads((saved / CONFIG).read_text())
    save_uncertainty(saved, CALIBRATION)
    loaded = load_bundle(saved)
    assert loaded.calibration.to_dict() == CALIBRATION.to_dict()
    after = json.loads((saved / CONFIG).read_text())
    assert after.pop("uncertainty") == CALIBRATION.to_dict()
    assert after == before
    save_bundle(tmp_path / "again", loaded, "")
    assert load_bundle(tmp_path / "again").calibration.to_dict() == CALIBRATION.to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": [0.0] * 4},
        {"errors": [2.0, 1.0]},
        {"errors": [2.0]},
        {"peak_weight": None},
        {"scores": "wide"},
        {"slope": 1},
    ],
)
def test_invalid_uncertainty_is_a_one_line_error(saved, changes):
    config = json.loads((saved / CONFIG).read_text())
    config["uncertainty"] = CALIBRATION.to_dict() | changes
    (saved / CONFIG).write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"config\.json: not the configuration of a bundle"
    ) as error:
        load_bundle(saved)
    assert "\n" not in str(error.value)
