"""Result files of `lcgcn predict`: their names, checks before the work, and writing."""

import dataclasses
import glob
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lcgcn_jax.atomic_io import write_all
from lcgcn_jax.data.formats.pts import format_pts
from lcgcn_jax.errors import InputError, require_absent
from lcgcn_jax.inference import results
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.interrupts import deferred
from lcgcn_jax.landmarks import LandmarkScheme

FORMATS = {"json": (".json",), "csv": (".csv",), "pts": ()}
"""Format -> suffixes of the single landmark file of an image; `.pts` files are written per face."""

_MAX_NAME_BYTES = 225  # file systems take 255, and a name is longer while its file is written


@dataclasses.dataclass(frozen=True)
class ResultFiles:
    """Folder and format of the results.

    Attributes:
      folder: folder of the results.
      format: format of the landmarks of images, one of `FORMATS`; those of videos are JSON lines.
      overwrite: whether existing results may be replaced.
    """

    folder: Path
    format: str = "json"
    overwrite: bool = False

    def paths(self, file: InputFile) -> list[Path]:
        """Result files of an input, without `.pts` files; the overlay or annotated video is last."""
        suffixes = (".jsonl", ".mp4") if file.is_video else (*FORMATS[self.format], ".png")
        return [self.folder / file.name.with_name(file.name.name + suffix) for suffix in suffixes]

    def check(self, files: Sequence[InputFile]) -> None:
        """Check that the results do not replace inputs or existing files, and can be written."""
        # Unlike Path.resolve and Path.exists, the functions of os.path accept any link and any name.
        sources = {os.path.realpath(file.path) for file in files}
        for file in files:
            if file.is_video and self.format != "json":
                raise InputError(
                    f"{file.path}: the landmarks of a video are JSON lines; leave out --format"
                )
            outputs = self.paths(file) + self._existing_pts_files(file)
            for path in outputs:
                if len(os.fsencode(path.name)) > _MAX_NAME_BYTES:
                    raise InputError(
                        f"{path}: the file name is too long; give {file.path} a shorter name"
                    )
            for path in outputs:
                if os.path.realpath(path) in sources:
                    raise InputError(f"{path}: is one of the inputs; choose another --out")
                require_absent(path, overwrite=self.overwrite)
        parents = (self.folder, *self.folder.absolute().parents)
        existing = next(path for path in parents if os.path.exists(path))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"{self.folder}: cannot be written to; choose another --out")

    def write_image(
        self,
        file: InputFile,
        pixels: np.ndarray,
        overlay: np.ndarray,
        faces: Sequence[Face],
        scheme: LandmarkScheme,
    ) -> list[Path]:
        """Write the landmarks and the overlay of an image, all files or none; returns the files."""
        *landmark_files, overlay_file = self.paths(file)
        overlay_file.parent.mkdir(parents=True, exist_ok=True)
        texts: dict[Path, str] = {}
        for path in landmark_files:
            if self.format == "csv":
                texts[path] = results.format_csv(faces, scheme)
            else:
                height, width = pixels.shape[:2]
                result = results.describe_image(file.path, width, height, faces, scheme)
                texts[path] = json.dumps(result) + "\n"
        if self.format == "pts":
            for number, face in enumerate(faces, start=1):
                path = overlay_file.with_name(f"{file.name.name}_face{number}.pts")
                texts[path] = format_pts(face.landmarks)
        _, png = cv2.imencode(".png", cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
        contents = {path: text.encode("utf-8") for path, text in texts.items()}
        contents[overlay_file] = png.tobytes()
        write_all(contents)
        # An earlier run may have found more faces.
        for path in self._existing_pts_files(file):
            if path not in contents:
                path.unlink()
        return list(contents)

    def _existing_pts_files(self, file: InputFile) -> list[Path]:
        if self.format != "pts":
            return []
        folder = (self.folder / file.name).parent
        return sorted(folder.glob(f"{glob.escape(file.name.name)}_face*.pts"))


def rename_interrupted(partials: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
    """Rename the partial files of an interrupted video to `NAME.interrupted.SUFFIX`, numbered if needed.

    Raises:
      OSError: a file cannot be renamed; all are deleted then.
    """
    for number in itertools.count(1):
        label = "interrupted" if number == 1 else f"interrupted-{number}"
        names = [path.with_name(f"{path.stem}.{label}{path.suffix}") for path in outputs]
        if not any(os.path.lexists(name) for name in names):
            break
    with deferred():
        renamed = []
        try:
            for partial, name in zip(partials, names, strict=True):
                partial.replace(name)
                renamed.append(name)
        except OSError as error:
            for path in renamed:
                path.unlink()
            raise OSError(error.errno, error.strerror, str(name)) from error
    return names
