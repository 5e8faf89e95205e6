"""Writes annotated faces as TFDS records in ArrayRecord files; TensorFlow is not needed."""

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int8, UInt8

from lcgcn_jax import geometry, image_io
from lcgcn_jax.data.annotations import AnnotationList, BadRecord, FaceAnnotation, Visibility
from lcgcn_jax.data.mirror_check import mirror_pair_note
from lcgcn_jax.errors import InputError, one_line, require_absent

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
_PNG_8_BIT_RGB = b"\x08\x02"  # bit depth and color type in a PNG file's header
_NAMES_SHOWN = 5


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


def prepare(
    annotations: AnnotationList,
    out: Path,
    *,
    overwrite: bool = False,
    stored_pixels: bool = False,
) -> PrepareReport:
    """Writes a new folder with the records and `report.json`, all at once or not at all.

    Args:
      annotations: what a reader found.
      out: the folder to make.
      overwrite: whether a dataset that is already there may be replaced.
      stored_pixels: whether the annotations refer to the images as stored, without the EXIF
        orientation; otherwise they refer to the images as shown upright.

    Raises:
      InputError: `out` holds something already, or not one face can be used.
    """
    with fresh_folder(out, overwrite=overwrite) as folder:
        return write_records(annotations, folder, stored_pixels=stored_pixels)


@contextlib.contextmanager
def fresh_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well.

    Raises:
      InputError: `out` exists and is not empty, and is not a prepared dataset to overwrite.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        require_absent(out, overwrite=overwrite)
        if not (out / RECORDS).is_dir():
            raise InputError(f"{out}: holds something else than a dataset; choose another folder")
    # A name such as `.` or `a/..` would give no sibling.
    out = out.resolve()
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    new_parents = [parent for parent in out.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        yield folder
        if out.exists():
            out.replace(replaced)
        folder.replace(out)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{out}: cannot be written: {reason}; nothing is changed") from error
    finally:
        # An interrupted exchange keeps the new dataset where it is in place, else the old one.
        if replaced.exists() and not out.exists():
            replaced.replace(out)
        for temporary in (folder, replaced):
            shutil.rmtree(temporary, ignore_errors=True)
        if not out.exists():
            with contextlib.suppress(OSError):  # another process may have put something there
                for parent in new_parents:
                    parent.rmdir()


def write_records(
    annotations: AnnotationList, folder: Path, *, stored_pixels: bool = False
) -> PrepareReport:
    """Write the records and the report into an existing folder.

    Args:
      annotations: what a reader found.
      folder: the folder.
      stored_pixels: whether the annotations refer to the images as stored.

    Raises:
      InputError: not one face can be used.
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
    (folder / REPORT).write_text(
        json.dumps(dataclasses.asdict(builder.report), indent=2), encoding="utf-8"
    )
    return builder.report


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Raises `OSError` where the ArrayRecord writer fails, which raises `RuntimeError` itself."""
    try:
        yield
    except RuntimeError as error:
        if failure := re.search(r"\b\w+\(\) failed: ([^;\n]+)", str(error)):
            raise OSError(errno.EIO, failure[1]) from error
        raise


def validation_groups(
    faces: Iterable[FaceAnnotation], is_usable: Callable[[FaceAnnotation], bool]
) -> frozenset[str]:
    """The groups of train whose faces become the validation split.

    It is a fixed tenth of the groups, by the SHA-256 of their names. Where these have no usable face, or
    no other group has one, it is the first usable group in the order of SHA-256. With fewer than
    two usable groups there is none.
    """
    by_group = collections.defaultdict(list)
    for face in faces:
        if face.split == "train":
            by_group[face.group].append(face)

    def any_usable(groups: Iterable[str]) -> bool:
        return any(is_usable(face) for group in groups for face in by_group[group])

    digests = {group: _group_digest(group) for group in by_group}
    held_out = [group for group in by_group if digests[group] % _VALIDATION_PART == 0]
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
    """TFDS builder for any annotated faces; `dataset.open_dataset` reads what it writes.

    A face that cannot be used (its image does not decode, say) is left out and reported.

    Attributes:
      report: counts and the faces left out, once `download_and_prepare` has ended.
    """

    VERSION = tfds.core.Version(VERSION)

    # TFDS would look beside the code for checksums of downloads, of which there are none, with the
    # help of importlib_resources, which TFDS 4.9 does not install on these Pythons.
    code_path = None

    def __init__(self, annotations: AnnotationList, *, stored_pixels: bool = False, **kwargs):
        self._annotations = annotations
        self._stored_pixels = stored_pixels
        self._num_faces = collections.Counter()
        self._subsets = collections.Counter()
        self._bad = list(annotations.bad)
        self._mismatched = collections.Counter()
        self._fingerprint = hashlib.sha256()
        self._images = _WrittenImages()
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
        faces = self._annotations.faces
        validation = frozenset()
        if self._annotations.has_validation and not self._validation_given:
            validation = validation_groups(faces, self._is_usable)
        by_split = collections.defaultdict(list)
        for face in faces:
            held_out = face.split == "train" and face.group in validation
            by_split["validation" if held_out else face.split].append(face)
        generators = {}
        for split in SPLITS:
            # TFDS refuses a split without a record: each must show its first one.
            examples = self._generate_examples(split, by_split[split])
            if first := next(examples, None):
                generators[split] = itertools.chain([first], examples)
            elif self._mismatched[split] == len(by_split[split]) > 0:
                raise InputError(
                    f"no face of {split} can be used; the first: {self._bad[-len(by_split[split])]}"
                )
        if not generators:
            first_bad = f"; the first: {self._bad[0]}" if self._bad else ""
            raise InputError(f"no face can be used, {len(self._bad)} are bad{first_bad}")
        return generators

    @property
    def _validation_given(self) -> bool:
        return any(face.split == "validation" for face in self._annotations.faces)

    def _encode(self, face: FaceAnnotation) -> dict[str, Any]:
        header = _read_image(face.image_path).header
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
        self._images.add(split, face, stored_pixels=self._stored_pixels)
        self._fingerprint.update(f"{face.name}\n{split}\n".encode())
        self._fingerprint.update(landmarks.astype("<f4").tobytes())

    def _notes(self) -> list[str]:
        notes = self._images.notes(stored_pixels=self._stored_pixels)
        if note := mirror_pair_note(self._annotations.scheme, self._landmarks, self._visible):
            notes.append(note)
        is_expected = self._annotations.has_validation and "train" in self._num_faces
        if is_expected and "validation" not in self._num_faces:
            reason = (
                "none of its faces can be used"
                if self._validation_given
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
        self.info.metadata.update(
            kind=self.report.kind,
            scheme=self._annotations.scheme.to_dict(),
            attribute_names=list(self._annotations.attribute_names),
            absent=self.report.absent,
            subsets=self.report.subsets,
            fingerprint=self.report.fingerprint,
        )


class _WrittenImages:
    """Which images were written to which splits, and their orientations."""

    def __init__(self):
        self._paths = collections.defaultdict(lambda: collections.defaultdict(list))
        self._rotated: set[Path] = set()
        self._stated_as_stored: set[Path] = set()

    def add(self, split: str, face: FaceAnnotation, *, stored_pixels: bool) -> None:
        """Adds the image of a face."""
        path, image = face.image_path, _read_image(face.image_path)
        paths = self._paths[image.digest][split]
        if path not in paths:
            paths.append(path)
        if image.header.orientation != 1:
            self._rotated.add(path)
            if not stored_pixels and face.stated_size not in (None, image.header.size):
                self._stated_as_stored.add(path)

    def notes(self, *, stored_pixels: bool) -> list[str]:
        """What the user should know of the images, one line each."""
        notes = []
        if count := len(self._rotated - self._stated_as_stored):
            if stored_pixels:
                rule = "image and points are turned upright together (--stored-pixels)"
            else:
                rule = (
                    "points refer to the image as shown upright; for points in the pixels as stored, "
                    "add --stored-pixels"
                )
            notes.append(
                f"{count:,} {'image has' if count == 1 else 'images have'} an EXIF orientation: {rule}"
            )
        if count := len(self._stated_as_stored):
            notes.append(
                f"{count:,} {'image is' if count == 1 else 'images are'} annotated in pixels as stored, by "
                "the stated width and height: image and points are turned upright together"
            )
        for first, second in itertools.combinations(SPLITS, 2):
            if first in ("train", "validation"):
                notes += self._note_of_shared_images(first, second)
        return notes

    def _note_of_shared_images(self, first: str, second: str) -> list[str]:
        shared = [
            (splits[first][0], splits[second][0])
            for splits in self._paths.values()
            if first in splits and second in splits
        ]
        if not shared:
            return []
        names = [
            one.name if one.name == other.name else f"{one.name} = {other.name}"
            for one, other in shared
        ]
        more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
        images = "1 image is" if len(names) == 1 else f"{len(names):,} images are"
        return [
            f"{images} in {first} and in {second}, so errors on {second} come out too low: "
            f"{', '.join(names[:_NAMES_SHOWN])}{more}"
        ]


class SizeMismatch(ValueError):
    """An image is not of the size that its annotations are for."""


def in_upright_pixels(
    face: FaceAnnotation,
    header: image_io.ImageHeader,
    mirror: Sequence[int],
    *,
    stored_pixels: bool = False,
) -> FaceAnnotation:
    """Give a face's landmarks and box in pixels of the image as shown upright.

    The stated size decides where it fits only one of the two. An image that is stored mirrored also
    has its landmarks mirrored: left ones take the place of right ones.

    Args:
      face: the face, as annotated.
      header: that of its image.
      mirror: the permutation of a scheme's landmarks in a mirrored image.
      stored_pixels: whether annotations without a size refer to the image as stored.

    Raises:
      SizeMismatch: the stated size is not the image's.
    """
    if face.stated_size not in (None, header.stored_size if stored_pixels else header.size):
        if stored_pixels or face.stated_size != header.stored_size:
            raise SizeMismatch(
                _size_mismatch(face.stated_size, header, stored_pixels=stored_pixels)
            )
        stored_pixels = True
    if not stored_pixels or header.orientation == 1:
        return face
    affine = geometry.upright_transform(header.orientation, *header.stored_size)
    landmarks, visible, box = face.landmarks, face.visible, face.provided_box
    labels = face.visibility
    if geometry.is_mirrored(header.orientation):
        order = list(mirror)
        landmarks, visible = landmarks[order], visible[order]
        labels = None if labels is None else labels[order]
    if box is not None:
        corners = geometry.transform_points(affine, box.reshape(2, 2))
        box = np.sort(corners, axis=0).reshape(4)
    landmarks = geometry.transform_points(affine, landmarks)
    return dataclasses.replace(
        face, landmarks=landmarks, visible=visible, provided_box=box, visibility=labels
    )


def _size_mismatch(
    stated: tuple[int, int], header: image_io.ImageHeader, *, stored_pixels: bool
) -> str:
    sizes = " x ".join(map(str, header.size))
    if header.stored_size != header.size:
        sizes += f" upright and {' x '.join(map(str, header.stored_size))} as stored"
    message = f"annotated at {' x '.join(map(str, stated))}, but the image is {sizes}"
    if stored_pixels and stated == header.size:
        return f"{message}; leave out --stored-pixels"
    return f"{message}; scale the points to the image, or give the images that were annotated"


def encode_face(face: FaceAnnotation) -> dict[str, Any]:
    """The record of a face: its context crop, encoded, and everything else in the crop's pixels.

    Args:
      face: the face, in pixels of the image as shown upright.

    Raises:
      ValueError: the image cannot be read, or the landmarks or the box do not lie on it.
    """
    if not face.visible.any():
        raise ValueError("not one landmark is annotated")
    image = _read_image(face.image_path)
    height, width = image.pixels.shape[:2]
    box = geometry.box_of_landmarks(face.landmarks, face.visible)
    _check_on_picture(face.landmarks[face.visible], width, height)
    if face.provided_box is not None:
        try:
            geometry.check_box(face.provided_box, width, height)
        except ValueError as error:
            raise ValueError(f"the box {face.provided_box.tolist()}: {error}") from error
    x0, y0, x1, y1 = _context(box, width, height)
    to_source = np.array([[1.0, 0.0, x0], [0.0, 1.0, y0]])
    to_context = geometry.invert(to_source)
    provided = np.full(4, np.nan) if face.provided_box is None else face.provided_box
    labels = face.visibility
    return {
        "image": image.part(x0, y0, x1, y1),
        "landmarks": geometry.transform_points(to_context, face.landmarks).astype(np.float32),
        "visible": face.visible,
        "visibility": unknown_visibility(len(face.visible)) if labels is None else labels,
        "box": geometry.transform_box(to_context, box).astype(np.float32),
        "provided_box": geometry.transform_box(to_context, provided).astype(np.float32),
        "attributes": np.array(face.attributes, bool),
        "subset": face.subset,
        "name": face.name,
        "group": face.group,
        # As the context crop is cut and not scaled, its pixels are the image's.
        "normalizer": np.float32(face.normalizer),
        "to_source": to_source.astype(np.float32),
    }


def unknown_visibility(num_landmarks: int) -> Int8[np.ndarray, "k"]:
    """The visibility labels of a face whose data has none."""
    return np.full(num_landmarks, Visibility.UNKNOWN, np.int8)


def decode_image(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the image of a record to 8-bit RGB.

    Records hold upright pixels. An EXIF orientation is ignored: datasets that earlier versions wrote
    may have one, and their points refer to the pixels as stored.

    Raises:
      ValueError: the bytes are not an image.
    """
    return image_io.decode_image(encoded, upright=False)


@dataclasses.dataclass(frozen=True)
class _SourceImage:
    """An image file of a data set.

    Attributes:
      encoded: the file.
      header: its format, size and orientation.
    """

    encoded: bytes
    header: image_io.ImageHeader

    @functools.cached_property
    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """The image as shown upright, in RGB.

        Raises:
          ValueError: the file is not a complete image.
        """
        return image_io.decode_image(self.encoded)

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return hashlib.sha256(self.encoded).digest()

    def part(self, x0: int, y0: int, x1: int, y1: int) -> bytes:
        """A JPEG or PNG file of a part of the upright image; JPEG where the file is one.

        An image that is stored upright is copied without recompression. What
        follows the image in the file, such as the video of a motion photo, is left out.
        """
        if (x1 - x0, y1 - y0) == self.pixels.shape[1::-1] and self._is_kept:
            return self.encoded[: image_io.image_end(self.encoded)]
        bgr = np.ascontiguousarray(self.pixels[y0:y1, x0:x1, ::-1])
        if self.header.format == "JPEG":
            return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))[1].tobytes()
        return cv2.imencode(".png", bgr)[1].tobytes()

    @property
    def _is_kept(self) -> bool:
        is_plain_png = self.header.format == "PNG" and self.encoded[24:26] == _PNG_8_BIT_RGB
        return self.header.orientation == 1 and (self.header.format == "JPEG" or is_plain_png)


# Faces of one image follow each other: it is read once for all of them.
@functools.lru_cache(maxsize=1)
def _read_image(path: Path) -> _SourceImage:
    if path.exists() and not path.is_file():  # pipes and devices may never end
        raise ValueError(f"the image {path.name!r} is not a file")
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the image cannot be read: {error.strerror}") from error
    image_io.check_complete(encoded)
    return _SourceImage(encoded, image_io.read_header(encoded))


def _check_on_picture(points: Float[np.ndarray, "k 2"], width: int, height: int) -> None:
    """Refuses points that lie further outside the picture than the face, or the picture, is large."""
    outside = geometry.distance_outside(points, width, height)
    message = f"a landmark lies {outside:.4g} px outside the {width} x {height} image"
    # First, for the sums below are of any size.
    if outside > max(width, height):
        raise ValueError(message)
    center = np.median(points, axis=0)
    # About a box's side for a face's points, and a stray point does not move it.
    face_side = 3 * np.median(np.linalg.norm(points - center, axis=1))
    if face_side == 0 or not np.ptp(points, axis=0).all():
        raise ValueError("the landmarks have no extent")
    if outside > face_side:
        raise ValueError(message)
    inside = (points >= 0) & (points <= [width - 1, height - 1])
    if not inside.all(axis=1).any():
        raise ValueError(f"no landmark lies on the {width} x {height} image")


def _context(box: geometry.Box, width: int, height: int) -> tuple[int, int, int, int]:
    """First and past-the-last pixel (x0, y0, x1, y1) of the context crop, within the picture.

    A crop that covers nearly the whole image is the whole image: its file is copied, rather
    than compressed once more for a few pixels at the border.
    """
    side = CONTEXT_SCALE * (box[2:] - box[:2]).max()
    center = (box[:2] + box[2:]) / 2
    size = np.array([width, height])
    start = np.clip(np.floor(center - side / 2 + 0.5), 0, size).astype(int)
    stop = np.clip(np.ceil(center + side / 2 + 0.5), 0, size).astype(int)
    if np.prod(stop - start) >= _WHOLE_AREA * width * height:
        return 0, 0, width, height
    return int(start[0]), int(start[1]), int(stop[0]), int(stop[1])
