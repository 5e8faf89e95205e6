"""Jitter and error of the landmarks in a video, with and without tracking and smoothing.

    python benchmarks/video_jitter.py --detector-model face_detection_yunet_2023mar.onnx

The frames are a warped image of a face with noise at 25 frames per second, so that the motion is known. The
truth is the mean prediction of the same method without smoothing, in coordinates of the image. Jitter is the
mean change of the error of a landmark from one frame to the next. All values are in pixels.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

import lcgcn_jax as lc
from lcgcn_jax.geometry import Affine, invert, transform_points

ROOT = Path(__file__).parents[1]
RATE = 25.0
NOISE = 6.0  # standard deviation in gray values

SCENES: dict[str, Callable[[float], tuple[float, float, float]]] = {
    "still face": lambda t: (0.0, 0.0, 1.0),
    "slow turn, 12 degrees/s": lambda t: (12 * t - 15, 0.0, 1.0),
    "motion, 1 face side/s at most": lambda t: (0.0, 60 * np.sin(2 * np.pi * t / 1.8), 1.0),
}
"""Scene -> rotation in degrees, shift in pixels and scale at a time in seconds."""


def main() -> None:
    """Parse the flags, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="w300-lcgcn-small", help="(%(default)s)")
    parser.add_argument("--detector-model", help="ONNX file of YuNet (default: downloaded once)")
    parser.add_argument("--frames", type=int, default=64, help="(%(default)s)")
    args = parser.parse_args()
    model = lc.load_model(args.model, detector_model=args.detector_model)
    methods: dict[str, Callable[[list[np.ndarray]], list[lc.Face]]] = {
        "each frame detected": lambda frames: [model.predict(frame)[0] for frame in frames],
        "tracked": lambda frames: [f.faces[0] for f in model.track(frames)],
        "tracked, smooth": lambda frames: [f.faces[0] for f in model.track(frames, smooth=True)],
    }
    print("| scene | method | jitter | error |\n|---|---|---|---|")
    for scene, motion in SCENES.items():
        frames, affines = render(motion, args.frames)
        truth = np.zeros(0)
        for name, predict in methods.items():
            landmarks = [
                transform_points(invert(affine), face.landmarks)
                for face, affine in zip(predict(frames), affines, strict=True)
            ]
            truth = truth if name.endswith("smooth") else np.mean(landmarks, axis=0)
            errors = np.stack(
                [transform_points(a, p) - transform_points(a, truth)
                 for a, p in zip(affines, landmarks, strict=True)]
            )  # fmt: skip
            skipped = round(0.4 * RATE)  # until the filter has settled
            jitter = np.linalg.norm(np.diff(errors[skipped:], axis=0), axis=-1).mean()
            error = np.linalg.norm(errors[skipped:], axis=-1).mean()
            print(f"| {scene} | {name} | {jitter:.2f} | {error:.2f} |", flush=True)


def render(motion: Callable, num_frames: int) -> tuple[list[np.ndarray], list[Affine]]:
    """Frames of a scene, and the affine from the image of the face to each of them."""
    image = cv2.imread(str(ROOT / "docs/images/photo.jpg"))[..., ::-1]
    rng = np.random.default_rng(0)
    frames, affines = [], []
    for i in range(num_frames):
        angle, shift, scale = motion(i / RATE)
        affine = cv2.getRotationMatrix2D((225, 130), -angle, 2 * scale)
        affine[:, 2] += (95 + shift, 110)
        frame = cv2.warpAffine(image, affine, (640, 480), borderMode=cv2.BORDER_REPLICATE)
        noisy = frame + rng.normal(0, NOISE, frame.shape)
        frames.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        affines.append(affine)
    return frames, affines


if __name__ == "__main__":
    main()
