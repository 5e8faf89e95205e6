"""Tests of `data.encoding`: records of faces."""

import dataclasses
import io

import cv2
import numpy as np
import PIL.Image
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.data import records
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.encoding import decode_image, encode_face
from lcgcn_jax.data.formats import w300
from lcgcn_jax.errors import InputError


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_record_is_a_crop_of_the_image(maker, suffix):
    path = maker.image(f"a{suffix}", 200, 150)
    box = np.array([50.0, 40.0, 80.0, 70.0])
    face = maker.face(
        path, center=(66.3, 58.7), subset="s", provided_box=box, attributes=(True, False)
    )
    out = path.parent / "out"
    records.prepare(maker.annotations([face], ("pose", "blur")), out)
    (record,) = open_dataset(out).source("train")
    image = decode_image(path.read_bytes())
    x0, y0 = record["to_source"][:, 2].astype(int)
    crop = decode_image(record["image"])
    height, width = crop.shape[:2]
    np.testing.assert_array_equal(record["to_source"], [[1, 0, x0], [0, 1, y0]])
    part = image[y0 : y0 + height, x0 : x0 + width]
    if suffix == ".png":
        np.testing.assert_array_equal(crop, part)
    else:
        assert record["image"].startswith(b"\xff\xd8")
        assert np.abs(crop.astype(float) - part).mean() < 3
    # Twice the side of the box, 32 px, in whole pixels.
    assert 64 <= width <= 66
    assert 64 <= height <= 66
    back = geometry.transform_points(record["to_source"], record["landmarks"])
    np.testing.assert_allclose(back, face.landmarks, atol=1e-4)
    corner = np.array([x0, y0, x0, y0])
    np.testing.assert_allclose(record["box"] + corner, [50.3, 42.7, 82.3, 74.7], rtol=1e-5)
    np.testing.assert_array_equal(record["provided_box"] + corner, box)
    assert record["attributes"].tolist() == [True, False]
    assert record["visible"].all()
    assert (record["name"], record["subset"], record["group"]) == (path.name, "s", "one")


def test_context_crop_is_clipped_at_the_border(maker):
    path = maker.image("a.png", 200, 150)
    (record,) = maker.dataset([maker.face(path, center=(20, 140))]).source("train")
    crop = decode_image(record["image"])
    x0, y0 = record["to_source"][:, 2].astype(int)
    image = decode_image(path.read_bytes())
    np.testing.assert_array_equal(crop, image[y0:, : crop.shape[1]])
    assert x0 == 0
    assert crop.shape[0] < 64


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_whole_image_is_copied_without_recompression(maker, suffix):
    path = maker.image(f"a{suffix}", 66, 64)
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    assert record["image"] == path.read_bytes()
    assert np.isnan(record["provided_box"]).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_data_after_the_image_is_dropped(maker, suffix):
    path = maker.image(f"a{suffix}", 66, 64)
    image = path.read_bytes()
    path.write_bytes(image + b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(5000))
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    assert record["image"] == image


def test_orientation_of_old_records_is_ignored(maker):
    path = maker.image("a.jpg", 66, 64)
    plain = path.read_bytes()
    # EXIF segment with orientation 6 (rotate by 90 degrees), right after the start of the image.
    tag = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + b"\0\0\0\0"
    rotated = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape == (66, 64, 3)
    np.testing.assert_array_equal(decode_image(rotated), decode_image(plain))


def gray_png():
    return cv2.imencode(".png", np.full((80, 90), 77, np.uint16))[1].tobytes()


def test_16_bit_gray_png_is_stored_as_rgb(maker):
    path = maker.folder / "a.png"
    path.write_bytes(gray_png())
    (record,) = maker.dataset([maker.face(path)]).source("train")
    assert decode_image(record["image"]).shape[2] == 3


def test_zeros_after_a_jpeg_are_accepted(maker):
    path = maker.image("a.jpg")
    path.write_bytes(path.read_bytes() + bytes(3000))
    assert maker.dataset([maker.face(path)]).num_faces == {"train": 1}


@pytest.mark.parametrize(
    ("landmarks", "reason"),
    [
        ([[20, 20], [50, 20], [35, 35], [25, 50], [-900, 50]], "900 px outside the 90 x 80 image"),
        ([[20, 20], [50, 20], [35, 35], [25, 50], [45, 180]], "101 px outside"),
        ([[92, 20], [99, 20], [96, 35], [93, 40], [98, 40]], "no landmark lies on"),
        ([[20, 20]] * 5, "no extent"),
    ],
)
def test_landmarks_far_outside_the_image_are_reported(maker, landmarks, reason):
    path = maker.image("a.jpg")
    stray = maker.face(path, landmarks=np.array(landmarks, float))
    report = records.prepare(maker.annotations([stray, maker.face(path)]), maker.folder / "out")
    (bad,) = report.bad
    assert reason in bad.reason


def test_landmarks_slightly_outside_the_image_are_accepted(maker):
    path = maker.image("a.jpg")
    face = maker.face(path, center=(5, 75))
    (record,) = maker.dataset([face]).source("train")
    back = geometry.transform_points(record["to_source"], record["landmarks"])
    np.testing.assert_allclose(back, face.landmarks, atol=1e-4)


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".ppm", ".gif"])
def test_other_image_formats_are_stored_as_png(maker, suffix):
    png = maker.image("a.png", 66, 64)
    path = maker.folder / f"b{suffix}"
    PIL.Image.open(png).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    assert record["image"].startswith(b"\x89PNG")
    if suffix != ".gif":
        np.testing.assert_array_equal(decode_image(record["image"]), decode_image(png.read_bytes()))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_png_records_have_8_bits_and_3_channels(maker, mode):
    path = maker.image("a.png", 66, 64)
    PIL.Image.open(path).convert(mode).save(path)
    (record,) = maker.dataset([maker.face(path, center=(33, 32))]).source("train")
    np.testing.assert_array_equal(
        np.asarray(PIL.Image.open(io.BytesIO(record["image"]))),
        decode_image(path.read_bytes()),
    )


@pytest.mark.slow
def test_cropped_and_full_size_images_give_the_same_face_crop(shared):
    cut = {face.name.split(".")[0]: face for face in w300.read(shared / "data/300w").faces}
    for face in w300.read(shared / "data/300w_fullsize").faces:
        crops = [
            crop_face(encode_face(version), 192) for version in (face, cut[face.name.split(".")[0]])
        ]
        first, second = (crop["image"].astype(float) for crop in crops)
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.995
        # The difference is smallest without a shift: landmarks and pixels are aligned.
        shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
        errors = [np.abs(first - np.roll(second, shift, (0, 1))).mean() for shift in shifts]
        assert np.argmin(errors) == 0
        np.testing.assert_allclose(crops[0]["landmarks"], crops[1]["landmarks"], atol=0.15)


def test_landmarks_as_fractions_of_the_image_are_rejected(maker):
    face = maker.face(maker.image("a.png", 66, 64))
    face = dataclasses.replace(face, landmarks=face.landmarks / 66)
    with pytest.raises(InputError, match=r"span only 0\.\d+ px; are their coordinates fractions"):
        maker.dataset([face])
