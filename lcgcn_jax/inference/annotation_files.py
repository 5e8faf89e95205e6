"""Annotation files of `lcgcn predict`: all images of a run in one file, for correction in a labeling tool."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lcgcn_jax.atomic_io import write_all
from lcgcn_jax.data.formats import cvat, label_studio
from lcgcn_jax.data.formats.pre_annotations import (
    PredictedFace,
    PredictedImage,
    check_text,
    format_coco,
)
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.landmarks import LandmarkScheme

Formatter = Callable[[Sequence[PredictedImage], LandmarkScheme], str]

FORMATS: Mapping[str, Mapping[str, Formatter]] = {
    "coco": {"coco.json": format_coco},
    "cvat": {"cvat.xml": cvat.format_xml, "cvat_labels.json": cvat.format_labels},
    "label-studio": {
        "label_studio.json": label_studio.format_tasks,
        "label_studio_config.xml": lambda images, scheme: label_studio.format_config(scheme),
    },
}
"""Format -> names of its files, the annotations first, and the functions that format them."""

_OCCLUDED = 0.5  # a landmark with a lower probability of being visible is marked as occluded


class AnnotationFiles:
    """Annotation files of a run, which are written when it ends or is interrupted.

    Images may be added by several threads. Only those that are finished are written, in that order.

    Args:
      folder: folder of the files.
      format: one of `FORMATS`.
      suffix: suffix of the file names of a part of a job.
      count_from: coordinate of the center of the first pixel in the files.
      overwrite: replace existing files.

    Attributes:
      paths: the files; the first one has the annotations.
    """

    def __init__(
        self,
        folder: Path,
        format: str,
        suffix: str = "",
        count_from: int | float = 0,
        *,
        overwrite: bool = False,
    ):
        names = [Path(name) for name in FORMATS[format]]
        self.paths = [folder / f"{name.stem}{suffix}{name.suffix}" for name in names]
        self._formatters = list(FORMATS[format].values())
        self._count_from, self._overwrite = count_from, overwrite
        self._added: dict[Path, tuple[PredictedImage, LandmarkScheme]] = {}
        self._finished: list[tuple[PredictedImage, LandmarkScheme]] = []

    def add(
        self,
        file: InputFile,
        width: int,
        height: int,
        faces: Sequence[Face],
        scheme: LandmarkScheme,
    ) -> None:
        """Add an image and its faces."""
        image = PredictedImage(
            file.path_in_folder.as_posix(),
            _folder_name(file),
            width,
            height,
            [self._predicted(face) for face in faces],
        )
        self._added[file.path] = image, scheme

    def _predicted(self, face: Face) -> PredictedFace:
        is_occluded = None if face.visibility is None else face.visibility < _OCCLUDED
        landmarks, box = face.landmarks + self._count_from, face.box + self._count_from
        return PredictedFace(landmarks, box, is_occluded, face.score)

    def finish(self, file: InputFile) -> None:
        """Mark an added image as finished: its other results are written."""
        self._finished.append(self._added.pop(file.path))

    def write(self) -> str:
        """Write the finished images to the files, all or none; without finished images, do nothing.

        Returns:
          A message if another process has written the files; these have a number in their names. Else empty.

        Raises:
          OSError: a file cannot be written.
        """
        if not self._finished:
            return ""
        images = [image for image, _ in self._finished]
        scheme = self._finished[0][1]
        self.paths[0].parent.mkdir(parents=True, exist_ok=True)
        texts = (format_images(images, scheme) for format_images in self._formatters)
        paths = self.paths if self._overwrite else _free_paths(self.paths)
        write_all({path: text.encode() for path, text in zip(paths, texts, strict=True)})
        self._finished = []
        if paths == self.paths:
            return ""
        return f"{self.paths[0]}: another process has written it; these images are in {paths[0]}"


def _free_paths(paths: Sequence[Path]) -> list[Path]:
    """The paths, with the same number in all names if one of them exists."""
    choices = (
        [path.with_stem(f"{path.stem}-{number}") for path in paths] for number in itertools.count(2)
    )
    return next(
        names
        for names in itertools.chain([list(paths)], choices)
        if not any(map(os.path.lexists, names))
    )


def _folder_name(file: InputFile) -> str:
    """Name of the input folder of a file, or of the folder that contains it; empty for the root folder."""
    parts = Path(os.path.abspath(file.path)).parts[: -len(file.path_in_folder.parts)]
    return parts[-1] if len(parts) > 1 else ""


def check_names(files: Sequence[InputFile]) -> None:
    """Check that annotation files can hold the names of the images.

    Raises:
      InputError: a name has a control character, or is not valid Unicode.
    """
    for file in files:
        check_text(f"{_folder_name(file)}/{file.path_in_folder.as_posix()}")
