import csv
import dataclasses
import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from lcgcn_jax.data.formats.pts import format_pts, read_pts
from lcgcn_jax.inference import batch_predict, results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.landmarks import LandmarkScheme

SCHEME = LandmarkScheme.from_dict({"name": "three", "names": ["tip", "left", "right"]})


def face(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0, 1, 3).astype(np.float32)
    box = np.array([1.0, 2.0, 30.0, 40.0])
    return Face(box, rng.uniform(0, 99, (3, 2)), confidence, rng.uniform(0, 99, (3, 2)))


def test_csv_has_one_row_per_landmark(tmp_path):
    faces = [face(0), face(1)]
    (tmp_path / "a.csv").write_text(results.format_csv(faces, SCHEME))
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == results.CSV_COLUMNS
    assert [(row["face"], row["name"]) for row in rows] == [
        (number, name) for number in "01" for name in SCHEME.names
    ]
    point = [float(rows[4][column]) for column in ("x", "y")]
    np.testing.assert_allclose(point, faces[1].landmarks[1], atol=1e-3)
    assert float(rows[4]["confidence"]) == pytest.approx(float(faces[1].confidence[1]), abs=1e-4)
    assert {row["expected_error"] for row in rows} == {""}
    assert float(rows[4]["heatmap_y"]) == pytest.approx(faces[1].heatmap_landmarks[1, 1], abs=1e-3)


def test_predicted_errors_of_a_calibrated_model_are_written(tmp_path):
    plain = face(0)
    calibrated = dataclasses.replace(plain, predicted_error_percent=np.array([1.234, 5.0, 10.678]))
    assert not {"expected_error", "predicted_error"} & set(plain.to_dict())
    in_pixels = dataclasses.replace(calibrated, predicted_error=np.array([0.12345, 0.5, 1.0]))
    assert in_pixels.to_dict()["predicted_error"] == [0.123, 0.5, 1.0]
    assert calibrated.to_dict()["expected_error"] == [1.23, 5.0, 10.68]
    in_pixels = dataclasses.replace(in_pixels, score=0.75)
    (tmp_path / "a.csv").write_text(results.format_csv([calibrated, in_pixels], SCHEME))
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["expected_error"] for row in rows] == 2 * ["1.23", "5.00", "10.68"]
    assert [row["predicted_error"] for row in rows] == ["", "", "", "0.123", "0.500", "1.000"]
    assert [row["score"] for row in rows] == 3 * [""] + 3 * ["0.7500"]


def test_pts_has_the_official_format_and_counts_from_one(tmp_path):
    landmarks = face(0).landmarks
    (tmp_path / "a.pts").write_text(format_pts(landmarks))
    lines = (tmp_path / "a.pts").read_text().splitlines()
    assert lines[:3] == ["version: 1", "n_points: 3", "{"]
    assert lines[-1] == "}"
    np.testing.assert_allclose(read_pts(tmp_path / "a.pts", 3), landmarks + 1, atol=1e-6)


def test_visibility_of_a_model_with_the_head_is_written(tmp_path):
    plain = face(0)
    with_visibility = dataclasses.replace(
        plain, visibility=np.array([0.12345, 1.0, 0.0], np.float32)
    )
    assert "visibility" not in plain.to_dict()
    assert with_visibility.to_dict()["visibility"] == [0.1235, 1.0, 0.0]
    text = results.format_csv([plain, with_visibility], SCHEME)
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["visibility"] for row in rows] == ["", "", "", "0.1235", "1.0000", "0.0000"]


def test_reliability_names_and_scheme_are_written():
    faces = [dataclasses.replace(face(0), reliable=value) for value in (True, False, None)]
    described = [f.to_dict().get("reliable", "absent") for f in faces]
    assert described == [True, False, "absent"]
    rows = list(csv.DictReader(results.format_csv(faces, SCHEME).splitlines()))
    assert [row["reliable"] for row in rows[::3]] == ["true", "false", ""]
    image = results.describe_image(Path("a.jpg"), 9, 8, faces, SCHEME)
    tracked = [dataclasses.replace(f, track=i) for i, f in enumerate(faces)]
    frame = results.describe_frame(3, 0.1, tracked, SCHEME)
    assert [f["track"] for f in frame["faces"]] == [0, 1, 2]
    assert results.describe_frame(3, 0.1, faces[:1], SCHEME)["faces"][0]["track"] is None
    file = InputFile(Path("a.jpg"), Path("a"))
    line = batch_predict._Result(file, faces, Future()).describe_faces()
    assert line == "3 faces, 1 not reliable"
    for content in (image, frame):
        assert (content["scheme"], content["names"]) == ("three", ["tip", "left", "right"])
        json.dumps(content)
