import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spots import centroid, spot

from lcgcn_jax import geometry

cases = settings(deadline=None, max_examples=50, derandomize=True)
coordinates = st.floats(-1e4, 1e4, width=32)
points = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5).map(np.array)
boxes = st.tuples(coordinates, coordinates, st.floats(1, 1e3), st.floats(1, 1e3)).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]])
)
views = st.fixed_dictionaries(
    {
        "rotation": st.floats(-180, 180),
        "zoom": st.floats(0.5, 2.0),
        "shift": st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    }
)
affines = st.builds(
    lambda box, size, view: geometry.crop_transform(box, size, **view),
    boxes,
    st.sampled_from([64, 256]),
    views,
)


def corner_points(box):
    return box.reshape(2, 2)


@cases
@given(affines, points)
def test_inverse_affine_restores_points(affine, pts):
    restored = geometry.transform_points(
        geometry.invert(affine), geometry.transform_points(affine, pts)
    )
    np.testing.assert_allclose(restored, pts, atol=1e-6)


@cases
@given(affines, affines, points)
def test_compose_applies_the_inner_affine_first(outer, inner, pts):
    once = geometry.transform_points(geometry.compose(outer, inner), pts)
    twice = geometry.transform_points(outer, geometry.transform_points(inner, pts))
    np.testing.assert_allclose(once, twice, rtol=1e-9, atol=1e-3)


@cases
@given(boxes, st.sampled_from([64, 65, 256]))
def test_crop_is_centered_on_the_box(box, size):
    corners = geometry.transform_points(geometry.crop_transform(box, size), corner_points(box))
    np.testing.assert_allclose(corners.mean(axis=0), (size - 1) / 2, atol=1e-6)
    assert np.ptp(corners, axis=0).max() == pytest.approx(size / 1.25)


@cases
@given(boxes, views)
def test_rotation_zoom_and_shift_are_relative_to_the_face(box, view):
    size = 100
    affine = geometry.crop_transform(box, size, **view)
    plain = geometry.crop_transform(box, size)
    center = corner_points(box).mean(axis=0, keepdims=True)
    shift = geometry.transform_points(affine, center) - geometry.transform_points(plain, center)
    np.testing.assert_allclose(shift[0], size * np.array(view["shift"]), atol=1e-6)
    relative = affine[:, :2] @ np.linalg.inv(plain[:, :2])
    angle = np.deg2rad(view["rotation"])
    # Clockwise in the image, since y points down.
    clockwise = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(relative, view["zoom"] * np.array(clockwise), atol=1e-9)


@cases
@given(points, st.sampled_from([1, 2, 4, 8]))
def test_heatmap_to_input_is_the_inverse_of_input_to_heatmap(pts, stride):
    for offset in (None, 0.0, 2.5):
        pixels = geometry.input_to_heatmap(pts, stride, offset)
        np.testing.assert_allclose(
            geometry.heatmap_to_input(pixels, stride, offset), pts, atol=1e-6
        )


def test_heatmap_pixel_is_centered_on_the_pixels_it_covers():
    assert geometry.heatmap_to_input(np.array([0.0, 1.0]), 4).tolist() == [1.5, 5.5]
    assert geometry.centered_offset(4) == np.arange(4).mean()


def test_heatmap_offset_is_the_position_of_the_first_heatmap_pixel():
    assert geometry.heatmap_to_input(np.array([0.0, 1.0]), 4, 2.5).tolist() == [2.5, 6.5]


@cases
@given(points, st.integers(1, 500))
def test_mirroring_twice_is_the_identity(pts, width):
    mirror = geometry.mirror_transform(width)
    twice = geometry.transform_points(mirror, geometry.transform_points(mirror, pts))
    np.testing.assert_allclose(twice, pts, atol=1e-6)


@cases
@given(boxes, views, st.sampled_from([64, 65, 256]), st.integers(1, 500))
def test_crop_of_mirrored_image_is_the_mirrored_crop(box, view, size, width):
    mirror = geometry.mirror_transform(width)
    corners = geometry.transform_points(mirror, corner_points(box))
    mirrored_box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    mirrored_view = {
        "rotation": -view["rotation"],
        "zoom": view["zoom"],
        "shift": (-view["shift"][0], view["shift"][1]),
    }
    crop = geometry.crop_transform(box, size, **view)
    crop_of_mirrored = geometry.crop_transform(mirrored_box, size, **mirrored_view)
    np.testing.assert_allclose(
        geometry.compose(crop_of_mirrored, mirror),
        geometry.compose(geometry.mirror_transform(size), crop),
        rtol=1e-9,
        atol=1e-6,
    )


@cases
@given(st.integers(0, 2**32 - 1), st.floats(10, 60), st.floats(20, 70), st.floats(8, 50))
def test_warped_mirrored_image_is_the_mirrored_crop(seed, x, y, side):
    noise = np.random.default_rng(seed).integers(0, 256, (80, 91, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    box = np.array([x, y, x + side, y + side])
    mirrored_box = np.array([90 - x - side, y, 90 - x, y + side])
    crop = geometry.warp(image, geometry.crop_transform(box, 32), 32)
    flipped = np.ascontiguousarray(image[:, ::-1])
    crop_of_mirrored = geometry.warp(flipped, geometry.crop_transform(mirrored_box, 32), 32)
    # OpenCV rounds up or down. (Larger boxes are downsampled first, which is not symmetric.)
    assert np.abs(crop_of_mirrored.astype(int) - crop[:, ::-1]).max() <= 1


@cases
@given(boxes, boxes)
def test_inverse_affine_restores_boxes(box, face_box):
    affine = geometry.crop_transform(face_box, 64)
    restored = geometry.transform_box(geometry.invert(affine), geometry.transform_box(affine, box))
    np.testing.assert_allclose(restored, box, atol=1e-6)


@cases
@given(boxes, st.integers(1, 2000), st.integers(1, 2000))
def test_crop_of_valid_box_overlaps_the_image(box, width, height):
    try:
        geometry.check_box(box, width, height)
    except ValueError:
        return
    to_image = geometry.invert(geometry.crop_transform(box, 64))
    assert np.isfinite(to_image).all()
    center = geometry.transform_points(to_image, np.array([31.5, 31.5]))
    assert geometry.distance_outside(center[None], width, height) <= 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([np.nan, 0, 9, 9], "four numbers"),
        ([5, 5, 5, 9], "have to be larger"),
        ([-500, 0, 20, 20], "extends 500 px outside the image, which is 100 x 80"),
        ([-1e308, -1e308, 1e308, 1e308], "extends 1e\\+308 px outside"),
        ([90, 0, 120, 20], "center of the box is outside"),
        ([5, 5, 5.1, 5.1], "less than half a pixel"),
        ([0, 0, 1e-310, 1e-310], "less than half a pixel"),
    ],
)
def test_invalid_box_is_an_error(box, message):
    with pytest.raises(ValueError, match=message):
        geometry.check_box(np.array(box, float), 100, 80)


def test_mirrored_points_match_the_mirrored_image():
    image = np.zeros((3, 7, 1), np.uint8)
    image[2, 1] = 255
    x, y = geometry.transform_points(geometry.mirror_transform(7), np.array([1.0, 2.0]))
    assert image[:, ::-1][int(y), int(x)] == 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_keep_their_dtype(dtype):
    assert geometry.transform_points(np.eye(3)[:2], np.zeros((4, 2), dtype)).dtype == dtype


def test_box_of_landmarks_ignores_invisible_landmarks():
    landmarks = np.array([[3.0, 9.0], [5.0, 4.0], [np.nan, np.nan]])
    box = geometry.box_of_landmarks(landmarks, np.array([True, True, False]))
    assert box.tolist() == [3.0, 4.0, 5.0, 9.0]


@pytest.mark.parametrize("reduction", [0.5, 1.0, 2.5, 5.0, 10.0])
@pytest.mark.parametrize("rotation", [0.0, 25.0])
@pytest.mark.parametrize("point", [(401.3, 357.8), (455.75, 412.1)])
def test_warped_content_matches_transformed_points(reduction, rotation, point):
    size = 64
    side = reduction * size / geometry.CROP_SCALE
    center = np.array([430.2, 380.9])
    box = np.concatenate([center - side / 2, center + side / 2])
    affine = geometry.crop_transform(box, size, rotation=rotation)
    if reduction < 2:  # the crop shows a smaller region
        point = center + (np.array(point) - center) / 8
    image = spot(point, (800, 901), sigma=2.5 * max(reduction, 1.0))
    expected = geometry.transform_points(affine, np.array(point))
    crop = geometry.warp(image, affine, size)
    np.testing.assert_allclose(centroid(crop), expected, atol=0.1)


def test_thin_lines_do_not_alias_in_a_reduced_crop():
    image = np.zeros((400, 400, 3), np.uint8)
    image[:, ::5] = 250  # bilinear sampling of every fifth column would read all of them or none
    affine = geometry.crop_transform(np.array([40.0, 40.0, 360.0, 360.0]), 80)
    crop = geometry.warp(image, affine, 80)[10:-10, 10:-10]
    assert np.abs(crop.astype(float) - 50).max() < 25


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5.0, 5.0, 5.0],
        [9.0, 9.0, 5.0, 5.0],
        [0.0, np.nan, 5.0, 5.0],
        [0.0, 0.0, np.inf, 5.0],
    ],
)
def test_box_without_extent_is_an_error(box):
    with pytest.raises(ValueError, match="no extent"):
        geometry.crop_transform(np.array(box), 64)


@pytest.mark.parametrize("border", geometry.BORDERS)
def test_border_affects_only_pixels_outside_the_image(border):
    image = np.random.default_rng(0).integers(50, 200, (30, 30, 3), np.uint8)
    affine = np.array([[1.0, 0.0, 10.0], [0.0, 1.0, 10.0]])  # the image is in the center
    crop = geometry.warp(image, affine, 50, border)
    np.testing.assert_array_equal(crop[10:40, 10:40], image)
    outside = {
        "black": 0,
        "replicate": image[0, 15],
        "reflect": image[8, 15],
    }
    if border in outside:
        np.testing.assert_array_equal(crop[2, 25], np.broadcast_to(outside[border], 3))
    else:
        assert crop[2, 25].min() > 50
        assert np.ptp(crop[2:5, 10:40].astype(int), axis=1).max() < np.ptp(image[0], axis=0).min()


@pytest.mark.parametrize("border", geometry.BORDERS)
def test_border_of_a_reduced_image(border):
    image = np.full((300, 300, 3), 100, np.uint8)
    affine = np.array([[0.1, 0.0, 10.0], [0.0, 0.1, 10.0]])
    crop = geometry.warp(image, affine, 50, border)
    assert (crop[12:38, 12:38] == 100).all()
    assert (crop[3, 25] == (0 if border == "black" else 100)).all()
