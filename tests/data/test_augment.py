import dataclasses

import cv2
import numpy as np
import pytest
from augmentations import NO_AUGMENTATION
from spots import centroid, spot

from lcgcn_jax import geometry
from lcgcn_jax.data.augment import (
    AugmentConfig,
    augment_face,
    blend_with_noise,
    compress_jpeg,
    jitter_colors,
    motion_blur,
)
from lcgcn_jax.data.corruptions import CORRUPTIONS, blur, occlude
from lcgcn_jax.data.crops import crop_face
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

FIVE = LandmarkScheme.from_dict(
    {"name": "five", "num_landmarks": 5, "mirror_pairs": [[0, 1], [3, 4]]}
)
LANDMARKS = np.array(
    [[120.3, 110.2], [178.9, 112.6], [151.4, 150.1], [128.8, 181.5], [170.2, 180.4]]
)
GEOMETRY_ONLY = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def record_of(image, landmarks=LANDMARKS, **fields):
    landmarks = landmarks.astype(np.float32)
    box = geometry.box_of_landmarks(landmarks, np.ones(len(landmarks), bool))
    defaults = {
        "image": cv2.imencode(".png", image[..., ::-1])[1].tobytes(),
        "landmarks": landmarks,
        "visible": np.array([True, False, True, True, True]),
        "visibility": np.array([0, 2, 1, -1, 0], np.int8),
        "box": box.astype(np.float32),
        "provided_box": np.full(4, np.nan, np.float32),
        "attributes": np.zeros(0, bool),
        "normalizer": np.float32(np.nan),
        "to_source": np.array([[1, 0, 1000], [0, 1, 200]], np.float32),
        "name": "a",
        "subset": "s",
    }
    return defaults | fields


@pytest.mark.parametrize("size", [128, 30], ids=["enlarged", "halved first"])
@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_landmarks_follow_the_image(size, mirror):
    config = AugmentConfig(mirror=mirror, zoom=(0.6, 0.9), shift=0.05, **GEOMETRY_ONLY)
    for landmark in range(5):
        record = record_of(spot(LANDMARKS[landmark]))
        face = augment_face(record, FIVE, size, config, np.random.default_rng(landmark))
        # In a mirrored image, the left eye is the former right eye.
        index = FIVE.mirror[landmark] if mirror else landmark
        np.testing.assert_allclose(face["landmarks"][index], centroid(face["image"]), atol=0.15)
        assert face["visible"].tolist() == [i != (0 if mirror else 1) for i in range(5)]


def test_colors_under_the_landmarks_of_random_views():
    colors = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [250, 250, 20], [250, 20, 250]])
    image = np.full((300, 300, 3), 128, np.uint8)
    for (x, y), color in zip(LANDMARKS, colors, strict=True):
        cv2.circle(image, (round(x), round(y)), 6, color.tolist(), -1)
    record, rng = record_of(image), np.random.default_rng(0)
    mirrored = 0
    for _ in range(40):
        config = AugmentConfig(shift=0.05, **GEOMETRY_ONLY)
        face = augment_face(record, FIVE, 96, config, rng)
        x, y = face["landmarks"].round().astype(int).T
        inside = (np.minimum(x, y) >= 0) & (np.maximum(x, y) < 96)
        sampled = face["image"][y[inside], x[inside]].astype(int)
        flipped = not face["visible"][0]
        mirrored += flipped
        expected = colors[list(FIVE.mirror)] if flipped else colors
        assert np.abs(sampled - expected[inside]).max() < 40
    assert 10 < mirrored < 30


def test_augmentation_spans_the_limits_of_the_config():
    record, config = record_of(spot(LANDMARKS[2])), AugmentConfig()
    views = [
        augment_face(record, FIVE, 32, config, np.random.default_rng(i))["landmarks"]
        for i in range(300)
    ]
    plain = crop_face(record, 32)["landmarks"]
    plain_axis = plain[1] - plain[0]
    axes = np.array([view[1] - view[0] for view in views])
    zooms = np.linalg.norm(axes, axis=1) / np.linalg.norm(plain_axis)
    np.testing.assert_allclose([zooms.min(), zooms.max()], [0.8, 1.2], atol=0.02)
    rotations = np.rad2deg(np.arctan2(axes[:, 1], axes[:, 0]))
    assert 27 < np.abs(rotations).max() < 33
    box_center = (plain.min(axis=0) + plain.max(axis=0)) / 2
    moves = np.array([view.mean(axis=0) for view in views]) - box_center
    assert 2.5 < np.abs(moves).max() < 0.1 * 32 + 2


def test_no_augmentation_is_the_plain_crop():
    record = record_of(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    face = augment_face(record, FIVE, 64, NO_AUGMENTATION, np.random.default_rng(0))
    plain = crop_face(record, 64)
    for field in ("image", "landmarks", "visible"):
        np.testing.assert_array_equal(face[field], plain[field])


def test_the_generator_is_the_only_source_of_randomness():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    config = AugmentConfig(occlusion=0.5, blur=0.5, noise=0.5, low_light=0.5)
    first, again, other = (
        augment_face(record_of(image), FIVE, 64, config, np.random.default_rng((7, epoch, 3)))
        for epoch in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["landmarks"], again["landmarks"])
    assert not np.array_equal(first["landmarks"], other["landmarks"])


def test_landmarks_outside_the_crop_stay_visible():
    record = record_of(spot(LANDMARKS[0])) | {"visible": np.ones(5, bool)}
    config = AugmentConfig(zoom=(2.0, 2.0))
    face = augment_face(record, FIVE, 64, config, np.random.default_rng(0))
    assert (face["landmarks"] < 0).any()
    assert face["visible"].all()


def test_crop_to_source_restores_the_landmarks():
    face = crop_face(record_of(spot(LANDMARKS[0])), 100)
    source = LANDMARKS + np.array([1000, 200])
    np.testing.assert_allclose(face["source_landmarks"], source, atol=1e-4)
    back = geometry.transform_points(face["crop_to_source"], face["landmarks"].astype(float))
    np.testing.assert_allclose(back, source, atol=1e-4)
    assert face["crop_to_source"].dtype == np.float64
    assert face["image"].shape == (100, 100, 3)
    # The box fills 1 / 1.25 of the crop and is centered in it.
    np.testing.assert_allclose(np.ptp(face["landmarks"], axis=0).max(), 80, atol=1e-3)
    middle = (face["landmarks"].min(axis=0) + face["landmarks"].max(axis=0)) / 2
    np.testing.assert_allclose(middle, 49.5, atol=1e-3)


def test_provided_box_is_used_or_its_absence_reported():
    box = np.array([100, 100, 200, 180], np.float32)
    face = crop_face(record_of(spot(LANDMARKS[0]), provided_box=box), 125, "rect")
    np.testing.assert_allclose(
        geometry.transform_points(face["crop_to_source"], np.array([12.0, 62.0])), [1100, 340]
    )
    with pytest.raises(InputError, match=r"a: the data provides no face box; use the box 'gt'"):
        crop_face(record_of(spot(LANDMARKS[0])), 125, "rect")
    with pytest.raises(InputError, match=r"box: unknown value 'dlib'.*gt, rect"):
        crop_face(record_of(spot(LANDMARKS[0])), 125, "dlib")


def color_config(**strengths):
    return AugmentConfig(**({**NO_AUGMENTATION.__dict__} | strengths))


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation"])
def test_color_jitter(strength):
    image = np.full((300, 300, 3), (60, 90, 120), np.uint8)
    image[:, 150:] = (160, 110, 90)
    plain = crop_face(record_of(image), 48)["image"].astype(float)
    config = color_config(**{strength: 0.3})
    views = np.array(
        [
            augment_face(record_of(image), FIVE, 48, config, np.random.default_rng(i))["image"]
            for i in range(30)
        ]
    ).astype(float)
    means, deviations = views.mean(axis=(1, 2, 3)), views.std(axis=(1, 2)).mean(axis=-1)
    chroma = np.ptp(views, axis=-1).mean(axis=(1, 2))
    if strength == "brightness":
        np.testing.assert_allclose(views[0] / plain, means[0] / plain.mean(), atol=0.02)
        assert means.min() < 0.8 * plain.mean() < 1.2 * plain.mean() < means.max()
    elif strength == "contrast":
        np.testing.assert_allclose(means, plain.mean(), atol=3)
        plain_deviation = plain.std(axis=(0, 1)).mean()
        assert deviations.min() < 0.8 * plain_deviation < 1.2 * plain_deviation < deviations.max()
    else:
        plain_chroma = np.ptp(plain, axis=-1).mean()
        assert chroma.min() < 0.8 * plain_chroma < 1.2 * plain_chroma < chroma.max()


def test_occlusion_changes_only_covered_pixels():
    image = np.zeros((100, 100, 3), np.uint8)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        occluded, covered = occlude(image, (0.23, 0.47), rng)
        assert not occluded[~covered].any()
        part = (occluded > 0).any(axis=2).mean()
        assert 0.22**2 < part < 2 * 0.47**2
    assert not image.any()


def test_blur_keeps_the_mean_and_reduces_the_contrast():
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    blurred = blur(image, (0.016, 0.039), np.random.default_rng(0))
    assert abs(blurred.mean() - image.mean()) < 2
    assert blurred.std() < 0.4 * image.std()


@pytest.mark.parametrize("kind", ["occlusion", "blur", "noise", "low_light"])
def test_corruption_has_its_probability(kind):
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    record = record_of(image)
    plain = crop_face(record, 32)["image"]
    config = color_config(**{kind: 0.5})
    corrupted = sum(
        not np.array_equal(
            augment_face(record, FIVE, 32, config, np.random.default_rng(i))["image"], plain
        )
        for i in range(60)
    )
    assert 18 < corrupted < 42


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind != "none"])
def test_corrupted_crops_depend_only_on_the_name(kind):
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    plain, none, first, again, other = (
        crop_face(record_of(image, name=name), 48, "gt", corruption)
        for name, corruption in [
            ("a", "none"),
            ("b", "none"),
            ("a", kind),
            ("a", kind),
            ("b", kind),
        ]
    )
    np.testing.assert_array_equal(plain["image"], none["image"])
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])
    assert not np.array_equal(first["image"], plain["image"])
    for field in ("landmarks", "visible", "crop_to_source", "source_landmarks"):
        np.testing.assert_array_equal(first[field], plain[field])


@pytest.mark.slow
def test_corruptions_have_their_documented_strength():
    size, names = 96, [f"face {i}" for i in range(60)]
    image = np.random.default_rng(0).integers(60, 196, (300, 300, 3), np.uint8)
    plain = crop_face(record_of(image), size)["image"].astype(float)

    def crops(kind):
        return [
            crop_face(record_of(image, name=name), size, "gt", kind)["image"].astype(float)
            for name in names
        ]

    factors = np.array([crop.mean() / plain.mean() for crop in crops("dark")])
    np.testing.assert_allclose([factors.min(), factors.max()], [0.15, 0.5], atol=0.03)
    sigmas = np.array([(crop - plain).std() for crop in crops("noise")])
    np.testing.assert_allclose([sigmas.min(), sigmas.max()], [5, 25], atol=1.5)
    covered = np.array([(crop != plain).any(axis=2).mean() for crop in crops("occlude")])
    assert 0.22**2 < covered.min() < 0.35**2
    assert 0.47**2 < covered.max() < 2 * 0.47**2
    expected = [cv2.GaussianBlur(plain, (0, 0), size * part).std() for part in (0.016, 0.039)]
    deviations = np.array([crop.std() for crop in crops("blur")])
    np.testing.assert_allclose([deviations.max(), deviations.min()], expected, rtol=0.1)


def test_unknown_corruption_is_refused():
    with pytest.raises(InputError, match=r"corruption: unknown value 'fog'.*none, occlude"):
        crop_face(record_of(spot(LANDMARKS[0])), 32, "gt", "fog")


def test_mirrored_faces_keep_the_flip_bias():
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    size, offset = 64, 0.02
    bias = offset * size
    fixed = {**GEOMETRY_ONLY, "rotation": 0.0, "zoom": (1.0, 1.0), "shift": 0.0}

    def landmarks(points, mirror, flip_bias):
        config = AugmentConfig(mirror=mirror, flip_bias=flip_bias, **fixed)
        # The box, and with it the crop, stays the same.
        record = record_of(image) | {"landmarks": points.astype(np.float32)}
        return augment_face(record, FIVE, size, config, np.random.default_rng(0))["landmarks"]

    in_crop = geometry.crop_side(record_of(image)["box"].astype(np.float64)) / size
    biased = LANDMARKS + np.array([bias * in_crop, 0])
    expected = landmarks(LANDMARKS, 1.0, 0.0) + np.array([bias, 0])
    np.testing.assert_allclose(landmarks(biased, 1.0, offset), expected, atol=1e-3)
    # Faces that are not mirrored keep their annotation.
    np.testing.assert_array_equal(landmarks(biased, 0.0, offset), landmarks(biased, 0.0, 0.0))


NEW_OPTIONS = {
    "shear": {"shear": 20.0},
    "aspect": {"aspect": 0.5},
    "perspective": {"perspective": 0.1},
    "all": {"shear": 15.0, "aspect": 0.3, "perspective": 0.08, "distribution": "normal"},
}


@pytest.mark.parametrize("options", NEW_OPTIONS.values(), ids=NEW_OPTIONS)
@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_landmarks_follow_shear_aspect_and_perspective(options, mirror):
    config = AugmentConfig(mirror=mirror, zoom=(0.6, 0.9), shift=0.05, **GEOMETRY_ONLY, **options)
    for landmark in range(5):
        record = record_of(spot(LANDMARKS[landmark], sigma=3.0))
        face = augment_face(record, FIVE, 128, config, np.random.default_rng(landmark))
        index = FIVE.mirror[landmark] if mirror else landmark
        # The centroid of a spot is not exactly that of its center under a perspective.
        np.testing.assert_allclose(face["landmarks"][index], centroid(face["image"]), atol=0.3)


@pytest.mark.parametrize("border", ["black", "reflect", "blur"])
def test_perspective_crops_have_the_border_of_the_config(border):
    image = np.full((300, 300, 3), 200, np.uint8)
    config = AugmentConfig(perspective=0.2, zoom=(0.2, 0.2), border=border, **GEOMETRY_ONLY)
    face = augment_face(record_of(image), FIVE, 64, config, np.random.default_rng(0))
    assert (face["image"] == 0).any() == (border == "black")


def test_aspect_and_shear_span_their_limits():
    record = record_of(spot(LANDMARKS[0]))
    square = np.array([[100, 100], [200, 100], [100, 200], [0, 0], [0, 0]], np.float64)
    record["landmarks"] = square.astype(np.float32)
    none = dataclasses.replace(NO_AUGMENTATION, aspect=0.5, shear=10.0)
    ratios, angles = [], []
    for seed in range(60):
        face = augment_face(record, FIVE, 64, none, np.random.default_rng(seed))
        a, b, c = face["landmarks"][:3].astype(float)
        ratios.append(np.linalg.norm(b - a) / (c - a)[1])
        angles.append(np.degrees(np.arctan((c - a)[0] / (c - a)[1])))
    assert 1 / 1.51 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.51
    assert -16 < min(angles) < -6
    assert 6 < max(angles) < 16


@pytest.mark.slow
def test_normal_distribution_has_the_limits_and_half_of_them_as_deviation():
    config = AugmentConfig(
        distribution="normal", rotation=40.0, zoom=(1.0, 1.0), shift=0.0, mirror=0.0
    )
    record, angles = record_of(spot(LANDMARKS[0])), []
    for seed in range(400):
        face = augment_face(record, FIVE, 32, config, np.random.default_rng(seed))
        x, y = (face["landmarks"][1] - face["landmarks"][0]).astype(float)
        angles.append(np.degrees(np.arctan2(y, x)))
    angles = np.array(angles) - np.degrees(np.arctan2(2.4, 58.6))
    assert np.abs(angles).max() == pytest.approx(40, abs=0.1)
    assert np.std(angles) == pytest.approx(19, abs=2)
    assert (np.abs(angles) < 20).mean() == pytest.approx(0.68, abs=0.07)


TEXTURE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.5}, {"gray": 1.0}, {"motion_blur": 1.0}, {"noise_blend": 1.0}, {"jpeg": 1.0},
        {"shear": 20.0}, {"aspect": 0.3}, {"perspective": 0.1}, {"distribution": "normal"},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_each_option_changes_the_crop_and_repeats_with_the_seed(options):
    def view(**options):
        return augment_face(
            record_of(TEXTURE), FIVE, 48, AugmentConfig(**options), np.random.default_rng(3)
        )

    first, again = view(**options), view(**options)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], view()["image"])
    is_geometric = next(iter(options)) in ("shear", "aspect", "perspective", "distribution")
    assert np.array_equal(first["landmarks"], view()["landmarks"]) != is_geometric


def test_views_of_former_configurations_are_unchanged():
    """The first values of a view that version 0.1 drew."""
    face = augment_face(
        record_of(TEXTURE),
        FIVE,
        48,
        AugmentConfig(occlusion=0.5, blur=0.5),
        np.random.default_rng(3),
    )
    np.testing.assert_allclose(face["landmarks"][0], [11.157354, -4.516353], atol=1e-5)
    np.testing.assert_allclose(face["landmarks"][4], [28.935070, 43.721375], atol=1e-5)
    former = [[128, 129, 113], [123, 148, 126], [108, 116, 15]]
    np.testing.assert_allclose(face["image"][::16, ::16, 0].astype(int), former, atol=1)


def test_gray_crops_have_equal_channels():
    face = augment_face(
        record_of(TEXTURE), FIVE, 48, AugmentConfig(gray=1.0), np.random.default_rng(0)
    )
    assert np.ptp(face["image"], axis=2).max() == 0
    assert face["image"].std() > 5


def test_gamma_keeps_black_and_white_and_moves_gray():
    image = np.tile(np.array([0, 128, 255], np.uint8)[:, None, None], (1, 1, 3))
    means = []
    for seed in range(20):
        config = dataclasses.replace(NO_AUGMENTATION, gamma=0.5)
        out = jitter_colors(image, config, np.random.default_rng(seed))
        assert out[0].max() == 0
        assert out[2].min() == 255
        means.append(out[1, 0, 0])
    assert 80 < min(means) < 115
    assert 145 < max(means) < 185


@pytest.mark.parametrize("direction", [0.0, np.pi / 2], ids=["horizontal", "vertical"])
def test_motion_blur_widens_a_spot_along_its_direction(direction):
    def deviations(image):
        weight = image[..., 0].astype(float)
        y, x = np.indices(weight.shape)
        return [
            np.sqrt((weight * (c - (weight * c).sum() / weight.sum()) ** 2).sum() / weight.sum())
            for c in (x, y)
        ]

    image = spot((50, 50), (101, 101), sigma=3.0)
    before, after = deviations(image), deviations(motion_blur(image, 16.0, direction))
    along, across = (0, 1) if direction == 0 else (1, 0)
    assert after[along] == pytest.approx(np.hypot(before[along], 16 / np.sqrt(12)), rel=0.1)
    assert after[across] == pytest.approx(before[across], rel=0.1)
    np.testing.assert_array_equal(motion_blur(np.full_like(image, 90), 9.5, 0.7), 90)


def test_noise_is_blended_with_its_weight():
    flat = np.full((64, 64, 3), 200, np.uint8)
    np.testing.assert_array_equal(blend_with_noise(flat, 0.0, np.random.default_rng(0)), flat)
    for weight in (0.2, 0.5):
        blended = blend_with_noise(flat, weight, np.random.default_rng(0)).astype(float)
        assert np.abs(blended - 200 * (1 - weight)).max() <= 255 * weight + 1
        assert blended.std() > 20 * weight


def test_jpeg_quality_orders_the_errors():
    image = cv2.GaussianBlur(TEXTURE, (0, 0), 2)
    errors = [
        np.abs(compress_jpeg(image, q).astype(float) - image).mean() for q in (95.0, 40.0, 5.0)
    ]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 4
