"""Tests of images with an EXIF orientation, which records store upright."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
from PIL.Image import Transpose

from lcgcn_jax import geometry
from lcgcn_jax.data import records
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.encoding import decode_image
from lcgcn_jax.errors import InputError

FROM_UPRIGHT = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
"""EXIF orientation -> operation that converts the upright image to the stored one."""

MIRRORED = (2, 4, 5, 7)
MIRROR = [1, 0, 2, 4, 3]  # of the scheme in conftest.py
WIDTH, HEIGHT = 120, 80
POINTS = np.array([[40, 25], [70, 28], [55, 40], [45, 55], [66, 57]], float)
BOX = np.array([35.0, 20.0, 75.0, 62.0])


def transposed(image, orientation):
    operation = FROM_UPRIGHT[orientation]
    return image if operation is None else image.transpose(operation)


def stored_points(points, orientation):
    """Map pixels of the upright image to the stored image."""
    points_as_stored = []
    for x, y in points.astype(int):
        marked = np.zeros((HEIGHT, WIDTH), np.uint8)
        marked[y, x] = 1
        stored = np.asarray(transposed(PIL.Image.fromarray(marked), orientation))
        points_as_stored.append(np.argwhere(stored)[0][::-1])
    return np.array(points_as_stored, float)


@pytest.fixture
def oriented(maker):
    """Function that writes an image with an orientation and returns a face on it."""

    def make(orientation, suffix=".png", name="a", **fields):
        noise = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
        upright = PIL.Image.fromarray(noise).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        path = maker.folder / f"{name}{suffix}"
        transposed(upright, orientation).save(path, exif=exif, **fields.pop("save", {}))
        return maker.face(path, **({"landmarks": POINTS, "provided_box": BOX} | fields)), upright

    return make


def record_of(maker, face, **options):
    out = maker.folder / "out"
    report = records.prepare(maker.annotations([face]), out, overwrite=True, **options)
    (record,) = open_dataset(out).source("train")
    return record, report


def assert_upright(record, upright, *, tolerance=0):
    """Assert that points, boxes and pixels are those of the upright image."""
    x0, y0 = record["to_source"][:, 2].astype(int)
    np.testing.assert_array_equal(record["to_source"][:, :2], np.eye(2))
    pixels = decode_image(record["image"])
    height, width = pixels.shape[:2]
    expected = np.asarray(upright)[y0 : y0 + height, x0 : x0 + width]
    assert np.abs(pixels.astype(float) - expected).mean() <= tolerance
    np.testing.assert_allclose(record["landmarks"] + [x0, y0], POINTS)
    np.testing.assert_allclose(record["provided_box"] + [x0, y0, x0, y0], BOX)
    np.testing.assert_allclose(record["box"] + [x0, y0, x0, y0], [40, 25, 70, 57])
    assert record["visible"].all()


@pytest.mark.parametrize("orientation", FROM_UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_points_refer_to_the_upright_image(maker, oriented, orientation, suffix):
    save = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    face, upright = oriented(orientation, suffix, save=save)
    record, report = record_of(maker, face)
    assert_upright(record, upright, tolerance=4 if suffix == ".jpg" else 0)
    notes = [note for note in report.notes if "EXIF" in note]
    if orientation == 1:
        assert not notes
    else:
        (note,) = notes
        assert note.startswith(
            "1 image has an EXIF orientation: points refer to the image as shown"
        )
        assert "--stored-pixels" in note


@pytest.mark.parametrize("orientation", FROM_UPRIGHT)
def test_points_in_stored_pixels_are_rotated_with_the_image(maker, oriented, orientation):
    # In an image that is stored mirrored, left and right landmarks are exchanged.
    order = MIRROR if orientation in MIRRORED else range(5)
    corners = stored_points(BOX.reshape(2, 2), orientation)
    face, upright = oriented(
        orientation,
        landmarks=stored_points(POINTS, orientation)[list(order)],
        provided_box=np.concatenate([corners.min(axis=0), corners.max(axis=0)]),
    )
    record, _ = record_of(maker, face, stored_pixels=True)
    assert_upright(record, upright)
    if orientation in (5, 6, 7, 8):  # the stated size gives the same result
        sized = dataclasses.replace(face, stated_size=(HEIGHT, WIDTH))
        record, report = record_of(maker, sized)
        assert_upright(record, upright)
        assert report.notes[0].startswith("1 image is annotated in pixels as stored")
        record, _ = record_of(maker, sized, stored_pixels=True)
        assert_upright(record, upright)


@pytest.mark.parametrize("orientation", FROM_UPRIGHT)
@pytest.mark.parametrize("by_option", [False, True])
def test_mirror_pairs_are_checked_in_upright_pixels(maker, oriented, orientation, by_option):
    points = stored_points(POINTS, orientation)
    if orientation in MIRRORED:
        points = points[MIRROR]
    size = transposed(PIL.Image.new("L", (WIDTH, HEIGHT)), orientation).size
    fields = {"landmarks": points, "provided_box": None}
    fields["stated_size"] = None if by_option else size
    face, _ = oriented(orientation, **fields)
    wrong = dataclasses.replace(face, landmarks=points[[3, 1, 2, 0, 4]])
    for stated, expected in ((face, False), (wrong, True)):
        annotations = maker.annotations([stated] * 4)
        report = records.prepare(
            dataclasses.replace(annotations, has_custom_landmarks=True),
            maker.folder / "out",
            overwrite=True,
            stored_pixels=by_option,
        )
        assert any("do not lie opposite" in note for note in report.notes) == expected


def test_missing_points_stay_missing_in_mirrored_images(maker, oriented):
    visible = np.array([True, False, True, True, True])
    landmarks = np.where(visible[:, None], stored_points(POINTS, 2)[MIRROR], np.nan)
    face, _ = oriented(2, landmarks=landmarks, visible=visible)
    record, _ = record_of(maker, face, stored_pixels=True)
    assert record["visible"].tolist() == [False, True, True, True, True]
    assert np.isnan(record["landmarks"][0]).all()


@pytest.mark.parametrize("orientation", [1, 2, 3, 6])
def test_stated_size_of_the_upright_image(maker, oriented, orientation):
    face, upright = oriented(orientation, stated_size=(WIDTH, HEIGHT))
    record, _ = record_of(maker, face)
    assert_upright(record, upright)


def test_whole_image_is_stored_without_its_orientation(maker, oriented):
    face, _ = oriented(6, ".jpg", save={"quality": 95})
    points = [[10, 5], [110, 5], [60, 40], [10, 75], [110, 75]]
    face = dataclasses.replace(face, landmarks=np.array(points, float), provided_box=None)
    record, _ = record_of(maker, face)
    (maker.folder / "record.jpg").write_bytes(record["image"])
    with PIL.Image.open(maker.folder / "record.jpg") as image:
        assert image.size == (WIDTH, HEIGHT)
        assert 0x0112 not in image.getexif()


@pytest.mark.parametrize(
    ("orientation", "size", "options", "reason"),
    [
        (1, (464, 464), {}, "annotated at 464 x 464, but the image is 120 x 80; scale the points"),
        (1, (80, 120), {}, "annotated at 80 x 120, but the image is 120 x 80"),
        (6, (240, 160), {}, "the image is 120 x 80 upright and 80 x 120 as stored"),
        (6, (120, 80), {"stored_pixels": True}, "leave out --stored-pixels"),
    ],
)
def test_other_stated_sizes_are_rejected(maker, oriented, orientation, size, options, reason):
    wrong, _ = oriented(orientation, name="wrong", stated_size=size)
    good, _ = oriented(1, name="good")
    annotations = maker.annotations([wrong, good])
    report = records.prepare(annotations, maker.folder / "some", **options)
    (bad,) = report.bad
    assert reason in bad.reason
    with pytest.raises(
        InputError, match=r"no face of train can be used; the first: wrong.png: ann"
    ):
        record_of(maker, wrong, **options)
    # All faces of one split are wrong.
    wrong = dataclasses.replace(wrong, split="test")
    with pytest.raises(InputError, match="no face of test can be used"):
        records.prepare(maker.annotations([good, wrong]), maker.folder / "out", **options)


def test_points_outside_an_oriented_image_suggest_stored_pixels(maker, oriented):
    points = POINTS + np.array([0, 60])  # on the image as stored, 80 x 120
    bad, _ = oriented(6, name="bad", landmarks=points, provided_box=None)
    good, _ = oriented(1, name="good")
    report = records.prepare(maker.annotations([bad, good]), maker.folder / "out")
    assert "for points in its pixels as stored, add --stored-pixels" in report.bad[0].reason


def test_upright_transform_matches_pillow():
    for orientation in FROM_UPRIGHT:
        stored = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
        affine = geometry.upright_transform(orientation, *stored)
        back = geometry.transform_points(affine, stored_points(POINTS, orientation))
        np.testing.assert_array_equal(back, POINTS)
        assert (np.linalg.det(affine[:, :2]) < 0) == geometry.is_mirrored(orientation)
