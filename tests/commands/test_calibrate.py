"""Calibration on synthetic faces, whose points are known to be covered or not.

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
from lcgcn_jax.evaluation.evaluator import split_errors, with_flip_test
from lcgcn_jax.inference.model import load
from lcgcn_jax.landmarks import IBUG68
from lcgcn_jax.models.bundles import CONFIG, SHIPPED, find_bundle
from lcgcn_jax.synthetic import draw_face

MODEL = "w300-lcgcn-small"
BATCH = ["--batch-size", "8"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and the data on which it is calibrated and tested."""

    bundle: Path
    data: Path
    test: str
    photo: str
    num_faces: int
    num_landmarks: int
    is_trained: bool


@pytest.fixture(scope="module", params=["small", pytest.param("shipped", marks=pytest.mark.slow)])
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
    """The model without a calibration of its own."""
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
    """The same, calibrated on the training faces; and what the command said."""
    out = tmp_path_factory.mktemp("calibrated") / "model"
    words = ["--model", plain, "--data", case.data, "--split", "train+validation", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert main(["calibrate", *map(str, words), *BATCH]) == 0
    return out, "\n".join(said)


@pytest.fixture(scope="module")
def measured(calibrated, case):
    """Expected and true errors of the test faces in percent, and which points something covers."""
    dataset, model = open_dataset(case.data), load(calibrated[0])
    found = split_errors(
        model.predict_crops, dataset, case.test, image_size=model.image_size, batch_size=8
    )
    expected = model.calibration.expected_error(found.confidence, found.heatmap_std)
    names = [record["name"] for record in dataset.source(case.test)]
    seeds = [int(name.rsplit("_")[-1].split(".")[0]) for name in names]
    occluded = np.stack([draw_face(seed, IBUG68).occluded for seed in seeds])
    return expected, 100 * found.landmarks, occluded


@shipped
def test_covered_points_are_expected_to_be_further_off(measured):
    expected, errors, occluded = measured
    assert 50 < occluded.sum() < 300
    assert errors[occluded].mean() > 1.5 * errors[~occluded].mean()
    assert expected[occluded].mean() > 1.5 * expected[~occluded].mean()
    # Not because of which points these are, or of which faces: point by point, and face by face.
    for values, hidden in ((expected, occluded), (expected.T, occluded.T)):
        rows = hidden.any(axis=1) & ~hidden.all(axis=1)
        pairs = zip(values[rows], hidden[rows], strict=True)
        assert np.mean([row[h].mean() > row[~h].mean() for row, h in pairs]) > 0.85


@shipped
def test_expected_errors_are_those_of_faces_that_were_not_fitted(measured):
    expected, errors, _ = measured
    assert expected.mean() == pytest.approx(errors.mean(), rel=0.25)
    assert np.corrcoef(np.log(expected).ravel(), np.log(errors + 0.1).ravel())[0, 1] > 0.4


def test_command_says_how_good_it_is_under_every_damage(calibrated, case):
    out, said = calibrated
    for corrupt in CORRUPTIONS:
        assert f"{'as they are' if corrupt == 'none' else corrupt}; cross-validated" in said
    assert said.count("AUSE 0." if case.is_trained else "AUSE ") == len(CORRUPTIONS)
    assert f"{out}: calibrated; errors are in % of the distance from left_eye_0 to right" in said


def test_eval_reports_it(calibrated, case, tmp_path, capsys):
    words = ["--model", calibrated[0], "--data", case.data, *BATCH]
    results = {}
    for split in (case.test, "validation"):
        path = tmp_path / f"{split}.json"
        assert main(["eval", *map(str, words), "--split", split, "--json", str(path)]) == 0
        results[split] = json.loads(path.read_text())["calibration"]
        said = capsys.readouterr().out
        assert ("(optimiztic: fitted on faces of this split)" in said) == (split == "validation")
    test = results[case.test]
    assert not test["fitted_here"]
    assert results["validation"]["fitted_here"]
    assert test["num_landmarks"] == case.num_faces * case.num_landmarks
    assert test["num_landmarks"] == sum(r["num_landmarks"] for r in test["reliability"])
    if case.is_trained:
        assert 0 < test["ause"] < 0.6 * test["ause_random"]
        assert test["ause"] < test["ause_confidence"]


def test_uncalibrated_model_says_nothing_of_it(plain, case, tmp_path, capsys):
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
def test_predict_reports_it(calibrated, case, tmp_path):
    face = predicted_face(calibrated[0], case, tmp_path / "out")
    # The whole picture is the crop of this box.
    box = (18.7, 18.7, 172.3, 172.3)
    (found,) = load(calibrated[0]).predict(case.photo, [box])
    assert found.expected_error.shape == (case.num_landmarks,)
    assert (found.expected_error > 0).all()
    np.testing.assert_allclose(face["expected_error"], found.expected_error, atol=0.01)


def test_predict_reports_nothing_of_an_uncalibrated_model(plain, case, tmp_path):
    assert "expected_error" not in predicted_face(plain, case, tmp_path / "out")


@shipped
def test_expected_error_of_a_flip_test(calibrated, case):
    dataset, model = open_dataset(case.data), load(calibrated[0])
    predict = with_flip_test(model.predict_crops, model.scheme)
    both = split_errors(predict, dataset, "test", image_size=model.image_size, batch_size=8)
    one = split_errors(
        model.predict_crops, dataset, "test", image_size=model.image_size, batch_size=8
    )
    assert np.corrcoef(both.heatmap_std.ravel(), one.heatmap_std.ravel())[0, 1] > 0.6
    assert (both.heatmap_std != one.heatmap_std).mean() > 0.9


def test_model_itself_gets_the_map_once(calibrated, refused, case):
    words = ["--model", calibrated[0], "--data", case.data, "--split", "validation", *BATCH]
    assert "is calibrated already; give --out or --overwrite" in refused("calibrate", *words)
    before = json.loads((calibrated[0] / CONFIG).read_text())
    assert main(["calibrate", *map(str, words), "--overwrite"]) == 0
    after = json.loads((calibrated[0] / CONFIG).read_text())
    assert after["uncertainty"]["fitted_on"]["split"] == "validation"
    (calibrated[0] / CONFIG).write_text(json.dumps(before))
    assert {k: v for k, v in after.items() if k != "uncertainty"} == {
        k: v for k, v in before.items() if k != "uncertainty"
    }


def test_what_comes_with_the_package_stays_as_it_is(refused, synthetic68):
    said = refused("calibrate", "--model", MODEL, "--data", synthetic68)
    assert f"{MODEL}: comes with the package; give --out" in said
    said = refused("calibrate", "--model", SHIPPED / MODEL, "--data", synthetic68)
    assert "comes with the package" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "nowhere: no such bundle"),
        ({"--out": "."}, ".: already exists"),
        ({"--split": "tset"}, "no split 'tset'"),
        ({"--batch-size": "0"}, "has to be at least 1"),
    ],
)
def test_bad_input_is_refused(refused, small_run, synthetic98, tmp_path, changes, message):
    words = {"--model": small_run, "--data": synthetic98, "--out": tmp_path / "out"} | changes
    assert message in refused("calibrate", *[word for pair in words.items() for word in pair])
    assert not (tmp_path / "out").exists()


def test_data_of_other_points_is_refused(refused, small_run, synthetic68, tmp_path):
    words = ["--model", small_run, "--data", synthetic68, "--out", tmp_path / "out"]
    said = refused("calibrate", *words)
    assert "68 points (ibug68), but the checkpoint was trained for 98 (wflw98)" in said


def test_several_data_sets_and_their_offsets(plain, case, refused, tmp_path, capsys):
    more, file = tmp_path / "more", tmp_path / "offsets.json"
    shutil.copytree(case.data, more)
    scheme = open_dataset(more).scheme
    frame = np.random.default_rng(0).normal(size=(scheme.num_landmarks, 2))
    offsets = AnnotationOffsets(scheme.name, frame, np.full(frame.shape, 0.1), {})
    file.write_text(json.dumps(offsets.to_dict()))
    words = ["calibrate", "--model", plain, "--split", "test", "--data", case.data, *BATCH]
    assert "give each folder once" in refused(*words, "--data", case.data, "--out", tmp_path / "a")
    assert f"--offsets {more}: no such --data" in refused(
        *words, "--offsets", more, file, "--out", tmp_path / "a"
    )
    out = tmp_path / "calibrated"
    words += ["--data", more, "--offsets", more, file, "--out", out]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith((f"{case.data}, ", f"{more}, "))]
    assert any(row.startswith(f"{case.data}, all") for row in rows)
    assert any(row.startswith(f"{more}, all") for row in rows)
    fitted_on = json.loads((out / CONFIG).read_text())["uncertainty"]["fitted_on"]
    fingerprint = open_dataset(more).fingerprint
    assert fitted_on["fingerprint"] == f"{fingerprint}+{fingerprint}"
    assert fitted_on["offsets"] == f"+{offsets.digest}"
