"""Writes annotated faces as TFDS records in ArrayRecord files; TensorFlow is not needed."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, UInt8

from lcgcn_jax import geometry, photographs
from lcgcn_jax.data.records import AnnotationList, BadRecord, FaceAnnotation
from lcgcn_jax.errors import InputError

VERSION = "1.0.0"
RECORDS = f"faces/{VERSION}"
"""Where below a prepared folder the TFDS dataset lies."""

REPORT = "report.json"

CONTEXT_SCALE = 2.0
"""Side of the context crop over the longer side of the face's box."""

SPLITS = ("train", "validation", "common", "challenge", "test")

_VALIDATION_PART = 10
_WHOLE_AREA = 0.95
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True)
class PrepareReport:
    """What `prepare` wrote and what it left out.

    Attributes:
      kind: the layout that was read.
      num_faces: faces written for each split.
      subsets: faces written for each subset.
      absent: subsets that are not there.
      bad: records left out.
      fingerprint: SHA-256 of the names, splits and landmarks written.
      notes: one-line remarks for the user, each once.
    """

    kind: str
    num_faces: dict[str, int]
    subsets: dict[str, int]
    absent: list[str]
    bad: list[BadRecord]
    fingerprint: str
    notes: list[str]


def prepare(annotations: AnnotationList, out: Path, *, overwrite: bool = False) -> PrepareReport:
    """Writes a new folder with the records and `report.json`, all at once or not at all.

    Args:
      annotations: what a reader found.
      out: the folder to make.
      overwrite: whether a dataset that is already there may be replaced.

    Raises:
      InputError: `out` holds something already, or not one face can be used.
    """
    with fresh_folder(out, overwrite=overwrite) as folder:
        return write_records(annotations, folder)


@contextlib.contextmanager
def fresh_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well.

    Raises:
      InputError: `out` exists and is not empty, and is not a prepared dataset to overwrite.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise InputError(f"{out}: already exists; choose another folder or give --overwrite")
        if not (out / RECORDS).is_dir():
            raise InputError(f"{out}: holds something else than a dataset; choose another folder")
    # A name such as `.` or `a/..` would give no sibling.
    out = out.resolve()
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made: {error.strerror}") from error
    try:
        yield folder
        if out.exists():
            out.replace(replaced)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # Only now that the new one is in place: an interrupted exchange loses neither.
    shutil.rmtree(replaced, ignore_errors=True)


def write_records(annotations: AnnotationList, folder: Path) -> PrepareReport:
    """Writes the records and the report into a folder that is there.

    Raises:
      InputError: not one face can be used.
    """
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = Faces(annotations, data_dir=folder, file_format="array_record")
    # TFDS speaks of downloads on standard output; there are none.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)
    (folder / REPORT).write_text(
        json.dumps(dataclasses.asdict(builder.report), indent=2), encoding="utf-8"
    )
    return builder.report


def storage_split(face: FaceAnnotation, *, validation_given: bool = False) -> str:
    """The split that a face is stored in: a fixed tenth of the groups of train is validation.

    With `validation_given` the data says itself which faces are.
    """
    if validation_given or face.split != "train":
        return face.split
    digest = hashlib.sha256(face.group.encode()).digest()
    held_out = int.from_bytes(digest[:8], "big") % _VALIDATION_PART == 0
    return "validation" if held_out else "train"


class Faces(tfds.core.GeneratorBasedBuilder):
    """TFDS builder for any annotated faces; `dataset.open_dataset` reads what it writes.

    A face that cannot be used (its image does not decode, say) is left out and reported.

    Attributes:
      report: counts and the faces left out, once `download_and_prepare` has ended.
    """

    VERSION = tfds.core.Version(VERSION)

    # TFDS would look beside the code for checksums of downloads, of which there are none, with the
    # help of importlib_resources, which TFDS 4.9 does not install on these Pythons.
    code_path = None

    def __init__(self, annotations: AnnotationList, **kwargs):
        self._annotations = annotations
        self._num_faces = collections.Counter()
        self._subsets = collections.Counter()
        self._bad = list(annotations.bad)
        self._fingerprint = hashlib.sha256()
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
                    "box": tensor(shape=(4,), dtype=np.float32),
                    "provided_box": tensor(shape=(4,), dtype=np.float32),
                    "attributes": tensor(
                        shape=(len(self._annotations.attribute_names),), dtype=np.bool_
                    ),
                    "subset": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "normalizer": tensor(shape=(), dtype=np.float32),
                    # Whole pixels, so float32 (all that a TFDS record has) holds it exactly.
                    "to_source": tensor(shape=(2, 3), dtype=np.float32),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            # Records in the reader's order: a record's number means something to people.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[tuple[int, dict]]]:
        del dl_manager
        by_split = collections.defaultdict(list)
        given = any(face.split == "validation" for face in self._annotations.faces)
        for face in self._annotations.faces:
            by_split[storage_split(face, validation_given=given)].append(face)
        generators = {}
        for split in SPLITS:
            # TFDS refuses a split without a record: each must show its first one.
            examples = self._generate_examples(split, by_split[split])
            if first := next(examples, None):
                generators[split] = itertools.chain([first], examples)
        if not generators:
            first_bad = f"; the first: {self._bad[0]}" if self._bad else ""
            raise InputError(f"no face can be used, {len(self._bad)} are bad{first_bad}")
        return generators

    def _generate_examples(
        self, split: str, faces: Iterable[FaceAnnotation]
    ) -> Iterator[tuple[int, dict]]:
        key = 0
        for face in faces:
            try:
                example = encode_face(face)
            except ValueError as error:
                self._bad.append(BadRecord(face.name, str(error)))
                continue
            self._count(split, face, example["landmarks"])
            yield key, example | {"image": io.BytesIO(example["image"])}
            key += 1

    def _count(self, split: str, face: FaceAnnotation, landmarks: np.ndarray) -> None:
        self._num_faces[split] += 1
        self._subsets[face.subset] += 1
        self._fingerprint.update(f"{face.name}\n{split}\n".encode())
        self._fingerprint.update(landmarks.astype("<f4").tobytes())

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
            notes=list(dict.fromkeys(self._annotations.notes)),
        )
        # TFDS writes the metadata after this method.
        self.info.metadata.update(
            kind=self.report.kind,
            scheme=self._annotations.scheme.to_dict(),
            attribute_names=list(self._annotations.attribute_names),
            absent=self.report.absent,
            subsets=self.report.subsets,
            fingerprint=self.report.fingerprint,
        )


def encode_face(face: FaceAnnotation) -> dict[str, Any]:
    """The record of a face: its context crop, encoded, and everything else in the crop's pixels.

    Raises:
      ValueError: the image cannot be read, or the landmarks or the box do not lie on it.
    """
    if not face.visible.any():
        raise ValueError("not one landmark is annotated")
    encoded, photograph = _read_photograph(face.image_path)
    box = geometry.box_of_landmarks(face.landmarks, face.visible)
    _check_on_picture(face.landmarks[face.visible], photograph.shape[1], photograph.shape[0])
    if face.provided_box is not None:
        try:
            geometry.check_box(face.provided_box, photograph.shape[1], photograph.shape[0])
        except ValueError as error:
            raise ValueError(f"the box {face.provided_box.tolist()}: {error}") from error
    x0, y0, x1, y1 = _context(box, photograph.shape[1], photograph.shape[0])
    to_source = np.array([[1.0, 0.0, x0], [0.0, 1.0, y0]])
    to_context = geometry.invert(to_source)
    provided = np.full(4, np.nan) if face.provided_box is None else face.provided_box
    if (x1 - x0, y1 - y0) != photograph.shape[1::-1]:
        encoded = _encode_like(encoded, photograph[y0:y1, x0:x1])
    return {
        "image": encoded,
        "landmarks": geometry.transform_points(to_context, face.landmarks).astype(np.float32),
        "visible": face.visible,
        "box": geometry.transform_box(to_context, box).astype(np.float32),
        "provided_box": geometry.transform_box(to_context, provided).astype(np.float32),
        "attributes": np.array(face.attributes, bool),
        "subset": face.subset,
        "name": face.name,
        "group": face.group,
        # As the context crop is cut and not scaled, its pixels are the photograph's.
        "normalizer": np.float32(face.normalizer),
        "to_source": to_source.astype(np.float32),
    }


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a JPEG or PNG file to 8-bit RGB.

    Pixels come as they are stored: the points of these sets refer to them, not to the picture as
    an EXIF orientation would turn it.

    Raises:
      ValueError: the bytes are no picture.
    """
    return photographs.decode_image(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


# Faces of one photograph follow each other: it is read once for all of them.
@functools.lru_cache(maxsize=1)
def _read_photograph(path: Path) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the image cannot be read: {error.strerror}") from error
    photographs.check_complete(encoded)
    if not encoded.startswith((b"\xff\xd8", b"\x89PNG")):
        raise ValueError("the image is neither JPEG nor PNG")
    return encoded, decode_image(encoded)


def _is_png(encoded: bytes) -> bool:
    return encoded.startswith(b"\x89PNG")


def _check_on_picture(points: Float[np.ndarray, "k 2"], width: int, height: int) -> None:
    """Refuses points that lie further outside the picture than the face, or the picture, is large."""
    outside = geometry.distance_outside(points, width, height)
    message = f"a landmark lies {outside:.4g} px outside the {width} x {height} image"
    # First, for the sums below are of any size.
    if outside > max(width, height):
        raise ValueError(message)
    centre = np.median(points, axis=0)
    # About a box's side for a face's points, and a stray point does not move it.
    face_side = 3 * np.median(np.linalg.norm(points - centre, axis=1))
    if face_side == 0 or not np.ptp(points, axis=0).all():
        raise ValueError("the landmarks have no extent")
    if outside > face_side:
        raise ValueError(message)
    inside = (points >= 0) & (points <= [width - 1, height - 1])
    if not inside.all(axis=1).any():
        raise ValueError(f"no landmark lies on the {width} x {height} image")


def _context(box: geometry.Box, width: int, height: int) -> tuple[int, int, int, int]:
    """First and past-the-last pixel (x0, y0, x1, y1) of the context crop, within the picture.

    A crop that takes in nearly the whole picture takes it all: its file is kept as it is, rather
    than compressed once more for a few pixels at the border.
    """
    side = CONTEXT_SCALE * (box[2:] - box[:2]).max()
    centre = (box[:2] + box[2:]) / 2
    size = np.array([width, height])
    start = np.clip(np.floor(centre - side / 2 + 0.5), 0, size).astype(int)
    stop = np.clip(np.ceil(centre + side / 2 + 0.5), 0, size).astype(int)
    if np.prod(stop - start) >= _WHOLE_AREA * width * height:
        return 0, 0, width, height
    return int(start[0]), int(start[1]), int(stop[0]), int(stop[1])


def _encode_like(original: bytes, image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes a part of a picture in the original's format."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    if _is_png(original):
        return cv2.imencode(".png", bgr)[1].tobytes()
    return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes()
