"""Speed of `lcgcn predict` on a video with one face, and the CPU time of its stages.

    python benchmarks/video.py --detector-model face_detection_yunet_2023mar.onnx
    python benchmarks/video.py --against PATH_OF_ANOTHER_CHECKOUT

The clip is a moving and rotating image of a face, 1280 x 720 pixels at 25 frames per second. Each command
runs on a short and on a long clip, and the difference is the time of the remaining frames, without the start
of the process and the compilation. Runs of the two checkouts alternate, so that other load affects both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

import lcgcn_jax as lc
from lcgcn_jax import geometry
from lcgcn_jax.inference import results
from lcgcn_jax.inference.video import VideoWriter, open_video

ROOT = Path(__file__).parents[1]
RATE = 25.0


def main() -> None:
    """Parse the flags, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    parser.add_argument("--against", type=Path, help="checkout of another version")
    parser.add_argument("--frames", type=int, nargs=2, default=(50, 200), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each command (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = [write_clip(Path(folder) / f"{n}.mp4", n) for n in args.frames]
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        measure_stages(args, clips[0])
        compare(args, clips, Path(folder))


def write_clip(path: Path, num_frames: int) -> Path:
    """Write a video of a moving face."""
    image = cv2.imread(str(ROOT / "docs/images/photo.jpg"))[..., ::-1]
    with VideoWriter(path, frames_per_second=RATE) as writer:
        for i in range(num_frames):
            angle, scale = 6 * np.sin(i / 15), 1.3 + 0.1 * np.sin(i / 20)
            matrix = cv2.getRotationMatrix2D((255.5, 255.5), angle, scale)
            matrix[:, 2] += (384 + 120 * np.sin(i / 18), 104 + 20 * np.cos(i / 10))
            border = cv2.BORDER_REPLICATE
            writer.write(cv2.warpAffine(image, matrix, (1280, 720), borderMode=border))
    return path


def measure_stages(args: argparse.Namespace, clip: Path) -> None:
    """Print the CPU time of each stage for one frame."""
    model = lc.load_model(args.model, detector_model=args.detector_model)
    with open_video(clip) as video:
        frame = next(video.frames).pixels
    (face,) = model.predict(frame)
    tracker = lc.FaceTracker(model)
    (face,) = tracker.update(frame)
    crop = geometry.warp(frame, face.crop, model.image_size)[None]
    overlay = lc.draw(frame, [face], legend=True)
    capture = cv2.VideoCapture(str(clip))
    with tempfile.TemporaryDirectory() as folder:
        writer = VideoWriter(Path(folder) / "overlay.mp4", frames_per_second=RATE)
        line = (0, 0.0, [face], model.scheme)
        stages: dict[str, Callable[[], object]] = {
            "decoding": capture.read,
            "face detector": lambda: model.boxed_image(frame),
            "crop": lambda: geometry.warp(frame, face.crop, model.image_size),
            "network": lambda: model.predict_crops(crop),
            "drawing": lambda: lc.draw(frame, [face], legend=True),
            "encoding": lambda: writer.write(overlay),
            "JSON": lambda: json.dumps(results.describe_frame(*line)),
        }
        for name, run in stages.items():
            run()
            start = time.process_time()
            for _ in range(20):
                run()
            print(f"{name}: {(time.process_time() - start) / 20 * 1e3:.1f} ms of CPU time")
        writer.close()


def compare(args: argparse.Namespace, clips: list[Path], folder: Path) -> None:
    """Print wall and CPU time per frame of `lcgcn predict`, here and in the other checkout."""
    checkouts = [ROOT, *([args.against.resolve()] if args.against else [])]
    times: dict[Path, list[np.ndarray]] = {checkout: [] for checkout in checkouts}
    difference = args.frames[1] - args.frames[0]
    for _ in range(args.rounds):
        for checkout in checkouts:
            short, long = (predict(args, checkout, clip, folder) for clip in clips)
            times[checkout].append((long - short) / difference)
    medians = {checkout: np.median(times[checkout], axis=0) for checkout in checkouts}
    for checkout, (wall, cpu) in medians.items():
        name = "this version" if checkout == ROOT else "other version"
        print(f"{name}: {1 / wall:.1f} frames/s, {1e3 * cpu:.1f} ms of CPU time per frame")
    if args.against:
        wall, cpu = medians[checkouts[1]] / medians[ROOT]
        print(f"ratio: {wall:.2f} in frames per second, {cpu:.2f} in CPU time")


def predict(args: argparse.Namespace, checkout: Path, clip: Path, folder: Path) -> np.ndarray:
    """Run `lcgcn predict`; returns its wall and CPU time in seconds."""
    command = [sys.executable, "-m", "lcgcn_jax", "predict", str(clip), "--model", args.model]
    command += ["--out", str(folder / "out"), "--overwrite"]
    if args.detector_model:
        command += ["--detector-model", str(Path(args.detector_model).resolve())]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, check=True, capture_output=True, cwd=checkout, env=environment)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return np.array([wall, cpu])


if __name__ == "__main__":
    main()
