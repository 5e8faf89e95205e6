"""Track the faces of a video or camera, and save an annotated video.

python examples/predict_video.py clip.mp4 annotated.mp4
python examples/predict_video.py camera:0 annotated.mp4 --frames 100

`lcgcn predict clip.mp4 --smooth` does the same, and writes the landmarks of each frame as JSON.
"""

import argparse
import itertools
from pathlib import Path

import cv2

import lcgcn_jax as lc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", help="video file, camera:N, rtsp://... or http://...")
    parser.add_argument("annotated", help="video to write")
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    parser.add_argument("--frames", type=int, help="stop after this number of frames")
    args = parser.parse_args()

    model = lc.load_model(args.model, detector_model=args.detector_model)
    writer = cv2.VideoWriter()
    # Videos of phones can have a variable rate, which `lcgcn predict` handles.
    is_file = Path(args.video).is_file()
    rate = (cv2.VideoCapture(args.video).get(cv2.CAP_PROP_FPS) if is_file else 0) or 25
    frames = model.track(args.video, smooth=True)
    for number, frame in enumerate(itertools.islice(frames, args.frames)):
        overlay = cv2.cvtColor(lc.draw(frame.image, frame.faces), cv2.COLOR_RGB2BGR)
        if not writer.isOpened():
            height, width = overlay.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            writer.open(args.annotated, codec, rate, (width, height))
        writer.write(overlay)
        tracks = [face.track for face in frame.faces]
        print(f"frame {number}, {frame.time:.2f} s: faces {tracks}")
    writer.release()


if __name__ == "__main__":
    main()
