"""Weighted mixture of datasets for training."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lcgcn_jax.data.dataset import FaceDataset, FaceSource
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme


@dataclasses.dataclass(frozen=True)
class FaceMixture:
    """Datasets that are mixed in training.

    The faces of a split are numbered consecutively over all datasets.

    Attributes:
      datasets: one or more datasets with the same landmark scheme.
      weights: relative number of training faces from each dataset.
    """

    datasets: tuple[FaceDataset, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, dataset: FaceDataset) -> "FaceMixture":
        """Mixture of a single dataset."""
        return cls((dataset,), (1.0,))

    @property
    def scheme(self) -> LandmarkScheme:
        """Landmark scheme of all datasets."""
        return self.datasets[0].scheme

    def sources(self, split: str) -> list[FaceSource]:
        """Faces of a split in each dataset.

        Raises:
          InputError: a dataset has no such split, or no face in it.
        """
        sources = [dataset.source(split) for dataset in self.datasets]
        for dataset, source in zip(self.datasets, sources, strict=True):
            if not len(source):
                raise InputError(f"{dataset.path}: no face in split {split!r}")
        return sources

    def num_faces(self, split: str) -> int:
        """Number of faces of a split in all datasets."""
        return sum(map(len, self.sources(split)))

    def names(self, split: str, records: Sequence[int] | np.ndarray) -> list[str]:
        """Names of the faces with these numbers, for messages."""
        sources = self.sources(split)
        first = np.cumsum([0, *map(len, sources)])
        names = []
        for record in map(int, records):
            part = int(np.searchsorted(first, record, side="right")) - 1
            names.append(sources[part][record - int(first[part])]["name"])
        return names
