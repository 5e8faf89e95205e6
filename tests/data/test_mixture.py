"""Tests of `data.mixture`: weights, exact resume, and parts of processes."""

import itertools

import numpy as np
import pytest

from lcgcn_jax.data.augment import AugmentConfig
from lcgcn_jax.data.dataset import open_dataset
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.data.pipeline import train_iterator
from lcgcn_jax.synthetic.dataset import prepare_synthetic

SETTINGS = {"image_size": 16, "batch_size": 4, "seed": 1, "augment": AugmentConfig()}
SPLIT = "train"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two datasets of synthetic faces, one of them small."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, faces, seed in (("large", 12, 0), ("small", 5, 1)):
        prepare_synthetic("wflw98", folder / name, num_train=faces, num_test=1, seed=seed)
    return tuple(open_dataset(folder / name) for name in ("large", "small"))


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_mixture_of_one_dataset_equals_the_dataset(datasets):
    expected = take(train_iterator(datasets[0], SPLIT, **SETTINGS), 6)
    assert_same(expected, take(train_iterator(FaceMixture.of(datasets[0]), SPLIT, **SETTINGS), 6))


def test_weights_and_epochs_of_each_dataset(datasets):
    mixture = FaceMixture(datasets, (3.0, 1.0))
    large, small = (dataset.num_faces[SPLIT] for dataset in datasets)
    assert mixture.num_faces(SPLIT) == large + small
    batches = take(train_iterator(mixture, SPLIT, **SETTINGS), large)
    for batch in batches:
        assert (batch["record"] >= large).sum() == 1, "a quarter of each batch"
    records = np.concatenate([batch["record"] for batch in batches])
    first = records[records < large]
    for epoch in range(3):
        assert sorted(first[epoch * large :][:large]) == list(range(large))
    second = records[records >= large]
    assert sorted(second[:small]) == list(range(large, large + small))


@pytest.mark.parametrize("at", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 7))])
def test_mixture_resumes_at_any_batch(datasets, at):
    mixture = FaceMixture(datasets, (0.6, 0.4))
    whole = take(train_iterator(mixture, SPLIT, **SETTINGS), 10)
    first = train_iterator(mixture, SPLIT, **SETTINGS)
    for _ in range(at):
        next(first)
    resumed = train_iterator(mixture, SPLIT, num_threads=1, **SETTINGS)
    resumed.set_state(first.get_state())
    first.close()
    assert_same(whole[at:], take(resumed, 10 - at))


def test_parts_of_two_processes_are_the_whole(datasets):
    mixture = FaceMixture(datasets, (0.6, 0.4))
    whole = take(train_iterator(mixture, SPLIT, **SETTINGS), 5)
    parts = [
        take(train_iterator(mixture, SPLIT, process_index=p, process_count=2, **SETTINGS), 5)
        for p in range(2)
    ]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


def test_the_same_faces_twice_are_varied_differently(datasets):
    """The order of a dataset depends on the seed; its variations on its place in the mixture too."""
    mixture = FaceMixture((datasets[1], datasets[1]), (1.0, 1.0))
    count = datasets[1].num_faces[SPLIT]
    batches = take(train_iterator(mixture, SPLIT, **(SETTINGS | {"batch_size": 2})), count)
    for batch in batches:
        assert batch["record"][1] - batch["record"][0] == count
        assert not np.array_equal(batch["landmarks"][0], batch["landmarks"][1])


def test_names_of_the_faces(datasets):
    mixture = FaceMixture(datasets, (1.0, 1.0))
    large = datasets[0].num_faces[SPLIT]
    sources = mixture.sources(SPLIT)
    assert mixture.names(SPLIT, np.array([large - 1, large])) == [
        sources[0][large - 1]["name"],
        sources[1][0]["name"],
    ]
