"""Datasets of a training run."""

import os

from lcgcn_jax.data.dataset import FaceDataset, open_dataset
from lcgcn_jax.data.mixture import FaceMixture
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import get_scheme
from lcgcn_jax.training.config_types import Config, DataConfig

_FIXES = {
    "train_split": "prepare the data again with training faces, or set",
    "validation_split": (
        "name faces for it in the column 'split' of the annotations and prepare the data again, or set"
    ),
}


def open_train_data(config: Config) -> tuple[FaceDataset, FaceMixture]:
    """Open `data.dir`, and the mixture of datasets to train on: `data.sources`, or `data.dir`.

    Raises:
      InputError: a folder cannot be read, or lacks a split or the landmark scheme of the config.
    """
    data = config.data
    dataset = _open_folder(config, data.dir, tuple(_FIXES), data.offsets)
    if not data.sources:
        return dataset, FaceMixture.of(dataset)
    datasets, weights = [], []
    for folder, weight, *offsets in data.sources:
        datasets.append(_open_folder(config, folder, ("train_split",), *offsets))
        weights.append(float(weight))
    places = [os.path.realpath(str(dataset.path)) for dataset in datasets]
    if len(set(places)) < len(places):
        raise InputError("config data.sources: two names of the same folder; give each folder once")
    return dataset, FaceMixture(tuple(datasets), tuple(weights))


def require_visibility_labels(mixture: FaceMixture, split: str) -> None:
    """Check that some face of a split has visibility labels.

    Raises:
      InputError: no face has.
    """
    for source in mixture.sources(split):
        if any((source[i]["visibility"] >= 0).any() for i in range(len(source))):
            return
    folders = ", ".join(str(dataset.path) for dataset in mixture.datasets)
    raise InputError(
        f"config model.visibility.head: no face of split {split!r} in {folders} has visibility labels; add "
        "a dataset that has them, such as MERL-RAV, to data.sources, or set it to none"
    )


def _open_folder(
    config: Config, folder: str, split_fields: tuple[str, ...], offsets: str = ""
) -> FaceDataset:
    """Open a dataset, with the annotation offsets of the file `offsets` removed if there is one."""
    try:
        dataset = open_dataset(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    scheme = get_scheme(config.scheme)
    if dataset.scheme.name != scheme.name:
        raise InputError(
            f"{folder}: {dataset.scheme.num_landmarks} points ({dataset.scheme.name}), but "
            f"the config is for {scheme.num_landmarks} ({scheme.name}); set config.scheme or data.dir"
        )
    if dataset.scheme != scheme:
        raise InputError(
            f"{config.scheme}: the scheme has changed since {folder} was prepared; prepare the "
            "data again"
        )
    for field in split_fields:
        _require_split(dataset, folder, field, config.data)
    return dataset.without_offsets(offsets) if offsets else dataset


def _require_split(dataset: FaceDataset, folder: str, field: str, data: DataConfig) -> None:
    split = getattr(data, field)
    if missing := [part for part in dataset.parts(split) if part not in dataset.splits]:
        raise InputError(
            f"{folder}: no split {missing[0]!r} for config data.{field}; available: "
            f"{', '.join(dataset.splits)}; {_FIXES[field]} config.data.{field} to one of these"
        )
    dataset.source(split)
