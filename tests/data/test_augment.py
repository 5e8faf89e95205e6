import cv2
import numpy as np
import pytest

from lcgcn_jax import geometry
from lcgcn_jax.data.augment import AugmentConfig, augment_face
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


def spot(point, shape=(300, 300), sigma=4.0):
    """A white Gaussian spot on black, its center at the point."""
    y, x = np.indices(shape)
    value = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(255 * value).astype(np.uint8)[..., None], 3, axis=2)


def centroid(image):
    weight = image[..., 0].astype(float)
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("size", [128, 30], ids=["enlarged", "halved first"])
@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_landmarks_stay_on_what_they_mark(size, mirror):
    config = AugmentConfig(mirror=mirror, zoom=(0.6, 0.9), shift=0.05, **GEOMETRY_ONLY)
    for marked in range(5):
        record = record_of(spot(LANDMARKS[marked]))
        face = augment_face(record, FIVE, size, config, np.random.default_rng(marked))
        # In a mirrored picture the left eye is what was the right one.
        index = FIVE.mirror[marked] if mirror else marked
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
        seen = face["image"][y[inside], x[inside]].astype(int)
        flipped = not face["visible"][0]
        mirrored += flipped
        expected = colors[list(FIVE.mirror)] if flipped else colors
        assert np.abs(seen - expected[inside]).max() < 40
    assert 10 < mirrored < 30


def test_augmentation_spans_what_the_config_says():
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
    turns = np.rad2deg(np.arctan2(axes[:, 1], axes[:, 0]))
    assert 27 < np.abs(turns).max() < 33
    box_center = (plain.min(axis=0) + plain.max(axis=0)) / 2
    moves = np.array([view.mean(axis=0) for view in views]) - box_center
    assert 2.5 < np.abs(moves).max() < 0.1 * 32 + 2


def test_no_augmentation_is_the_plain_crop():
    record = record_of(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    face = augment_face(record, FIVE, 64, AugmentConfig.none(), np.random.default_rng(0))
    plain = crop_face(record, 64)
    for field in ("image", "landmarks", "visible"):
        np.testing.assert_array_equal(face[field], plain[field])


def test_chance_comes_from_the_generator_alone():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    config = AugmentConfig(occlusion=0.5, blur=0.5, noise=0.5, low_light=0.5)
    first, again, other = (
        augment_face(record_of(image), FIVE, 64, config, np.random.default_rng((7, epoch, 3)))
        for epoch in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["landmarks"], again["landmarks"])
    assert not np.array_equal(first["landmarks"], other["landmarks"])


def test_landmarks_out_of_the_crop_stay_visible():
    record = record_of(spot(LANDMARKS[0])) | {"visible": np.ones(5, bool)}
    config = AugmentConfig(zoom=(2.0, 2.0))
    face = augment_face(record, FIVE, 64, config, np.random.default_rng(0))
    assert (face["landmarks"] < 0).any()
    assert face["visible"].all()


def test_a_crop_carries_its_landmarks_back():
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


def test_the_provided_box_is_used_if_there_is_one():
    box = np.array([100, 100, 200, 180], np.float32)
    face = crop_face(record_of(spot(LANDMARKS[0]), provided_box=box), 125, "rect")
    np.testing.assert_allclose(
        geometry.transform_points(face["crop_to_source"], np.array([12.0, 62.0])), [1100, 340]
    )
    with pytest.raises(InputError, match=r"a: the data provides no face box; use the box 'gt'"):
        crop_face(record_of(spot(LANDMARKS[0])), 125, "rect")
    with pytest.raises(InputError, match=r"unknown face box 'dlib'; use one of gt, rect"):
        crop_face(record_of(spot(LANDMARKS[0])), 125, "dlib")


def color_config(**strengths):
    return AugmentConfig(**({**AugmentConfig.none().__dict__} | strengths))


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
    means, spreads = views.mean(axis=(1, 2, 3)), views.std(axis=(1, 2)).mean(axis=-1)
    chroma = np.ptp(views, axis=-1).mean(axis=(1, 2))
    if strength == "brightness":
        np.testing.assert_allclose(views[0] / plain, means[0] / plain.mean(), atol=0.02)
        assert means.min() < 0.8 * plain.mean() < 1.2 * plain.mean() < means.max()
    elif strength == "contrast":
        np.testing.assert_allclose(means, plain.mean(), atol=3)
        plain_spread = plain.std(axis=(0, 1)).mean()
        assert spreads.min() < 0.8 * plain_spread < 1.2 * plain_spread < spreads.max()
    else:
        plain_chroma = np.ptp(plain, axis=-1).mean()
        assert chroma.min() < 0.8 * plain_chroma < 1.2 * plain_chroma < chroma.max()


def test_occlusion_covers_what_it_says():
    image = np.zeros((100, 100, 3), np.uint8)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        occluded, covered = occlude(image, (0.23, 0.47), rng)
        assert not occluded[~covered].any()
        part = (occluded > 0).any(axis=2).mean()
        assert 0.22**2 < part < 2 * 0.47**2
    assert not image.any()


def test_blur_keeps_the_mean_and_flattens():
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    blurred = blur(image, (0.016, 0.039), np.random.default_rng(0))
    assert abs(blurred.mean() - image.mean()) < 2
    assert blurred.std() < 0.4 * image.std()


@pytest.mark.parametrize("kind", ["occlusion", "blur", "noise", "low_light"])
def test_damage_has_its_probability(kind):
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    record = record_of(image)
    plain = crop_face(record, 32)["image"]
    config = color_config(**{kind: 0.5})
    damaged = sum(
        not np.array_equal(
            augment_face(record, FIVE, 32, config, np.random.default_rng(i))["image"], plain
        )
        for i in range(60)
    )
    assert 18 < damaged < 42


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind != "none"])
def test_corrupted_crops_depend_on_the_name_alone(kind):
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


def test_corruptions_are_as_strong_as_they_say():
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
    spreads = np.array([crop.std() for crop in crops("blur")])
    np.testing.assert_allclose([spreads.max(), spreads.min()], expected, rtol=0.1)


def test_unknown_corruption_is_refused():
    with pytest.raises(InputError, match="unknown corruption 'fog'; use one of none, occlude"):
        crop_face(record_of(spot(LANDMARKS[0])), 32, "gt", "fog")


def test_a_mirrored_face_leans_to_the_same_side():
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    size, offset = 64, 0.02
    lean = offset * size
    fixed = {**GEOMETRY_ONLY, "rotation": 0.0, "zoom": (1.0, 1.0), "shift": 0.0}

    def landmarks(points, mirror, flip_bias):
        config = AugmentConfig(mirror=mirror, flip_bias=flip_bias, **fixed)
        # Of the same crop: it does not move with the points.
        record = record_of(image) | {"landmarks": points.astype(np.float32)}
        return augment_face(record, FIVE, size, config, np.random.default_rng(0))["landmarks"]

    in_crop = geometry.crop_side(record_of(image)["box"].astype(np.float64)) / size
    leaning = LANDMARKS + np.array([lean * in_crop, 0])
    expected = landmarks(LANDMARKS, 1.0, 0.0) + np.array([lean, 0])
    np.testing.assert_allclose(landmarks(leaning, 1.0, offset), expected, atol=1e-3)
    # A plain face stays as it is annotated.
    np.testing.assert_array_equal(landmarks(leaning, 0.0, offset), landmarks(leaning, 0.0, 0.0))
