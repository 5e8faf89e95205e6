"""Prediction for an uploaded video, with a copy of the result that browsers play."""

from pathlib import Path

import cv2

from lcgcn_jax.app.uploads import check_video, display_name
from lcgcn_jax.errors import InputError
from lcgcn_jax.inference.batch_predict import BatchPredictor
from lcgcn_jax.inference.face_detector import quiet_opencv
from lcgcn_jax.inference.model import LandmarkModel
from lcgcn_jax.inference.result_files import ResultFiles
from lcgcn_jax.inference.sources import InputFile
from lcgcn_jax.visualize.overlays import draw_faces

_BROWSER_CODEC = "VP80"  # OpenCV has no encoder for H.264, and VP9 takes five times as long


def predict_video(path: Path, model: LandmarkModel, folder: Path) -> tuple[Path, Path, Path]:
    """Predict the frames of an uploaded video as `lcgcn predict` does.

    Returns:
      Files in `folder`: JSON lines, the annotated MP4 video, and the same as WebM for a browser.

    Raises:
      InputError: the file is too large, too long, or not a video.
    """
    with quiet_opencv():
        check_video(path)
        file = InputFile(path, Path(path.stem))
        if not file.is_video:  # by its suffix; OpenCV reads it by its content
            link = folder / "input" / f"{path.stem}.mp4"
            link.parent.mkdir()
            link.symlink_to(path)
            file = InputFile(link, Path(path.stem))
        files = ResultFiles(folder)
        try:
            BatchPredictor(model, files, draw=draw_faces).run([file])
        except InputError as error:
            message = str(error).replace(str(file.path), display_name(path))
            raise InputError(message) from error
        lines, video = files.paths(file)
        playable = video.with_suffix(".webm")
        _transcode(video, playable)
    return lines, video, playable


def _transcode(source: Path, target: Path) -> None:
    capture = cv2.VideoCapture(str(source))
    size = tuple(int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    codec = cv2.VideoWriter.fourcc(*_BROWSER_CODEC)
    writer = cv2.VideoWriter(str(target), codec, capture.get(cv2.CAP_PROP_FPS), size)
    try:
        if not writer.isOpened():
            raise InputError(f"this OpenCV cannot write {_BROWSER_CODEC} videos for the browser")
        while (frame := capture.read())[0]:
            writer.write(frame[1])
    finally:
        capture.release()
        writer.release()
