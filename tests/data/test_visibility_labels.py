"""Tests of visibility labels in crops and batches: mirror, occluders, crop borders, mixtures."""

import itertools

import numpy as np
import pytest
from augmentations import NO_AUGMENTATION

from lcgcn_jax import geometry
from lcgcn_jax.data.augment import AugmentConfig, augment_face
from lcgcn_jax.data.crops import cover_labels, crop_face
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.data.pipeline import eval_batches, train_iterator

LABELS = np.array([0, 1, 2, -1, 0], np.int8)
LOCATED = np.array([True, True, False, True, True])
MIRROR = [1, 0, 2, 4, 3]
SETTINGS = {"image_size": 32, "batch_size": 4, "seed": 0, "augment": NO_AUGMENTATION}


@pytest.fixture
def labeled(maker):
    face = maker.face(maker.image("a.png"), visibility=LABELS, visible=LOCATED)
    landmarks = np.where(LOCATED[:, None], face.landmarks, np.nan)
    face = maker.face(face.image_path, landmarks=landmarks, visibility=LABELS, visible=LOCATED)
    return maker.dataset([face], "labeled")


@pytest.fixture
def unlabeled(maker):
    return maker.dataset([maker.face(maker.image("b.png", seed=1))], "unlabeled")


def augmented(dataset, **config):
    config = {**vars(NO_AUGMENTATION), **config}
    record = dataset.source("train")[0]
    rng = np.random.default_rng(3)
    return augment_face(record, dataset.scheme, 32, AugmentConfig(**config), rng)


def test_labels_are_in_the_crops(labeled):
    face = augmented(labeled)
    np.testing.assert_array_equal(face["visibility"], LABELS)
    assert face["visibility"].dtype == np.int8
    assert not face["visible"][2]
    np.testing.assert_array_equal(crop_face(labeled.source("train")[0], 32)["visibility"], LABELS)


def test_mirror_permutes_labels_with_landmarks(labeled):
    assert list(labeled.scheme.mirror) == MIRROR
    face = augmented(labeled, mirror=1.0)
    np.testing.assert_array_equal(face["visibility"], LABELS[MIRROR])
    np.testing.assert_array_equal(face["visible"], LOCATED[MIRROR])


def test_landmarks_under_an_occluder_are_externally_occluded(labeled):
    face = augmented(labeled, occlusion=1.0, occlusion_side=(1.0, 1.0))
    np.testing.assert_array_equal(face["visibility"], [1, 1, 2, -1, 1])
    corrupted = crop_face(labeled.source("train")[0], 32, corruption="occlude")
    covered = np.array([True, False])[(corrupted["visibility"] == LABELS).astype(int)]
    assert not covered[[1, 2, 3]].any(), "only visible landmarks change"


def test_only_landmarks_on_covered_pixels_become_occluded():
    covered = np.zeros((10, 10), bool)
    covered[4, 6] = True
    points = np.array([[6.4, 4.4], [6.6, 4.0], [6.0, 3.4], [40.0, 4.0], [np.nan, np.nan]])
    labels = cover_labels(np.zeros(5, np.int8), points, covered)
    assert labels.tolist() == [1, 0, 0, 0, 0]
    assert labels.dtype == np.int8


def test_labels_do_not_affect_the_random_stream(labeled, unlabeled):
    record = labeled.source("train")[0]
    config = AugmentConfig(occlusion=0.5, noise=0.5)
    for seed in range(5):
        crops = [
            augment_face(
                record | {"visibility": labels},
                labeled.scheme,
                32,
                config,
                np.random.default_rng(seed),
            )
            for labels in (LABELS, np.full(5, -1, np.int8))
        ]
        for name in ("image", "landmarks", "visible"):
            np.testing.assert_array_equal(crops[0][name], crops[1][name])
        assert (crops[1]["visibility"] == -1).all()


def test_labels_outside_the_training_crop_are_unknown(maker):
    dataset = maker.dataset([maker.face(maker.image("a.png"), visibility=np.zeros(5, np.int8))])
    record = dataset.source("train")[0]
    for seed in range(10):
        config = AugmentConfig(zoom=(2.0, 2.0), shift=0.3)
        face = augment_face(record, dataset.scheme, 32, config, np.random.default_rng(seed))
        points = face["landmarks"]
        inside = ((points >= -0.5) & (points < 31.5)).all(axis=1)
        np.testing.assert_array_equal(face["visibility"], np.where(inside, 0, -1))
        assert face["visible"].all()
    # Evaluation does not change them, because the label is about the image.
    record = dataset.source("train")[0]
    box = geometry.box_of_landmarks(record["landmarks"][:2], np.ones(2, bool))
    assert not crop_face(record, 32, box)["visibility"].any()


def test_mixture_of_datasets_with_and_without_labels(labeled, unlabeled):
    mixture = FaceMixture((labeled, unlabeled), (1.0, 1.0))
    iterator = train_iterator(mixture, "train", **SETTINGS)
    (batch,) = itertools.islice(iterator, 1)
    iterator.close()
    assert batch["visibility"].dtype == np.int8
    for record, labels in zip(batch["record"], batch["visibility"], strict=True):
        np.testing.assert_array_equal(labels, LABELS if record == 0 else np.full(5, -1))


def test_evaluation_batches_have_the_labels(labeled):
    (batch,) = eval_batches(labeled, "train", image_size=32, batch_size=2)
    np.testing.assert_array_equal(batch["visibility"], [LABELS, LABELS])
