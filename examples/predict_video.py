"""Predict the landmarks of the faces in each frame of a video, and save an annotated video.

python examples/predict_video.py clip.mp4 annotated.mp4

`lcgcn predict clip.mp4 --smooth` also tracks the faces and smooths their landmarks.
"""

import argparse
import itertools
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("annotated")
    parser.add_argument("--model", default="w300-lcgcn-small")
    parser.add_argument("--detector-model", help="YuNet's ONNX file (default: downloaded once)")
    args = parser.parse_args()

    model = lc.load_model(args.model, detector_model=args.detector_model)
    capture = cv2.VideoCapture(args.video)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    rate = capture.get(cv2.CAP_PROP_FPS)
    writer = cv2.VideoWriter(args.annotated, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    frames = read_frames(capture)
    number = 0
    while batch := list(itertools.islice(frames, BATCH)):
        for frame, faces in zip(batch, model.predict_batch(batch), strict=True):
            writer.write(cv2.cvtColor(lc.draw(frame, faces), cv2.COLOR_RGB2BGR))
            print(f"frame {number}: {len(faces)} faces")
            number += 1
    writer.release()


if __name__ == "__main__":
    main()
