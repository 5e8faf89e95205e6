"""Datasets written by `lcgcn prepare`, with random access to their faces."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from lcgcn_jax import geometry
from lcgcn_jax.bucket_copy import local_copy
from lcgcn_jax.data.annotation_offsets import AnnotationOffsets, read_offsets
from lcgcn_jax.data.annotations import SPLITS
from lcgcn_jax.data.encoding import unknown_visibility
from lcgcn_jax.data.records import RECORDS
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.storage import as_path, check_access

UNIONS = {"full": "common+challenge"}
"""Name -> union of splits."""


@dataclasses.dataclass(eq=False, repr=False)
class FaceSource(Sequence[dict[str, Any]]):
    """Random access to the faces of some splits.

    An element is a record of `encoding.encode_face`: NumPy arrays, text as `str`, and `image` as the
    encoded bytes. In datasets of earlier versions, a missing `normalizer` becomes NaN, and missing
    `visibility` becomes -1 (unknown). Pickling stores only the path, so worker processes open their own
    files.

    Attributes:
      split: their splits, joined by `+`.
      offsets: removed from the landmarks; `box` is then the box of the moved landmarks.
      with_images: whether records have the field `image`.
    """

    path: Path
    split: str
    length: int
    offsets: AnnotationOffsets | None = None
    attribute_names: Sequence[str] = ()
    _: dataclasses.KW_ONLY
    with_images: bool = True

    def __len__(self) -> int:
        return self.length

    # Grain reads single records, so there are no slices.
    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: SupportsIndex
    ) -> dict[str, Any]:
        index = range(self.length)[index]
        with _one_line_errors(self.path):
            record = dict(self._records[index])
        if not self.with_images:
            del record["image"]
        texts = {key: record[key].decode() for key in ("name", "subset", "group")}
        absent = {
            "normalizer": np.float32(np.nan),
            "visibility": unknown_visibility(len(record["visible"])),
        }
        return self._without_offsets(absent | record | texts)

    def __repr__(self) -> str:
        return f"FaceSource({str(self.path)!r}, {self.split!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    def _without_offsets(self, record: dict[str, Any]) -> dict[str, Any]:
        if self.offsets is None:
            return record
        names = zip(self.attribute_names, record["attributes"], strict=True)
        located = record["visible"]
        # Context crops are not scaled, so that their pixels are those of the image.
        landmarks = self.offsets.remove(
            record["landmarks"], located, [name for name, is_set in names if is_set]
        )
        box = geometry.box_of_landmarks(landmarks, located).astype(np.float32)
        return record | {"landmarks": landmarks, "box": box}

    @functools.cached_property
    def _records(self) -> Any:  # sequence of records
        decoders = {"image": tfds.decode.SkipDecoding()}
        with _one_line_errors(self.path):
            builder = tfds.builder_from_directory(self.path)
            # TFDS decorates the method without types.
            return builder.as_data_source(self.split, decoders=decoders)  # pyright: ignore[reportCallIssue]


@dataclasses.dataclass(frozen=True)
class FaceDataset:
    """Prepared dataset.

    Attributes:
      name: layout of the source, for example `300w`.
      attribute_names: names of the columns of `attributes`.
      num_faces: number of faces in each split.
      subsets: number of faces in each subset.
      absent: subsets that the source did not have.
      fingerprint: hash of names, splits and landmarks.
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
        """Names of the splits."""
        return tuple(self.num_faces)

    def parts(self, split: str) -> list[str]:
        """Splits of a union such as `full` or `train+validation`, in order.

        Raises:
          InputError: the value is not a text.
        """
        if not isinstance(split, str):
            raise InputError(f"split: {split!r}; give one of {', '.join(self.splits)}")
        return "+".join(UNIONS.get(part, part) for part in split.split("+")).split("+")

    def source(self, split: str, *, with_images: bool = True) -> FaceSource:
        """Random access to the faces of a split, or of a union such as `train+validation`.

        Args:
          split: one of `splits`, several joined by `+`, or `full` (common and challenge).
          with_images: whether records have the field `image`; without it, reading all of them needs
            little memory.

        Raises:
          InputError: the dataset has no such split.
        """
        parts = self.parts(split)
        if missing := [part for part in parts if part not in self.num_faces]:
            raise InputError(
                f"{self.path}: no split {missing[0]!r}; available: {', '.join(self.splits)}"
            )
        if len(set(parts)) < len(parts):
            raise InputError(f"split {split!r} has a duplicate part; remove it")
        length = sum(self.num_faces[part] for part in parts)
        return FaceSource(
            self.path / RECORDS,
            "+".join(parts),
            length,
            self.offsets,
            self.attribute_names,
            with_images=with_images,
        )

    def without_offsets(self, offsets_file: Path | str) -> "FaceDataset":
        """Copy of the dataset that removes annotation offsets from its landmarks.

        Args:
          offsets_file: a file written by `lcgcn research fit-offsets`.

        Raises:
          InputError: the file cannot be used for this dataset.
        """
        return dataclasses.replace(self, offsets=read_offsets(offsets_file, self.scheme))


def open_dataset(path: Path | str) -> FaceDataset:
    """Open a folder written by `lcgcn prepare`; one in a bucket is copied to the cache folder first.

    Raises:
      InputError: the folder does not exist, or is not a prepared dataset.
    """
    path = as_path(path)
    check_access(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; prepare a dataset with `lcgcn prepare`")
    if not (path / RECORDS / "dataset_info.json").is_file():
        raise InputError(f"{path}: not a prepared dataset; prepare one with `lcgcn prepare`")
    path = local_copy(path)
    with _one_line_errors(path / RECORDS):
        info = tfds.builder_from_directory(path / RECORDS).info
        # Both are optional in the types of TFDS.
        metadata: Any = info.metadata
        splits: Any = info.splits
        dataset = FaceDataset(
            path=path,
            name=metadata["kind"],
            scheme=LandmarkScheme.from_dict(metadata["scheme"]),
            attribute_names=tuple(metadata["attribute_names"]),
            num_faces={split: splits[split].num_examples for split in SPLITS if split in splits},
            subsets=dict(metadata["subsets"]),
            absent=tuple(metadata["absent"]),
            fingerprint=metadata["fingerprint"],
        )
        # Finds lost or truncated files before a training reaches its validation.
        for split in dataset.splits:
            for file in splits[split].filepaths:
                os.stat(file)
            _ = dataset.source(split, with_images=False)[0]
    return dataset


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Convert errors of TFDS and ArrayRecord, which have many types, to messages of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: damaged or incomplete ({one_line(error)[:200]}); copy or prepare the dataset again"
        ) from error


def require_scheme(dataset: FaceDataset, expected: LandmarkScheme) -> None:
    """Check that a dataset has the landmarks that a model was trained for.

    Raises:
      InputError: the schemes differ.
    """
    scheme = dataset.scheme
    if (scheme.name, scheme.names) == (expected.name, expected.names):
        return
    same_name = " of another version of that scheme" if scheme.name == expected.name else ""
    raise InputError(
        f"{dataset.path}: {scheme.num_landmarks} points ({scheme.name}), but the checkpoint was "
        f"trained for {expected.num_landmarks} ({expected.name}){same_name}"
    )


def open_datasets(
    folders: Sequence[Path], scheme: LandmarkScheme, offsets: Sequence[Sequence[str]] = ()
) -> list[FaceDataset]:
    """Open several prepared datasets, and remove the annotation offsets of some of them.

    Args:
      scheme: landmark scheme that all have to have; its normalizer replaces that of the datasets.
      offsets: pairs of a dataset folder and a file of offsets.

    Raises:
      InputError: a folder occurs twice, or a dataset or a file cannot be used.
    """
    files = {as_path(folder): file for folder, file in offsets}
    places = {os.path.realpath(str(folder)) for folder in folders}
    if len(places) < len(folders) or len(files) < len(offsets):
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
