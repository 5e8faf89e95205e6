"""`lcgcn predict`: images and videos in, landmarks and overlays out."""

import argparse
import collections
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lcgcn_jax import visualize
from lcgcn_jax.atomic_io import replacing_all, write_all
from lcgcn_jax.commands.main import DETECTOR_MODEL_OPTION, use_compilation_cache
from lcgcn_jax.data.formats.pts import format_pts
from lcgcn_jax.errors import InputError, printable
from lcgcn_jax.geometry import Box, box_of_crop
from lcgcn_jax.image_io import read_image
from lcgcn_jax.inference import results
from lcgcn_jax.inference.face_detector import quiet_opencv
from lcgcn_jax.inference.model import Face, LandmarkModel, check_boxes, load
from lcgcn_jax.inference.sources import InputFile, find_inputs
from lcgcn_jax.inference.tracking import FaceTracker, OneEuroFilter
from lcgcn_jax.inference.video import Frame, Video, VideoWriter, open_video, varies
from lcgcn_jax.interrupts import Interrupted, deferred, received
from lcgcn_jax.models.bundles import DEFAULT_MODEL

FORMATS = {"json": (".json",), "csv": (".csv",), "pts": ()}
"""Format -> suffixes of the one file that a image gets; `.pts` is a file a face."""

BoxesOf = Callable[[Path, np.ndarray], tuple[list[Box], list[float] | None]]
"""Face boxes of an image and the detector's scores, None for given boxes; the path is for messages."""

_FACES = 32  # at least, before the model runs: its largest batch on an accelerator
_PIXELS = 50_000_000  # or as many, of the images that wait
_SHOWN_NAMES = 5  # of a file of boxes, in a message
_FRAMES = 8  # of a video, for the model at a time
_NAME_BYTES = 225  # of a result's name: file systems take 255, and it is longer while it is written


def add_parser(subparsers) -> None:
    """Adds `predict` to the subcommands of `lcgcn`."""
    parser = subparsers.add_parser(
        "predict",
        help="landmarks of the faces in images and videos",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Finds faces and their landmarks. All results are in pixels of the upright image (after its EXIF
orientation, or the rotation of an AVIF), the center of the top-left pixel at (0, 0); only .pts files
count from 1. With --stored-pixels they are in pixels of the image as it is stored.

  image   OUT/NAME.json (or .csv, or NAME_face1.pts ...) and the overlay OUT/NAME.png
  video        OUT/NAME.jsonl, a line for each frame with its own time stamp, and the annotated
               OUT/NAME.mp4, which shows the same frames at a constant rate

Faces are found by OpenCV's YuNet, unless boxes are given. A file of boxes (--boxes) is JSON,
{"photo.jpg": [[x0, y0, x1, y1], ...], ...}, or CSV with the header image,x0,y0,x1,y1; an empty list
or four empty cells are for an image without a face.
Files that cannot be used are listed at the end; the exit code is then 1. Ctrl-C keeps all finished
images, and the finished frames of a video as OUT/NAME.interrupted.jsonl and .mp4 (or, where these
exist, as OUT/NAME.interrupted-2.jsonl and so on).""",
        epilog="""\
examples:
  lcgcn predict --model runs/small photo.jpg --box 120,80,260,240
  lcgcn predict --model runs/small holiday/ 'party/*.jpg' --format csv --out landmarks
  lcgcn predict --model runs/small clip.mp4 --smooth""",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="bundle, training workdir or name of a shipped model (%(default)s)",
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, or quoted pattern"
    )
    boxes = parser.add_mutually_exclusive_group()
    boxes.add_argument(
        "--box",
        action="append",
        metavar="X0,Y0,X1,Y1",
        help="box around a face, chin to brows, in pixels; once for each face of the one input",
    )
    boxes.add_argument("--boxes", type=Path, metavar="FILE", help="file of such boxes, see above")
    boxes.add_argument(
        "--whole-image", action="store_true", help="each picture is the crop of one face"
    )
    boxes.add_argument("--detector-model", **DETECTOR_MODEL_OPTION)
    parser.add_argument(
        "--stored-pixels",
        action="store_true",
        help="ignore the EXIF orientation of images: read them as they are stored",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder for the results (%(default)s)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="json", help="of the landmarks (%(default)s)"
    )
    parser.add_argument(
        "--draw-edges", action="store_true", help="draw the strongest edges of the graph"
    )
    parser.add_argument(
        "--smooth", action="store_true", help="videos: steady the landmarks (One Euro filter)"
    )
    parser.add_argument(
        "--fps", type=float, metavar="RATE", help="videos: frames a second, where the file is wrong"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predicts and writes; returns 1 if an input was left out or not one face was found, else 0.

    Raises:
      InputError: nothing can be used, and why; nothing was written then.
    """
    # FFmpeg speaks past OpenCV's own log.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    inputs = find_inputs(args.inputs)
    _check_options(args, inputs.files)
    _check_outputs(args, inputs.files)
    box_file = None
    if args.boxes is not None:
        box_file = results.BoxFile(args.boxes)
        box_file.assign(inputs.files)
    with quiet_opencv():
        use_compilation_cache()
        model = load(args.model, detector_model=args.detector_model)
        if args.draw_edges and model.config["graph"] is None:
            raise InputError(f"{args.model}: the model has no graph; leave out --draw-edges")
        code = _Run(args, model, box_file).work_off(inputs.files)
    if unread := inputs.describe_unread():
        print(printable(unread), file=sys.stderr)
    if box_file is not None and box_file.unused:
        shown = ", ".join(box_file.unused[:_SHOWN_NAMES]) + (
            ", ..." if len(box_file.unused) > _SHOWN_NAMES else ""
        )
        print(
            printable(
                f"{args.boxes}: {len(box_file.unused)} names are not among the inputs: {shown}"
            ),
            file=sys.stderr,
        )
    return code


def _check_options(args: argparse.Namespace, inputs: Sequence[InputFile]) -> None:
    videos = [file for file in inputs if file.is_video]
    if args.box is not None and len(inputs) > 1:
        raise InputError(f"--box goes with one input, and there are {len(inputs)}; use --boxes")
    if args.fps is not None and not args.fps > 0:
        raise InputError(f"--fps {args.fps:g}: has to be positive")
    if videos and args.format != "json":
        raise InputError(
            f"{videos[0].path}: the landmarks of a video are JSON lines; leave out --format"
        )
    for option, given in (("--smooth", args.smooth), ("--fps", args.fps is not None)):
        if given and not videos:
            raise InputError(f"{option} is for videos, and there is none")


def _check_outputs(args: argparse.Namespace, inputs: Sequence[InputFile]) -> None:
    """Refuses results that would replace something, or that could not be written."""
    # Unlike Path.resolve and Path.exists, those of os.path take any link and any name.
    sources = {os.path.realpath(file.path) for file in inputs}
    for file in inputs:
        outputs = _outputs(args, file)
        if args.format == "pts":
            outputs += _pts_files(args, file)
        for path in outputs:
            if len(os.fsencode(path.name)) > _NAME_BYTES:
                raise InputError(
                    f"{path}: its name would be too long for a file; give {file.path} a shorter one"
                )
        for path in outputs:
            if os.path.realpath(path) in sources:
                raise InputError(f"{path}: is one of the inputs; choose another --out")
            if path.exists() and not args.overwrite:
                raise InputError(
                    f"{path}: already exists; choose another --out or give --overwrite"
                )
    there = next(path for path in (args.out, *args.out.absolute().parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{args.out}: cannot be written to; choose another --out")


def _outputs(args: argparse.Namespace, file: InputFile) -> list[Path]:
    """The results of an input, but for `.pts` files: the picture last."""
    suffixes = (".jsonl", ".mp4") if file.is_video else (*FORMATS[args.format], ".png")
    return [args.out / file.name.with_name(file.name.name + suffix) for suffix in suffixes]


def _pts_files(args: argparse.Namespace, file: InputFile) -> list[Path]:
    """The `.pts` files of an input that are there already."""
    folder = (args.out / file.name).parent
    return sorted(folder.glob(f"{glob.escape(file.name.name)}_face*.pts"))


def _boxes_of(
    args: argparse.Namespace, model: LandmarkModel, box_file: results.BoxFile | None
) -> BoxesOf:
    """Where the face boxes come from.

    Raises:
      InputError: they are not boxes, or the face detector cannot be used.
    """

    def checked(boxes, path, image):
        return check_boxes(boxes, image.shape[1], image.shape[0], path), None

    def detected(path, image):
        boxes, scores = detector.scored_boxes(image)
        return list(boxes), scores.tolist()

    if args.box is not None:
        boxes = [parse_box(text) for text in args.box]
        return lambda path, image: checked(boxes, path, image)
    if box_file is not None:
        return lambda path, image: checked(box_file.of(path), path, image)
    if args.whole_image:
        return lambda path, image: ([box_of_crop(image.shape[1], image.shape[0])], None)
    detector = model.detector
    return detected


def parse_box(text: str) -> list[float]:
    """A box from `x0,y0,x1,y1`.

    Raises:
      InputError: it is not four numbers.
    """
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise InputError(f"--box {text}: a box is four numbers x0,y0,x1,y1 in pixels")
    return box


@dataclasses.dataclass(frozen=True)
class _ImageJob:
    """A image that waits for the model."""

    file: InputFile
    pixels: np.ndarray
    boxes: list[Box]
    scores: list[float] | None


class _Run:
    """One run of the command over its inputs."""

    def __init__(
        self,
        args: argparse.Namespace,
        model: LandmarkModel,
        box_file: results.BoxFile | None,
    ):
        self._args = args
        self._model = model
        self._boxes_of = _boxes_of(args, model, box_file)
        self._finished = 0
        self._failures: list[str] = []
        self._without_face: list[str] = []

    def work_off(self, inputs: Sequence[InputFile]) -> int:
        """Takes the inputs one after the other; returns the exit code.

        Raises:
          InputError: not one input can be used.
        """
        try:
            self._predict_all(inputs)
        except KeyboardInterrupt as stop:
            kept = getattr(stop, "kept", "")
            stop.kept = f"{self._finished} of {len(inputs)} inputs are finished"
            stop.kept += f" in {self._args.out}" if self._finished else ""
            stop.kept += f"; {kept}" if kept else ""
            raise
        if len(self._failures) == len(inputs):
            others = f"; and {len(inputs) - 1} more cannot be used" if len(inputs) > 1 else ""
            raise InputError(f"{self._failures[0]}{others}")
        for failure in self._failures:
            print(f"left out: {printable(failure)}", file=sys.stderr)
        # In a file of boxes, no box says that there is no face.
        if self._without_face and self._args.boxes is None:
            print(
                f"no face found in: {printable(', '.join(self._without_face))}; where there is one, "
                "give its box by --box X0,Y0,X1,Y1 or --boxes FILE",
                file=sys.stderr,
            )
            no_face = len(self._failures) + len(self._without_face) == len(inputs)
            return 1 if self._failures or no_face else 0
        return 1 if self._failures else 0

    def _predict_all(self, inputs: Sequence[InputFile]) -> None:
        waiting: list[_ImageJob] = []
        for file in inputs:
            try:
                if file.is_video:
                    self._predict_video(file)
                else:
                    waiting.append(self._read(file))
            except InputError as error:
                # Closing or renaming the files of a video failed, after a signal ended it.
                if (number := received()) is not None:
                    stop = Interrupted(number)
                    lost = f"the frames of {file.path} are lost: " if file.is_video else ""
                    stop.kept = f"{lost}{error}"
                    raise stop from error
                self._failures.append(str(error))
            faces = sum(len(image.boxes) for image in waiting)
            if faces >= _FACES or sum(photo.pixels.size for photo in waiting) >= 3 * _PIXELS:
                self._predict_images(waiting)
                waiting = []
        self._predict_images(waiting)

    def _read(self, file: InputFile) -> _ImageJob:
        pixels = read_image(file.path, upright=not self._args.stored_pixels)
        return _ImageJob(file, pixels, *self._boxes_of(file.path, pixels))

    def _predict_images(self, waiting: Sequence[_ImageJob]) -> None:
        found = self._model.predict_batch([p.pixels for p in waiting], [p.boxes for p in waiting])
        for image, unscored in zip(waiting, found, strict=True):
            faces = _with_scores(unscored, image.scores)
            with _writing(self._args.out):
                written = self._write_image(image, faces)
            self._finished += 1
            path = image.file.path
            print(printable(f"{path}: {len(faces)} faces; {', '.join(map(str, written))}"))
            if not faces:
                self._without_face.append(str(path))

    def _write_image(self, image: _ImageJob, faces: Sequence[Face]) -> list[Path]:
        file, pixels = image.file, image.pixels
        *landmark_files, picture = _outputs(self._args, file)
        picture.parent.mkdir(parents=True, exist_ok=True)
        contents: dict[Path, str | bytes] = {}
        for path in landmark_files:
            if self._args.format == "csv":
                contents[path] = results.format_csv(faces, self._model.scheme)
            else:
                result = results.describe_image(
                    file.path, pixels.shape[1], pixels.shape[0], faces, self._model.scheme
                )
                contents[path] = json.dumps(result) + "\n"
        if self._args.format == "pts":
            for number, face in enumerate(faces, start=1):
                path = picture.with_name(f"{file.name.name}_face{number}.pts")
                contents[path] = format_pts(face.landmarks)
        contents[picture] = visualize.encode_image(picture, self._draw(pixels, faces))
        write_all(
            {p: c if isinstance(c, bytes) else c.encode("utf-8") for p, c in contents.items()}
        )
        if self._args.format == "pts":
            # Of an earlier run, which may have found more faces.
            for path in _pts_files(self._args, file):
                if path not in contents:
                    path.unlink()
        return list(contents)

    def _draw(self, pixels: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
        return visualize.draw_faces(
            pixels,
            [face.landmarks for face in faces],
            [face.confidence for face in faces],
            self._model.scheme,
            sides=[_side(face.box) for face in faces],
            edges=[face.edges for face in faces] if self._args.draw_edges else None,
            visibility=[face.visibility for face in faces],
        )

    def _predict_video(self, file: InputFile) -> None:
        outputs = _outputs(self._args, file)
        times: list[float] = []
        num_faces = 0
        with (
            open_video(file.path, frames_per_second=self._args.fps) as video,
            _writing(self._args.out),
        ):
            outputs[0].parent.mkdir(parents=True, exist_ok=True)
            with replacing_all(outputs) as (lines, annotated):
                rate = video.frames_per_second
                bar = tqdm(total=video.num_frames or None, desc=file.path.name, unit="frame")
                try:
                    with (
                        lines.open("w", encoding="utf-8") as json_lines,
                        VideoWriter(annotated, frames_per_second=rate) as writer,
                        bar,
                    ):
                        for frame, faces, tracks in self._faces_of_frames(video):
                            drawn = self._draw(frame.pixels, faces)
                            with deferred():  # a frame is in both files or in none
                                result = results.describe_frame(
                                    len(times), frame.time, faces, tracks
                                )
                                json_lines.write(json.dumps(result) + "\n")
                                writer.write(drawn)
                                times.append(frame.time)
                            num_faces += len(faces)
                            bar.update()
                except KeyboardInterrupt as stop:
                    if times:
                        kept = _keep(outputs, (lines, annotated))
                        stop.kept = f"the first {len(times)} frames of {file.path} are in {kept}"
                    raise
        self._finished += 1
        print(
            printable(
                f"{file.path}: {bar.n} frames, {num_faces} faces, "
                f"{bar.n / bar.format_dict['elapsed']:.1f} frames per second; "
                f"{', '.join(map(str, outputs))}"
            )
        )
        if varies(times):
            print(
                printable(
                    f"{file.path}: its frame rate varies; {outputs[1]} plays at a constant {rate:.4g} "
                    f"frames per second, and {outputs[0]} has the true times"
                )
            )
        if not num_faces:
            self._without_face.append(str(file.path))

    def _faces_of_frames(self, video: Video) -> Iterator[tuple[Frame, list[Face], list[int]]]:
        """Every frame with its faces and their numbers through the video."""
        tracker = FaceTracker()
        filters: dict[int, OneEuroFilter] = collections.defaultdict(OneEuroFilter)
        while frames := list(itertools.islice(video.frames, _FRAMES)):
            pixels = [frame.pixels for frame in frames]
            found = [self._boxes_of(video.path, image) for image in pixels]
            predicted = self._model.predict_batch(pixels, [boxes for boxes, _ in found])
            for frame, unscored, (_, scores) in zip(frames, predicted, found, strict=True):
                faces = _with_scores(unscored, scores)
                tracks = tracker.update(np.array([face.box for face in faces]).reshape(-1, 4))
                if self._args.smooth:
                    faces = [
                        dataclasses.replace(
                            face,
                            landmarks=filters[track](
                                face.landmarks, time=frame.time, side=_side(face.box)
                            ),
                        )
                        for face, track in zip(faces, tracks, strict=True)
                    ]
                yield frame, faces, tracks


def _keep(outputs: Sequence[Path], partials: Sequence[Path]) -> str:
    """Keeps the files of an interrupted video under new names; returns the names.

    Those of earlier runs stay: the names get a number.

    Raises:
      OSError: they cannot be renamed; none of them is kept then.
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
    return " and ".join(map(str, names))


def _with_scores(faces: list[Face], scores: list[float] | None) -> list[Face]:
    """The faces with the scores of the face detector, which had given their boxes."""
    if scores is None:
        return faces
    return [
        dataclasses.replace(face, score=score) for face, score in zip(faces, scores, strict=True)
    ]


def _side(box: Box) -> float:
    return float((box[2:] - box[:2]).max())


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: cannot be written: {error.strerror}; choose another --out, or "
            "free some space"
        ) from error
