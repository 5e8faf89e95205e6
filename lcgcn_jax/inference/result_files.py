"""Result files of `lcgcn predict`: their names, checks before the work, and writing."""

import collections
import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from lcgcn_jax.atomic_io import write_all
from lcgcn_jax.data.formats.pre_annotations import check_text
from lcgcn_jax.data.formats.pts import format_pts
from lcgcn_jax.errors import InputError, require_absent
from lcgcn_jax.inference import annotation_files, results
from lcgcn_jax.inference.annotation_files import AnnotationFiles
from lcgcn_jax.inference.face import Face
from lcgcn_jax.inference.face_geometry import require_geometry
from lcgcn_jax.inference.json_lines import JsonLines
from lcgcn_jax.inference.large_jobs import WHOLE_JOB, Shard, is_intact
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.inference.video import opencv_path
from lcgcn_jax.interrupts import deferred
from lcgcn_jax.landmarks import LandmarkScheme

FORMATS = {"json": (".json",), "csv": (".csv",), "pts": (), "jsonl": ()}
FORMATS |= dict.fromkeys(annotation_files.FORMATS, ())
"""Format -> suffixes of the single landmark file of an image.

Files in `.pts` format are written per face. JSON lines and annotations for labeling tools are one file for
all images.
"""

_FACE_FILE = re.compile(r"(.+)_face[1-9]\d*\.pts", re.DOTALL)
_MAX_NAME_BYTES = 225  # file systems take 255, and a name is longer while its file is written


@dataclasses.dataclass(frozen=True)
class ResultFiles:
    """Folder and format of the results.

    Attributes:
      format: format of the landmarks of images, one of `FORMATS`; those of videos are JSON lines.
      overwrite: whether existing results may be replaced.
      overlays: whether overlays of images and annotated videos are written.
      skip_existing: keep the complete results of an earlier job, and replace incomplete ones.
      shard: part of a job; the JSON lines and annotations of each part have their own file.
      geometry: whether JSON has the head pose, and the openness of the eyes and the mouth.
      count_from: coordinate of the center of the first pixel in annotation files.
    """

    folder: Path
    format: str = "json"
    overwrite: bool = False
    overlays: bool = True
    skip_existing: bool = False
    shard: Shard = WHOLE_JOB
    geometry: bool = False
    count_from: int | float = 0

    @functools.cached_property
    def lines(self) -> JsonLines | None:
        """File of JSON lines; None for another format."""
        if self.format != "jsonl":
            return None
        path = self.folder / f"predictions{self.shard.suffix}.jsonl"
        return JsonLines(path, resume=self.skip_existing, overwrite=self.overwrite)

    @functools.cached_property
    def annotations(self) -> AnnotationFiles | None:
        """Annotation files for labeling tools; None for another format."""
        if self.format not in annotation_files.FORMATS:
            return None
        return AnnotationFiles(
            self.folder, self.format, self.shard.suffix, self.count_from, overwrite=self.overwrite
        )

    @functools.cached_property
    def _earlier_pts(self) -> dict[Path, list[Path]]:
        """Files in `.pts` format of earlier jobs, by the name of their image without a suffix."""
        files: dict[Path, list[Path]] = collections.defaultdict(list)
        if self.format == "pts":
            for path in sorted(self.folder.rglob("*_face*.pts")):
                if match := _FACE_FILE.fullmatch(path.name):
                    files[path.with_name(match[1])].append(path)
        return files

    def close(self) -> str:
        """Close the file of JSON lines, or write the annotation files (`AnnotationFiles.write`).

        Raises:
          OSError: the annotation files cannot be written.
        """
        if self.lines is not None:
            self.lines.close()
        return "" if self.annotations is None else self.annotations.write()

    def paths(self, file: InputFile) -> list[Path]:
        """Result files of an input, without `.pts` files and JSON lines of images; the overlay is last."""
        suffixes = (".jsonl",) if file.is_video else FORMATS[self.format]
        if self.overlays:
            suffixes = (*suffixes, ".mp4" if file.is_video else ".png")
        return [self.folder / file.name.with_name(file.name.name + suffix) for suffix in suffixes]

    def check(self, files: Sequence[InputFile], others: Iterable[Path | None] = ()) -> None:
        """Check that the results do not replace inputs or existing files, and can be written.

        Args:
          others: other files that are read, such as that of the boxes; None is skipped.

        Raises:
          InputError: they cannot be written.
        """
        # Unlike Path.resolve and Path.exists, the functions of os.path accept any link and any name.
        read = [*(file.path for file in files), *filter(None, others)]
        sources = {os.path.realpath(path) for path in read}
        for file in files:
            if file.is_video and self.format not in ("json", "jsonl"):
                raise InputError(
                    f"{file.path}: the landmarks of a video are JSON lines; leave out --format"
                )
            outputs = self.paths(file) + self._earlier_pts.get(self.folder / file.name, [])
            longest = [self.folder / f"{file.name}_face100.pts"] if self.format == "pts" else []
            for path in outputs + longest:
                if len(os.fsencode(path.name)) > _MAX_NAME_BYTES:
                    raise InputError(
                        f"{path}: the file name is too long; give {file.path} a shorter name"
                    )
            for path in outputs:
                _require_no_source(path, sources)
                _require_no_folder(path)
                require_absent(path, overwrite=self.overwrite or self.skip_existing)
            if file.is_video and self.overlays:
                opencv_path(outputs[-1])
        shared = [] if self.lines is None else [self.lines.path]
        for path in shared if self.annotations is None else self.annotations.paths:
            _require_no_source(path, sources)
        self._check_options(files)
        self._check_annotations(files)
        parents = (self.folder, *self.folder.absolute().parents)
        existing = next(path for path in parents if os.path.exists(path))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"{self.folder}: cannot be written to; choose another --out")

    def _check_options(self, files: Sequence[InputFile]) -> None:
        if self.skip_existing and self.overwrite:
            raise InputError(
                "--skip-existing and --overwrite contradict each other; give one of them"
            )
        if self.skip_existing and self.format == "pts" and not self.overlays:
            raise InputError(
                "--skip-existing: without overlays, .pts files do not show which images are finished; leave "
                "out --no-overlay, or choose another --format"
            )
        folders = {(file.path.parent, (self.folder / file.name).parent) for file in files}
        is_repeated = self.skip_existing or self.shard.count > 1
        is_input = any(os.path.realpath(a) == os.path.realpath(b) for a, b in folders)
        if is_repeated and self.overlays and is_input:
            raise InputError(
                f"{self.folder}: is the folder of the inputs, so the next process would read the overlays as "
                "inputs; choose another --out, or give --no-overlay"
            )
        if self.lines is None:
            return
        _require_no_folder(self.lines.path)
        require_absent(self.lines.path, overwrite=self.overwrite or self.skip_existing)
        if any(self.paths(file)[0] == self.lines.path for file in files if file.is_video):
            raise InputError(
                f"{self.lines.path}: is also the file of a video; choose another --out"
            )

    def _check_annotations(self, files: Sequence[InputFile]) -> None:
        if self.geometry and self.format not in ("json", "jsonl"):
            raise InputError("--geometry needs --format json or jsonl; change one of them")
        if self.annotations is None and self.count_from:
            names = ", ".join(annotation_files.FORMATS)
            raise InputError(f"--count-from applies to --format {names}; leave it out")
        if self.annotations is None:
            return
        if self.skip_existing:
            raise InputError(
                "--skip-existing: annotation files are written as a whole; leave it out, or choose "
                "another --format"
            )
        annotation_files.check_names(files)
        for path in self.annotations.paths:
            _require_no_folder(path)
            require_absent(path, overwrite=self.overwrite)

    def check_scheme(self, scheme: LandmarkScheme) -> None:
        """Check that the results can hold landmarks of a scheme.

        Raises:
          InputError: the scheme allows no geometry, an annotation file cannot hold a name, or an earlier job
            wrote JSON lines with another scheme.
        """
        if self.lines is not None and (others := sorted(self.lines.schemes - {scheme.name, ""})):
            self.lines.close()
            raise InputError(
                f"{self.lines.path}: an earlier job wrote landmarks of {others[0]}, and the model predicts "
                f"those of {scheme.name}; choose another --out"
            )
        if self.geometry:
            require_geometry(scheme)
        if self.annotations is not None:
            for name in scheme.names:
                check_text(name)

    def is_finished(self, file: InputFile, num_landmarks: int) -> bool:
        """Whether an earlier job has written complete results for an input, with `skip_existing`."""
        if not self.skip_existing:
            return False
        paths = self.paths(file)
        if self.lines is not None and not file.is_video:
            is_listed = str(file.path) in self.lines.finished
            return is_listed and all(is_intact(path, num_landmarks) for path in paths)
        paths += self._earlier_pts.get(self.folder / file.name, [])
        return all(is_intact(path, num_landmarks) for path in paths)

    def encode_image(
        self,
        file: InputFile,
        pixels: np.ndarray,
        overlay: np.ndarray | None,
        faces: Sequence[Face],
        scheme: LandmarkScheme,
    ) -> dict[Path, bytes]:
        """Content of the result files of an image; for JSON lines, the line is that of their file."""
        name = self.folder / file.name
        contents: dict[Path, bytes] = {}
        height, width = pixels.shape[:2]

        def description() -> bytes:
            result = results.describe_image(
                file.path, width, height, faces, scheme, geometry=self.geometry
            )
            return json.dumps(result).encode()

        if self.annotations is not None:
            self.annotations.add(file, width, height, faces, scheme)
        elif self.lines is not None:
            contents[self.lines.path] = description()
        elif self.format == "json":
            contents[name.with_name(name.name + ".json")] = description() + b"\n"
        elif self.format == "csv":
            text = results.format_csv(faces, scheme)
            contents[name.with_name(name.name + ".csv")] = text.encode("utf-8")
        else:
            for number, face in enumerate(faces, start=1):
                path = name.with_name(f"{name.name}_face{number}.pts")
                contents[path] = format_pts(face.landmarks).encode("utf-8")
        if overlay is not None:
            _, png = cv2.imencode(".png", cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))
            contents[name.with_name(name.name + ".png")] = png.tobytes()
        return contents

    def write_image(self, file: InputFile, contents: Mapping[Path, bytes]) -> list[Path]:
        """Write the results of an image (`encode_image`), all files or none; returns the files."""
        (self.folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        lines = None if self.lines is None else self.lines.path
        write_all({path: content for path, content in contents.items() if path != lines})
        if self.lines is not None and str(file.path) not in self.lines.finished:
            # Last, so that a line means that the image is finished.
            self.lines.append(contents[self.lines.path].decode("utf-8"))
        # An earlier run may have found more faces.
        for path in self._earlier_pts.get(self.folder / file.name, []):
            if path not in contents:
                path.unlink()
        if self.annotations is not None:
            self.annotations.finish(file)
            return [*contents, self.annotations.paths[0]]
        return list(contents)


def _require_no_source(path: Path, sources: Collection[str]) -> None:
    if os.path.realpath(path) in sources:
        raise InputError(f"{path}: is one of the inputs; choose another --out")


def _require_no_folder(path: Path) -> None:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder, and a result has this name; choose another --out")


def rename_interrupted(partials: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
    """Rename the partial files of an interrupted video to `NAME.interrupted.SUFFIX`, numbered if needed.

    Raises:
      OSError: a file cannot be renamed; all are deleted then.
    """
    labels = itertools.chain(["interrupted"], (f"interrupted-{i}" for i in itertools.count(2)))
    choices = (
        [path.with_name(f"{path.stem}.{label}{path.suffix}") for path in outputs]
        for label in labels
    )
    names = next(paths for paths in choices if not any(map(os.path.lexists, paths)))
    with deferred():
        renamed: list[Path] = []
        for partial, name in zip(partials, names, strict=True):
            try:
                partial.replace(name)
            except OSError as error:
                for path in renamed:
                    path.unlink()
                raise OSError(error.errno, error.strerror, str(name)) from error
            renamed.append(name)
    return renamed
