"""Real faces in any rotation, and boxes without a face, with the shipped model."""

import cv2
import numpy as np
import pytest

import lcgcn_jax as lc
from lcgcn_jax import geometry
from lcgcn_jax.image_io import read_image

pytestmark = pytest.mark.slow


# The predicted errors of the first one are small where it is upside down.
@pytest.mark.parametrize("name", ["afw/4683040401_1", "helen/trainset/2091918525_1"])
def test_face_in_any_rotation(shared, name):
    path = shared / "data/300w" / name
    image = read_image(path.with_suffix(".jpg"))
    lines = path.with_suffix(".pts").read_text().splitlines()
    truth = np.array([line.split() for line in lines if line[:1].isdigit()], float) - 1
    assert truth.shape == (68, 2)
    height, width = image.shape[:2]
    side = int(np.hypot(height, width)) + 1
    images, boxes, points = [], [], []
    for angle in range(0, 360, 15):
        affine = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        affine[:, 2] += ((side - width) / 2, (side - height) / 2)
        points.append(geometry.transform_points(affine, truth))
        images.append(cv2.warpAffine(image, affine, (side, side)))
        boxes.append([geometry.box_of_landmarks(points[-1], np.ones(68, bool))])
    faces = [face for (face,) in lc.load_model("w300-lcgcn-small").predict_batch(images, boxes)]
    distances = [
        np.linalg.norm(f.landmarks - p, axis=1).mean() for f, p in zip(faces, points, strict=True)
    ]
    assert max(distances) < 0.1 * np.linalg.norm(truth[36] - truth[45])
    assert all(face.reliable for face in faces)


def test_boxes_without_a_face_are_not_reliable():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (256, 256, 3), np.uint8) for _ in range(3)]
    flat = [np.full((256, 256, 3), level, np.uint8) for level in (0, 90, 255)]
    gradient = [np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, 1).repeat(3, 2)]
    images = [*noise, *flat, *gradient]
    faces = lc.load_model("w300-lcgcn-small").predict_batch(images, [[(60, 60, 196, 196)]] * 7)
    assert [face.reliable for (face,) in faces] == [False] * 7
