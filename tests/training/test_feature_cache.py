"""Tests of `training.feature_cache`: the same batches as from images, for mixtures of datasets too."""

import itertools

import numpy as np
import pytest

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.data.pipeline import train_iterator, view_order
from lcgcn_jax.models.lcgcn import GraphInputs
from lcgcn_jax.synthetic.dataset import prepare_synthetic
from lcgcn_jax.training.feature_cache import CachedBatches, FeatureCache

SPLIT, VIEWS, SIZES = "train", 2, {"image_size": 16, "batch_size": 4}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Three datasets of synthetic faces of different sizes."""
    folder = tmp_path_factory.mktemp("cached")
    for seed, faces in enumerate((7, 5, 3)):
        prepare_synthetic("wflw98", folder / str(seed), num_train=faces, num_test=1, seed=seed)
    return tuple(open_dataset(folder / str(seed)) for seed in range(3))


def detect(images):
    """Stand-in for a heatmap model, whose outputs identify the crops."""
    pixels = images.reshape(len(images), -1)[:, ::7].astype(np.float32)
    return GraphInputs(pixels[:, None, :2], pixels[:, :1], None, pixels)


@pytest.mark.parametrize("count", [1, 3])
def test_batches_equal_those_of_images(datasets, count):
    mixture = FaceMixture(datasets[:count], (3.0, 2.0, 1.0)[:count])
    augment = AugmentConfig(rotation=30.0)
    settings = SIZES | {"seed": 1, "augment": augment, "views": VIEWS}
    live = train_iterator(mixture, SPLIT, **settings)
    views = FeatureCache(detect, mixture, **SIZES).training_views(SPLIT, augment, VIEWS)
    assert len(views.landmarks) == VIEWS * mixture.num_faces(SPLIT)
    order = view_order(mixture, SPLIT, batch_size=SIZES["batch_size"], seed=1, views=VIEWS)
    cached = CachedBatches(order, views)
    seen = set()
    for expected, batch in itertools.islice(zip(live, cached, strict=True), 12):
        for name in ("record", "landmarks", "visible", "visibility"):
            np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)
        inputs = detect(expected["image"])
        np.testing.assert_array_equal(batch["graph_inputs"].heatmap_std, inputs.heatmap_std)
        seen |= set(batch["record"].tolist())
    live.close()
    cached.close()
    assert seen == set(range(mixture.num_faces(SPLIT))), "every face of every dataset"


def test_splits_are_those_of_the_dataset(datasets):
    cache = FeatureCache(detect, FaceMixture.of(datasets[0]), **SIZES)
    sizes = {}
    for dataset in datasets[:2]:
        (inputs, batch), *_ = cache.split(dataset, SPLIT)
        assert "image" not in batch
        assert inputs.heatmap_std is not None
        sizes[dataset.path] = sum(int(b["mask"].sum()) for _, b in cache.split(dataset, SPLIT))
    assert list(sizes.values()) == [dataset.num_faces[SPLIT] for dataset in datasets[:2]]
