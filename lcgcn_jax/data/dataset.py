"""Opens the datasets that `lcgcn prepare` wrote."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from lcgcn_jax import geometry
from lcgcn_jax.data import records
from lcgcn_jax.data.annotation_offsets import AnnotationOffsets, read_offsets
from lcgcn_jax.errors import InputError
from lcgcn_jax.landmarks import LandmarkScheme

UNIONS = {"full": "common+challenge"}
"""Names for unions of splits."""


class FaceSource(Sequence[dict[str, Any]]):
    """Random access to the faces of some splits.

    An element is the record of `records.encode_face`: NumPy arrays, text as `str`, and `image` as
    the encoded bytes. Datasets of earlier versions have NaN for a missing `normalizer`, and -1
    (unknown) for missing `visibility`. The source pickles as its path: worker processes open their own files.

    Args:
      path: folder of the records.
      split: their splits, joined by `+`.
      length: number of faces.
      offsets: removed from the landmarks; `box` is then the box of the moved ones.
      attribute_names: names of the columns of `attributes`.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        length: int,
        offsets: AnnotationOffsets | None = None,
        attribute_names: Sequence[str] = (),
    ):
        self._path = path
        self._split = split
        self._length = length
        self._offsets = offsets
        self._attribute_names = tuple(attribute_names)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = range(self._length)[index]
        record = self._records[index]
        texts = {key: record[key].decode() for key in ("name", "subset", "group")}
        absent = {
            "normalizer": np.float32(np.nan),
            "visibility": records.unknown_visibility(len(record["visible"])),
        }
        return self._without_offsets(absent | record | texts)

    def __repr__(self) -> str:
        return f"FaceSource({str(self._path)!r}, {self._split!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    def _without_offsets(self, record: dict[str, Any]) -> dict[str, Any]:
        if self._offsets is None:
            return record
        names = zip(self._attribute_names, record["attributes"], strict=True)
        located = record["visible"]
        # A record's pixels are the image's, cut and not scaled.
        landmarks = self._offsets.remove(
            record["landmarks"], located, [name for name, is_set in names if is_set]
        )
        box = geometry.box_of_landmarks(landmarks, located).astype(np.float32)
        return record | {"landmarks": landmarks, "box": box}

    @functools.cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        builder = tfds.builder_from_directory(self._path)
        return builder.as_data_source(self._split, decoders={"image": tfds.decode.SkipDecoding()})


@dataclasses.dataclass(frozen=True)
class FaceDataset:
    """A prepared dataset.

    Attributes:
      path: the folder that was opened.
      name: the layout it was made from, e.g. `300w`.
      scheme: what the landmarks mean.
      attribute_names: names of the columns of `attributes`.
      num_faces: faces in each split.
      subsets: faces in each subset.
      absent: subsets that were not there when the dataset was prepared.
      fingerprint: changes when names, splits or landmarks of the data change.
      offsets: annotation offsets that `source` removes from the landmarks, or None.
    """

    path: Path
    name: str
    scheme: LandmarkScheme
    attribute_names: tuple[str, ...]
    num_faces: dict[str, int]
    subsets: dict[str, int]
    absent: tuple[str, ...]
    fingerprint: str
    offsets: AnnotationOffsets | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are."""
        return tuple(self.num_faces)

    def parts(self, split: str) -> list[str]:
        """The splits that a union such as `full` or `train+validation` is made of, in order."""
        return "+".join(UNIONS.get(part, part) for part in split.split("+")).split("+")

    def source(self, split: str) -> FaceSource:
        """Random access to the faces of a split, or of a union such as `train+validation`.

        Args:
          split: one of `splits`, several joined by `+`, or `full` (common and challenge).

        Raises:
          InputError: a split is not there.
        """
        parts = self.parts(split)
        if missing := [part for part in parts if part not in self.num_faces]:
            raise InputError(
                f"{self.path}: no split {missing[0]!r}; there are {', '.join(self.splits)}"
            )
        if len(set(parts)) < len(parts):
            raise InputError(f"split {split!r} names a part twice")
        length = sum(self.num_faces[part] for part in parts)
        return FaceSource(
            self.path / records.RECORDS,
            "+".join(parts),
            length,
            self.offsets,
            self.attribute_names,
        )

    def without_offsets(self, offsets_file: Path | str) -> "FaceDataset":
        """The dataset with annotation offsets removed from its landmarks.

        Args:
          offsets_file: a file that `lcgcn fit-offsets` wrote.

        Raises:
          InputError: it cannot be used for this data.
        """
        return dataclasses.replace(self, offsets=read_offsets(offsets_file, self.scheme))


def open_dataset(path: Path | str) -> FaceDataset:
    """Opens a folder that `lcgcn prepare` wrote.

    Raises:
      InputError: there is no such folder, or it is no prepared dataset.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; `lcgcn prepare` makes a dataset")
    if not (path / records.RECORDS / "dataset_info.json").is_file():
        raise InputError(f"{path}: not a prepared dataset; `lcgcn prepare` makes one")
    info = tfds.builder_from_directory(path / records.RECORDS).info
    metadata = info.metadata
    return FaceDataset(
        path=path,
        name=metadata["kind"],
        scheme=LandmarkScheme.from_dict(metadata["scheme"]),
        attribute_names=tuple(metadata["attribute_names"]),
        num_faces={
            split: info.splits[split].num_examples
            for split in records.SPLITS
            if split in info.splits
        },
        subsets=dict(metadata["subsets"]),
        absent=tuple(metadata["absent"]),
        fingerprint=metadata["fingerprint"],
    )


def require_scheme(dataset: FaceDataset, wanted: LandmarkScheme) -> None:
    """Refuses data whose points mean something else than a checkpoint's.

    Args:
      dataset: the data.
      wanted: the scheme that the checkpoint was trained for.

    Raises:
      InputError: the schemes differ.
    """
    scheme = dataset.scheme
    if (scheme.name, scheme.names) == (wanted.name, wanted.names):
        return
    same_name = " of another version of that scheme" if scheme.name == wanted.name else ""
    raise InputError(
        f"{dataset.path}: {scheme.num_landmarks} points ({scheme.name}), but the checkpoint was "
        f"trained for {wanted.num_landmarks} ({wanted.name}){same_name}"
    )


def open_datasets(
    folders: Sequence[Path], scheme: LandmarkScheme, offsets: Sequence[Sequence[str]] = ()
) -> list[FaceDataset]:
    """Open several prepared datasets, and remove the annotation offsets of some of them.

    Args:
      folders: dataset folders.
      scheme: landmark scheme that all have to have; its normalizer replaces that of the datasets.
      offsets: pairs of a dataset folder and a file of offsets.

    Raises:
      InputError: a folder occurs twice, or a dataset or a file cannot be used.
    """
    files = {Path(folder): file for folder, file in offsets}
    if len(set(folders)) < len(folders) or len(files) < len(offsets):
        raise InputError("--data, --offsets: give each dataset folder only once")
    if unknown := files.keys() - set(folders):
        raise InputError(f"--offsets {min(unknown)}: no such --data; give one of its folders")
    datasets = []
    for folder in folders:
        dataset = open_dataset(folder)
        require_scheme(dataset, scheme)
        if folder in files:
            dataset = dataset.without_offsets(files[folder])
        datasets.append(dataclasses.replace(dataset, scheme=scheme))
    return datasets
