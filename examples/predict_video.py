"""Predict the landmarks of the faces in each frame of a video, and save an annotated video.

python examples/predict_video.py clip.mp4 annotated.mp4

`lcgcn predict clip.mp4 --smooth` also tracks the faces and smooths their landmarks.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator

import cv2
import numpy as np

import lcgcn_jax as lc

BATCH = 8  # frames


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """RGB frames `[h, w, 3]` of a video."""
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", help="video to read")
    parser.add_argument("annotated", help="video to write")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    args = parser.parse_args()

    capture = cv2.VideoCapture(args.video)
    if not capture.isOpened():
        sys.exit(f"{args.video}: cannot be read as a video")
    model = lc.load_model(args.model, detector_model=args.detector_model)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    rate = capture.get(cv2.CAP_PROP_FPS)
    writer = cv2.VideoWriter(args.annotated, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    frames = read_frames(capture)
    numbers = itertools.count()
    while images := list(itertools.islice(frames, BATCH)):
        for image, faces in zip(images, model.predict_batch(images), strict=True):
            writer.write(cv2.cvtColor(lc.draw(image, faces), cv2.COLOR_RGB2BGR))
            print(f"frame {next(numbers)}: {len(faces)} faces")
    writer.release()


if __name__ == "__main__":
    main()
