import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
def test_the_inverse_carries_points_back(affine, pts):
    back = geometry.transform_points(
        geometry.invert(affine), geometry.transform_points(affine, pts)
    )
    np.testing.assert_allclose(back, pts, atol=1e-6)


@cases
@given(affines, affines, points)
def test_composition_applies_the_inner_first(outer, inner, pts):
    once = geometry.transform_points(geometry.compose(outer, inner), pts)
    twice = geometry.transform_points(outer, geometry.transform_points(inner, pts))
    np.testing.assert_allclose(once, twice, rtol=1e-9, atol=1e-3)


@cases
@given(boxes, st.sampled_from([64, 65, 256]))
def test_a_crop_has_the_box_in_its_middle(box, size):
    corners = geometry.transform_points(geometry.crop_transform(box, size), corner_points(box))
    np.testing.assert_allclose(corners.mean(axis=0), (size - 1) / 2, atol=1e-6)
    assert np.ptp(corners, axis=0).max() == pytest.approx(size / 1.25)


@cases
@given(boxes, views)
def test_rotation_zoom_and_shift_are_about_the_face(box, view):
    size = 100
    affine = geometry.crop_transform(box, size, **view)
    plain = geometry.crop_transform(box, size)
    center = corner_points(box).mean(axis=0, keepdims=True)
    moved = geometry.transform_points(affine, center) - geometry.transform_points(plain, center)
    np.testing.assert_allclose(moved[0], size * np.array(view["shift"]), atol=1e-6)
    relative = affine[:, :2] @ np.linalg.inv(plain[:, :2])
    angle = np.deg2rad(view["rotation"])
    # Clockwise as seen, since y points down.
    clockwise = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    np.testing.assert_allclose(relative, view["zoom"] * np.array(clockwise), atol=1e-9)


@cases
@given(points, st.sampled_from([1, 2, 4, 8]))
def test_heatmap_cells_and_input_pixels_are_inverse(pts, stride):
    for origin in (None, 0.0, 2.5):
        cells = geometry.input_to_heatmap(pts, stride, origin)
        np.testing.assert_allclose(geometry.heatmap_to_input(cells, stride, origin), pts, atol=1e-6)


def test_a_cell_is_centered_on_the_pixels_it_covers():
    assert geometry.heatmap_to_input(np.array([0.0, 1.0]), 4).tolist() == [1.5, 5.5]
    assert geometry.centered_offset(4) == np.arange(4).mean()


def test_the_origin_is_where_the_first_cell_lies():
    assert geometry.heatmap_to_input(np.array([0.0, 1.0]), 4, 2.5).tolist() == [2.5, 6.5]


@cases
@given(points, st.integers(1, 500))
def test_mirroring_twice_is_nothing(pts, width):
    mirror = geometry.mirror_transform(width)
    twice = geometry.transform_points(mirror, geometry.transform_points(mirror, pts))
    np.testing.assert_allclose(twice, pts, atol=1e-6)


@cases
@given(boxes, views, st.sampled_from([64, 65, 256]), st.integers(1, 500))
def test_the_crop_of_a_mirrored_picture_is_the_mirrored_crop(box, view, size, width):
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
def test_pixels_of_a_mirrored_picture_are_the_mirrored_pixels(seed, x, y, side):
    noise = np.random.default_rng(seed).integers(0, 256, (80, 91, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    box = np.array([x, y, x + side, y + side])
    mirrored_box = np.array([90 - x - side, y, 90 - x, y + side])
    crop = geometry.warp(image, geometry.crop_transform(box, 32), 32)
    flipped = np.ascontiguousarray(image[:, ::-1])
    crop_of_mirrored = geometry.warp(flipped, geometry.crop_transform(mirrored_box, 32), 32)
    # OpenCV rounds to either side. (Larger boxes are halved first, from the left border on.)
    assert np.abs(crop_of_mirrored.astype(int) - crop[:, ::-1]).max() <= 1


@cases
@given(boxes, boxes)
def test_boxes_go_there_and_back(box, face_box):
    affine = geometry.crop_transform(face_box, 64)
    back = geometry.transform_box(geometry.invert(affine), geometry.transform_box(affine, box))
    np.testing.assert_allclose(back, box, atol=1e-6)


@cases
@given(boxes, st.integers(1, 2000), st.integers(1, 2000))
def test_a_box_that_passes_gives_a_crop_with_some_of_the_picture(box, width, height):
    try:
        geometry.check_box(box, width, height)
    except ValueError:
        return
    to_picture = geometry.invert(geometry.crop_transform(box, 64))
    assert np.isfinite(to_picture).all()
    middle = geometry.transform_points(to_picture, np.array([31.5, 31.5]))
    assert geometry.distance_outside(middle[None], width, height) <= 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([np.nan, 0, 9, 9], "four numbers"),
        ([5, 5, 5, 9], "have to be larger"),
        ([-500, 0, 20, 20], "reaches 500 px outside the picture, which is 100 x 80"),
        ([-1e308, -1e308, 1e308, 1e308], "reaches 1e\\+308 px outside"),
        ([90, 0, 120, 20], "center is outside"),
        ([5, 5, 5.1, 5.1], "less than half a pixel"),
        ([0, 0, 1e-310, 1e-310], "less than half a pixel"),
    ],
)
def test_a_box_that_can_be_no_faces_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        geometry.check_box(np.array(box, float), 100, 80)


def test_mirroring_points_is_mirroring_the_picture():
    image = np.zeros((3, 7, 1), np.uint8)
    image[2, 1] = 255
    x, y = geometry.transform_points(geometry.mirror_transform(7), np.array([1.0, 2.0]))
    assert image[:, ::-1][int(y), int(x)] == 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_keep_their_type(dtype):
    assert geometry.transform_points(np.eye(3)[:2], np.zeros((4, 2), dtype)).dtype == dtype


def test_box_of_landmarks_takes_the_visible_ones():
    landmarks = np.array([[3.0, 9.0], [5.0, 4.0], [np.nan, np.nan]])
    box = geometry.box_of_landmarks(landmarks, np.array([True, True, False]))
    assert box.tolist() == [3.0, 4.0, 5.0, 9.0]


def blob(point, shape, sigma):
    y, x = np.indices(shape)
    value = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return np.rint(255 * value).astype(np.uint8)[..., None].repeat(3, axis=2)


def centroid(image):
    weight = image[..., 0].astype(float)
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("shrink", [0.5, 1.0, 2.5, 5.0, 10.0])
@pytest.mark.parametrize("rotation", [0.0, 25.0])
@pytest.mark.parametrize("point", [(401.3, 357.8), (455.75, 412.1)])
def test_what_is_in_the_picture_lands_where_the_points_do(shrink, rotation, point):
    size = 64
    side = shrink * size / geometry.CROP_SCALE
    center = np.array([430.2, 380.9])
    box = np.concatenate([center - side / 2, center + side / 2])
    affine = geometry.crop_transform(box, size, rotation=rotation)
    if shrink < 2:  # so much of the picture is not in the crop
        point = center + (np.array(point) - center) / 8
    image = blob(point, (800, 901), sigma=2.5 * max(shrink, 1.0))
    expected = geometry.transform_points(affine, np.array(point))
    crop = geometry.warp(image, affine, size)
    np.testing.assert_allclose(centroid(crop), expected, atol=0.1)


def test_thin_lines_do_not_alias_when_shrunk():
    image = np.zeros((400, 400, 3), np.uint8)
    image[:, ::5] = 250  # one column in five: a plain bilinear fifth would hit or miss them all
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
def test_a_box_without_extent_is_refused(box):
    with pytest.raises(ValueError, match="no extent"):
        geometry.crop_transform(np.array(box), 64)


@pytest.mark.parametrize("border", geometry.BORDERS)
def test_border_shows_outside_of_the_image_only(border):
    image = np.random.default_rng(0).integers(50, 200, (30, 30, 3), np.uint8)
    affine = np.array([[1.0, 0.0, 10.0], [0.0, 1.0, 10.0]])  # the image is in the middle
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
def test_border_of_a_shrunk_image(border):
    image = np.full((300, 300, 3), 100, np.uint8)
    affine = np.array([[0.1, 0.0, 10.0], [0.0, 0.1, 10.0]])
    crop = geometry.warp(image, affine, 50, border)
    assert (crop[12:38, 12:38] == 100).all()
    assert (crop[3, 25] == (0 if border == "black" else 100)).all()
