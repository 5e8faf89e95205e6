import dataclasses
import re

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.data import records
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.formats import w300
from lcgcn_jax.evaluation.detector_boxes import detector_boxes
from lcgcn_jax.inference.face_detector import FaceDetector


@pytest.fixture(scope="module")
def real_faces(shared, tmp_path_factory):
    """Dataset with five images of 300W, all of them in the split train."""
    out = tmp_path_factory.mktemp("data") / "w300"
    faces = w300.read(shared / "data/300w_fullsize")
    records.prepare(dataclasses.replace(faces, has_validation=False), out)
    return out


def test_box_map_is_compared_with_a_fitted_one(real_faces, detector_model, capsys):
    arguments = ["--data", real_faces, "--test-split", "train", "--detector-model", detector_model]
    assert main(["calibrate-detector", *map(str, arguments)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("train: 5 of 5 faces detected (100.00 %)\n")
    rows = dict(re.findall(r"^(as detected|constants|with points|BOX_MAP) +(.*)$", output, re.M))
    distance = {name: float(row.split()[2]) for name, row in rows.items()}
    assert distance["with points"] < distance["BOX_MAP"] < 6 < distance["as detected"]
    assert len(re.findall(r"^ ?\[.*\]", output.partition("coefficients")[2], re.M)) == 11


def test_missed_face_has_the_box_of_its_landmarks(real_faces, detector_model, monkeypatch):
    dataset, detector = open_dataset(real_faces), FaceDetector(detector_model)
    all_boxes, missed = detector_boxes(detector, dataset, "train")
    assert missed == 0
    detect = detector.detect
    answers = iter([detect, lambda image: detect(image).take([])] + 3 * [detect])
    monkeypatch.setattr(detector, "detect", lambda image: next(answers)(image))
    boxes, missed = detector_boxes(detector, dataset, "train")
    assert missed == 1
    assert (boxes[1] == dataset.source("train")[1]["box"]).all()
    assert (boxes[[0, 2, 3, 4]] == all_boxes[[0, 2, 3, 4]]).all()
