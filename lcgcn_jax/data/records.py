"""Writer of datasets: annotated faces as TFDS records in ArrayRecord files, without TensorFlow."""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lcgcn_jax.data.annotations import (
    SPLITS,
    AnnotationList,
    BadRecord,
    FaceAnnotation,
    is_system_file,
)
from lcgcn_jax.data.encoding import encode_face
from lcgcn_jax.data.image_notes import ImageNotes
from lcgcn_jax.data.mirror_check import mirror_pair_note
from lcgcn_jax.data.source_images import SizeMismatch, in_upright_pixels, read_source_image
from lcgcn_jax.errors import InputError, count_of, one_line, require_absent
from lcgcn_jax.folders import SYSTEM_FOLDERS
from lcgcn_jax.interrupts import deferred

VERSION = "1.0.0"
RECORDS = f"faces/{VERSION}"
"""Folder of the TFDS dataset in a prepared folder."""

REPORT = "report.json"

# Temporary folders of `fresh_folder`.
_PREFIX = ".prepare-"
_TEMPORARY = re.compile(r"\.prepare-\w+\.(partial|replaced)")

_MAX_NAMES = 10  # in a note
_VALIDATION_STRIDE = 10  # one group in ten


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """Result of `prepare`.

    Attributes:
      kind: the layout of the source.
      num_faces: number of faces in each split.
      subsets: number of faces in each subset.
      absent: subsets of the layout that the source does not have.
      bad: records that were skipped.
      fingerprint: SHA-256 of names, splits and landmarks.
      notes: one-line notes for the user, without duplicates.
    """

    kind: str
    num_faces: dict[str, int]
    subsets: dict[str, int]
    absent: list[str]
    bad: list[BadRecord]
    fingerprint: str
    notes: list[str]


def prepare(
    annotations: AnnotationList,
    out: Path,
    *,
    overwrite: bool = False,
    stored_pixels: bool = False,
) -> PrepareReport:
    """Write records and `report.json` to a new folder, which appears only when it is complete.

    Args:
      stored_pixels: whether the annotations refer to the images as stored, without the EXIF
        orientation; otherwise they refer to the upright images.

    Raises:
      InputError: `out` already exists, or no face can be used.
    """
    with fresh_folder(out, overwrite=overwrite) as folder:
        return write_records(annotations, folder, stored_pixels=stored_pixels)


@contextlib.contextmanager
def fresh_folder(
    out: Path, *, overwrite: bool = False, sources: Collection[str] = ()
) -> Iterator[Path]:
    """Temporary folder whose content replaces that of `out` when the block succeeds.

    An existing folder `out` stays in its place: it may be a mount point or the current folder, or its parent
    may be read-only.

    Args:
      sources: names of other files or folders of the dataset.

    Raises:
      InputError: `out` is not empty, and is not a prepared dataset that may be overwritten, or has other
        files; or another process has written it.
    """
    known = {Path(RECORDS).parts[0], REPORT, *sources}
    if out.exists() and (not out.is_dir() or _content(out)):
        require_absent(out, overwrite=overwrite)
        if not (out / RECORDS).is_dir():
            raise InputError(f"{out}: not empty and not a dataset; choose another folder")
        if others := [path for path in _content(out) if path.name not in known]:
            raise InputError(
                f"{min(others)}: is not part of the dataset; move it, or choose another folder"
            )
    # Paths such as `.` or `a/..` have no name.
    out = Path(os.path.realpath(out))  # unlike Path.resolve, also for a loop of links
    is_new = not out.exists()
    new_parents = [parent for parent in out.parents if not parent.exists()]
    folder = None
    try:
        place = out.parent if is_new else out
        place.mkdir(parents=True, exist_ok=True)
        partial = place / f"{_PREFIX}{secrets.token_hex(4)}.partial"
        partial.mkdir()
        folder = partial
        yield folder
        with deferred():
            if is_new:
                folder.replace(out)
            else:
                _exchange(folder, out, known, overwrite=overwrite)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(
            f"{out}: cannot be written: {reason}; nothing was changed; choose another folder, or make room"
        ) from error
    finally:
        with deferred():
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if not out.exists():
                with contextlib.suppress(OSError):  # another process may have written to it
                    for parent in new_parents:
                        parent.rmdir()


def _content(folder: Path) -> list[Path]:
    """Files in a folder, without those of the system and of processes that were killed.

    Raises:
      InputError: a process was killed while it replaced the dataset.
    """
    for path in folder.glob(f"{_PREFIX}*.replaced"):
        if (path / RECORDS).is_dir() and not (folder / RECORDS).is_dir():
            raise InputError(f"{path}: holds the earlier dataset; move its content to {folder}")
    return [
        path
        for path in folder.iterdir()
        if not is_system_file(path.name)
        and path.name.lower() not in SYSTEM_FOLDERS
        and not _TEMPORARY.fullmatch(path.name)
    ]


def _exchange(folder: Path, out: Path, known: Collection[str], *, overwrite: bool) -> None:
    """Move the content of a folder to `out`, whose earlier dataset it replaces; all of it or nothing."""
    old = [path for name in sorted(known) if (path := out / name).exists()]
    if old and not overwrite:
        raise InputError(f"{out}: another process has written it; choose another folder")
    # The records come last, because a folder with records is a dataset.
    new = sorted(folder.iterdir(), key=lambda path: path.name == Path(RECORDS).parts[0])
    replaced = folder.with_suffix(".replaced")
    moves = [(path, replaced / path.name) for path in old]
    moves += [(path, out / path.name) for path in new]
    replaced.mkdir()
    finished = []
    try:
        for source, target in moves:
            source.replace(target)
            finished.append((source, target))
    except BaseException:
        for source, target in reversed(finished):
            target.replace(source)
        replaced.rmdir()
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def write_records(
    annotations: AnnotationList, folder: Path, *, stored_pixels: bool = False
) -> PrepareReport:
    """Write the records and the report to an existing folder.

    Args:
      stored_pixels: whether the annotations refer to the images as stored.

    Raises:
      InputError: no face can be used.
      OSError: the folder cannot be written.
    """
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = Faces(
        annotations, stored_pixels=stored_pixels, data_dir=folder, file_format="array_record"
    )
    # TFDS prints a message about downloads, although nothing is downloaded.
    with contextlib.redirect_stdout(io.StringIO()), _system_errors():
        builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)
    report = builder.report
    assert report is not None, "set by download_and_prepare"
    text = json.dumps(dataclasses.asdict(report), indent=2)
    (folder / REPORT).write_text(text, encoding="utf-8")
    return report


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Convert the `RuntimeError` of the ArrayRecord writer for a failed system call to `OSError`."""
    try:
        yield
    except RuntimeError as error:
        if failure := re.search(r"\b\w+\(\) failed: ([^;\n]+)", str(error)):
            raise OSError(errno.EIO, failure[1]) from error
        raise


def validation_groups(
    faces: Iterable[FaceAnnotation], is_usable: Callable[[FaceAnnotation], bool]
) -> frozenset[str]:
    """Choose the groups of train that become the validation split.

    It is a fixed tenth of the groups, by the SHA-256 of their names. If they have no usable face, or if
    the others have none, it is the first usable group in the order of SHA-256. With fewer than two usable
    groups it is empty.
    """
    by_group = collections.defaultdict(list)
    for face in faces:
        if face.split == "train":
            by_group[face.group].append(face)

    def any_usable(groups: Iterable[str]) -> bool:
        return any(is_usable(face) for group in groups for face in by_group[group])

    digests = {group: _group_digest(group) for group in by_group}
    held_out = [group for group in by_group if digests[group] % _VALIDATION_STRIDE == 0]
    if any_usable(held_out) and any_usable(group for group in by_group if group not in held_out):
        return frozenset(held_out)
    in_order = sorted(by_group, key=digests.__getitem__)
    usable = itertools.islice((group for group in in_order if any_usable([group])), 2)
    match list(usable):
        case [first, _]:
            return frozenset([first])
    return frozenset()


def _group_digest(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


class Faces(tfds.core.GeneratorBasedBuilder):
    """TFDS builder for annotated faces. `dataset.open_dataset` reads its output.

    Faces that cannot be used, for example because the image is corrupt, are skipped and reported.

    Attributes:
      report: the result, after `download_and_prepare`.
    """

    VERSION = tfds.core.Version(VERSION)

    # Otherwise TFDS searches for checksums of downloads next to the code with importlib_resources, which
    # TFDS 4.9 does not install on these Python versions.
    code_path = None

    def __init__(self, annotations: AnnotationList, *, stored_pixels: bool = False, **kwargs):
        self._annotations = annotations
        self._stored_pixels = stored_pixels
        self._num_faces = collections.Counter()
        self._subsets = collections.Counter()
        self._bad = list(annotations.bad)
        self._mismatched = collections.Counter()
        self._fingerprint = hashlib.sha256()
        self._images = ImageNotes(stored_pixels=stored_pixels)
        self._landmarks: list[np.ndarray] = []  # in upright pixels, of custom landmarks
        self._visible: list[np.ndarray] = []
        self.report: PrepareReport | None = None
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        k = self._annotations.scheme.num_landmarks
        tensor = tfds.features.Tensor
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "landmarks": tensor(shape=(k, 2), dtype=np.float32),
                    "visible": tensor(shape=(k,), dtype=np.bool_),
                    "visibility": tensor(shape=(k,), dtype=np.int8),
                    "box": tensor(shape=(4,), dtype=np.float32),
                    "provided_box": tensor(shape=(4,), dtype=np.float32),
                    "attributes": tensor(
                        shape=(len(self._annotations.attribute_names),), dtype=np.bool_
                    ),
                    "subset": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "normalizer": tensor(shape=(), dtype=np.float32),
                    # Exact in float32, the only float type of TFDS records, because it has whole pixels.
                    "to_source": tensor(shape=(2, 3), dtype=np.float32),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Keep the order of the reader, so that record numbers are meaningful.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[tuple[int, dict]]]:
        del dl_manager
        faces = self._annotations.faces
        validation = frozenset()
        if self._annotations.has_validation and not self._has_stated_validation:
            validation = validation_groups(faces, self._is_usable)
        by_split = collections.defaultdict(list)
        for face in faces:
            held_out = face.split == "train" and face.group in validation
            by_split["validation" if held_out else face.split].append(face)
        generators = {}
        for split in SPLITS:
            # TFDS rejects empty splits, so the first record of each split is encoded here.
            examples = self._generate_examples(split, by_split[split])
            if first := next(examples, None):
                generators[split] = itertools.chain([first], examples)
            elif self._mismatched[split] == len(by_split[split]) > 0:
                raise InputError(
                    f"no face of {split} can be used; the first: {self._bad[-len(by_split[split])]}"
                )
        if not generators:
            if not self._bad:
                raise InputError("no faces in the annotation files; check that they are complete")
            raise InputError(
                f"no face can be used, {len(self._bad)} are bad; the first: {self._bad[0]}"
            )
        return generators

    @property
    def _has_stated_validation(self) -> bool:
        return any(face.split == "validation" for face in self._annotations.faces)

    def _encode(self, face: FaceAnnotation) -> dict[str, Any]:
        header = read_source_image(face.image_path).header
        upright = in_upright_pixels(
            face, header, self._annotations.scheme.mirror, stored_pixels=self._stored_pixels
        )
        try:
            return encode_face(upright)
        except ValueError as error:
            if header.orientation == 1 or self._stored_pixels or face.stated_size is not None:
                raise
            raise ValueError(
                f"{error}; the image has an EXIF orientation: for points in its pixels as stored, add "
                "--stored-pixels"
            ) from error

    def _is_usable(self, face: FaceAnnotation) -> bool:
        try:
            self._encode(face)
        except ValueError:
            return False
        return True

    def _generate_examples(
        self, split: str, faces: Iterable[FaceAnnotation]
    ) -> Iterator[tuple[int, dict]]:
        key = 0
        for face in faces:
            try:
                example = self._encode(face)
            except ValueError as error:
                self._bad.append(BadRecord(face.name, str(error)))
                self._mismatched[split] += isinstance(error, SizeMismatch)
                continue
            self._count(split, face, example["landmarks"])
            if self._annotations.has_custom_landmarks:
                self._landmarks.append(example["landmarks"])
                self._visible.append(example["visible"])
            yield key, example | {"image": io.BytesIO(example["image"])}
            key += 1

    def _count(self, split: str, face: FaceAnnotation, landmarks: np.ndarray) -> None:
        self._num_faces[split] += 1
        self._subsets[face.subset] += 1
        self._images.add(split, face)
        self._fingerprint.update(f"{face.name}\n{split}\n".encode())
        self._fingerprint.update(landmarks.astype("<f4").tobytes())

    def _notes(self) -> list[str]:
        notes = self._images.notes()
        if note := mirror_pair_note(self._annotations.scheme, self._landmarks, self._visible):
            notes.append(note)
        is_located = np.any(self._visible, axis=0)
        if self._visible and not is_located.all():
            names = np.array(self._annotations.scheme.names)[~is_located].tolist()
            listed = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
            notes.append(
                f"{count_of(len(names), 'landmark')} without a location in any face, so not trained: {listed}"
            )
        is_expected = self._annotations.has_validation and "train" in self._num_faces
        if is_expected and "validation" not in self._num_faces:
            reason = (
                "none of its faces can be used"
                if self._has_stated_validation
                else "all training faces are of one image or group"
            )
            notes.append(
                f"no validation split: {reason}; add faces of other images, or train with "
                "--config.data.validation_split=train"
            )
        return notes

    def _download_and_prepare(self, *args, **kwargs) -> None:
        super()._download_and_prepare(*args, **kwargs)
        in_order = dict.fromkeys(face.subset for face in self._annotations.faces)
        self.report = PrepareReport(
            kind=self._annotations.kind,
            num_faces=dict(self._num_faces),
            subsets={name: self._subsets[name] for name in in_order if name in self._subsets},
            absent=self._annotations.absent,
            bad=self._bad,
            fingerprint=self._fingerprint.hexdigest(),
            notes=list(dict.fromkeys([*self._annotations.notes, *self._notes()])),
        )
        # TFDS writes the metadata after this method.
        metadata: Any = self.info.metadata  # optional in the types of TFDS
        metadata.update(
            kind=self.report.kind,
            scheme=self._annotations.scheme.to_dict(),
            attribute_names=list(self._annotations.attribute_names),
            absent=self.report.absent,
            subsets=self.report.subsets,
            fingerprint=self.report.fingerprint,
        )
