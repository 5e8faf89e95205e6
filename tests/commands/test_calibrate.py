"""`lcgcn research calibrate` on synthetic faces, whose occluded landmarks are known.

Of a model of two steps in unit tests; of the shipped one, whose errors mean something, in integration tests.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data.annotation_offsets import AnnotationOffsets
from lcgcn_jax.data.corruptions import CORRUPTIONS
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.evaluation.face_errors import split_errors
from lcgcn_jax.evaluation.predictions import with_flip_test
from lcgcn_jax.inference.model import load_model
from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.models.bundles import CONFIG, SHIPPED, find_bundle
from lcgcn_jax.synthetic import draw_face

MODEL = "w300-lcgcn-small"
BATCH = ["--batch-size", "8"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Model, and data for calibration and test."""

    bundle: Path
    data: Path
    test: str
    photo: str
    num_faces: int
    num_landmarks: int
    is_trained: bool


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in ("small", "shipped")],
)
def case(request, small_run, synthetic98, synthetic68):
    if request.param == "small":
        photo = sorted((synthetic98 / "official").rglob("*.jpg"))[0]
        return Case(small_run / "best", synthetic98, "test", str(photo), 24, 98, False)
    photo = synthetic68 / "official/afw/synthetic_000000.jpg"
    test = "common+challenge+test"
    return Case(find_bundle(MODEL), synthetic68, test, str(photo), 16, 68, True)


def shipped(test):
    return pytest.mark.slow(pytest.mark.parametrize("case", ["shipped"], indirect=True)(test))


@pytest.fixture(scope="module")
def plain(case, tmp_path_factory):
    """The model without a calibration."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    folder.mkdir()
    for path in case.bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / CONFIG).read_text())
    for name in ("uncertainty", "calibration"):  # today's and the former name
        config.pop(name, None)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def calibrated(plain, case, tmp_path_factory):
    """The model, calibrated on the training faces, and the output of the command."""
    out = tmp_path_factory.mktemp("calibrated") / "model"
    words = ["--model", plain, "--data", case.data, "--split", "train+validation", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        output = []
        patch.setattr("lcgcn_jax.evaluation.calibrate_bundle._MIN_FACES", 100)
        patch.setattr(
            "builtins.print", lambda *words, **_: output.append(" ".join(map(str, words)))
        )
        assert main(["calibrate", *map(str, words), *BATCH]) == 0
    return out, "\n".join(output)


@pytest.fixture(scope="module")
def measured(calibrated, case):
    """Predicted and measured errors of the test faces in percent, and the mask of occluded landmarks."""
    dataset, model = open_dataset(case.data), load_model(calibrated[0])
    errors_of_split = split_errors(
        model.predict_crops, dataset, case.test, image_size=model.image_size, batch_size=8
    )
    expected = model.calibration.predict(errors_of_split.confidence, errors_of_split.heatmap_std)
    names = [record["name"] for record in dataset.source(case.test)]
    seeds = [int(name.rsplit("_")[-1].split(".")[0]) for name in names]
    occluded = np.stack([draw_face(seed, IBUG68).occluded for seed in seeds])
    return expected, 100 * errors_of_split.landmarks, occluded


@shipped
def test_occluded_landmarks_have_larger_predicted_errors(measured):
    expected, errors, occluded = measured
    assert 50 < occluded.sum() < 300
    assert errors[occluded].mean() > 1.5 * errors[~occluded].mean()
    assert expected[occluded].mean() > 1.5 * expected[~occluded].mean()
    # Also for each landmark over all faces, and for each face over its landmarks.
    for values, hidden in ((expected, occluded), (expected.T, occluded.T)):
        rows = hidden.any(axis=1) & ~hidden.all(axis=1)
        pairs = zip(values[rows], hidden[rows], strict=True)
        assert np.mean([row[h].mean() > row[~h].mean() for row, h in pairs]) > 0.85


@shipped
def test_predicted_errors_match_the_errors_of_test_faces(measured):
    expected, errors, _ = measured
    assert expected.mean() == pytest.approx(errors.mean(), rel=0.25)
    assert np.corrcoef(np.log(expected).ravel(), np.log(errors + 0.1).ravel())[0, 1] > 0.4


def test_output_has_the_quality_for_each_corruption(calibrated, case):
    out, output = calibrated
    num_faces = sum(map(open_dataset(case.data).num_faces.get, ("train", "validation")))
    assert f"warning: only {num_faces} faces; with fewer than 100, " in output
    for corrupt in CORRUPTIONS:
        assert f"{'clean' if corrupt == 'none' else corrupt}; cross-validated" in output
    assert output.count("AUSE 0." if case.is_trained else "AUSE ") == len(CORRUPTIONS)
    assert f"{out}: calibrated; errors are in % of the distance from left_eye_0 to right" in output


def test_eval_reports_the_quality(calibrated, case, tmp_path, capsys):
    words = ["--model", calibrated[0], "--data", case.data, *BATCH]
    results = {}
    for split in (case.test, "validation"):
        path = tmp_path / f"{split}.json"
        assert main(["eval", *map(str, words), "--split", split, "--json", str(path)]) == 0
        results[split] = json.loads(path.read_text())["calibration"]
        output = capsys.readouterr().out
        assert ("(optimistic: fitted on faces of this split)" in output) == (split == "validation")
    test = results[case.test]
    assert not test["fitted_here"]
    assert results["validation"]["fitted_here"]
    assert test["num_landmarks"] == case.num_faces * case.num_landmarks
    assert test["num_landmarks"] == sum(r["num_landmarks"] for r in test["reliability"])
    if case.is_trained:
        assert 0 < test["ause"] < 0.6 * test["ause_random"]
        assert test["ause"] < test["ause_confidence"]


def test_eval_of_an_uncalibrated_model_has_no_calibration(plain, case, tmp_path, capsys):
    path = tmp_path / "eval.json"
    words = ["--model", plain, "--data", case.data, "--split", "test", "--json", path, *BATCH]
    assert main(["eval", *map(str, words)]) == 0
    assert "calibration" not in json.loads(path.read_text())
    assert "AUSE" not in capsys.readouterr().out


def predicted_face(model, case, out):
    words = ["--model", model, case.photo, "--whole-image", "--out", out]
    assert main(["predict", *map(str, words)]) == 0
    (face,) = json.loads((out / f"{Path(case.photo).stem}.json").read_text())["faces"]
    return face


@pytest.mark.slow
def test_predict_reports_predicted_errors(calibrated, case, tmp_path):
    face = predicted_face(calibrated[0], case, tmp_path / "out")
    # The whole image is the crop of this box.
    box = (18.7, 18.7, 172.3, 172.3)
    (predicted,) = load_model(calibrated[0]).predict(case.photo, [box])
    assert predicted.predicted_error.shape == (case.num_landmarks,)
    assert (predicted.predicted_error > 0).all()
    np.testing.assert_allclose(face["predicted_error"], predicted.predicted_error, atol=0.01)


def test_predict_of_an_uncalibrated_model_has_no_predicted_errors(plain, case, tmp_path):
    assert "expected_error" not in predicted_face(plain, case, tmp_path / "out")


@shipped
def test_heatmap_std_of_a_flip_test(calibrated, case):
    dataset, model = open_dataset(case.data), load_model(calibrated[0])
    predict = with_flip_test(model.predict_crops, model.scheme)
    both = split_errors(predict, dataset, "test", image_size=model.image_size, batch_size=8)
    one = split_errors(
        model.predict_crops, dataset, "test", image_size=model.image_size, batch_size=8
    )
    assert np.corrcoef(both.heatmap_std.ravel(), one.heatmap_std.ravel())[0, 1] > 0.6
    assert (both.heatmap_std != one.heatmap_std).mean() > 0.9


def test_model_is_calibrated_in_place_only_once(calibrated, error_line, case):
    words = ["--model", calibrated[0], "--data", case.data, "--split", "validation", *BATCH]
    assert "is already calibrated; give --out or --overwrite" in error_line("calibrate", *words)
    before = json.loads((calibrated[0] / CONFIG).read_text())
    assert main(["calibrate", *map(str, words), "--overwrite"]) == 0
    after = json.loads((calibrated[0] / CONFIG).read_text())
    assert after["uncertainty"]["fitted_on"]["split"] == "validation"
    (calibrated[0] / CONFIG).write_text(json.dumps(before))
    assert {k: v for k, v in after.items() if k != "uncertainty"} == {
        k: v for k, v in before.items() if k != "uncertainty"
    }


def test_shipped_model_is_not_changed(error_line, synthetic68):
    error = error_line("calibrate", "--model", MODEL, "--data", synthetic68)
    assert f"{MODEL}: comes with the package; give --out" in error
    error = error_line("calibrate", "--model", SHIPPED / MODEL, "--data", synthetic68)
    assert "comes with the package" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "nowhere: no such bundle"),
        ({"--out": "."}, ".: already exists"),
        ({"--split": "tset"}, "no split 'tset'"),
        ({"--batch-size": "0"}, "has to be at least 1"),
    ],
)
def test_invalid_input_is_an_error(error_line, small_run, synthetic98, tmp_path, changes, message):
    words = {"--model": small_run, "--data": synthetic98, "--out": tmp_path / "out"} | changes
    assert message in error_line("calibrate", *[word for pair in words.items() for word in pair])
    assert not (tmp_path / "out").exists()


def test_dataset_with_another_scheme_is_an_error(error_line, small_run, synthetic68, tmp_path):
    words = ["--model", small_run, "--data", synthetic68, "--out", tmp_path / "out"]
    error = error_line("calibrate", *words)
    assert "68 points (ibug68), but the checkpoint was trained for 98 (wflw98)" in error


@pytest.mark.slow
def test_several_datasets_with_offsets(plain, case, error_line, tmp_path, capsys):
    more, file = tmp_path / "more", tmp_path / "offsets.json"
    shutil.copytree(case.data, more)
    scheme = open_dataset(more).scheme
    frame = np.random.default_rng(0).normal(size=(scheme.num_landmarks, 2))
    offsets = AnnotationOffsets(scheme.name, frame, np.full(frame.shape, 0.1), {})
    file.write_text(json.dumps(offsets.to_dict()))
    words = ["calibrate", "--model", plain, "--split", "test", "--data", case.data, *BATCH]
    assert "give each dataset folder only once" in error_line(
        *words, "--data", case.data, "--out", tmp_path / "a"
    )
    assert f"--offsets {more}: no such --data" in error_line(
        *words, "--offsets", more, file, "--out", tmp_path / "a"
    )
    out = tmp_path / "calibrated"
    words += ["--data", more, "--offsets", more, file, "--out", out]
    assert main([str(word) for word in words]) == 0
    output = capsys.readouterr().out
    rows = [
        line for line in output.splitlines() if line.startswith((f"{case.data}, ", f"{more}, "))
    ]
    assert any(row.startswith(f"{case.data}, all") for row in rows)
    assert any(row.startswith(f"{more}, all") for row in rows)
    fitted_on = json.loads((out / CONFIG).read_text())["uncertainty"]["fitted_on"]
    fingerprint = open_dataset(more).fingerprint
    assert fitted_on["fingerprint"] == f"{fingerprint}+{fingerprint}"
    assert fitted_on["offsets"] == f"+{offsets.digest}"
