"""Geometry derived from landmarks: aligned face crops, head pose, and openness of the eyes and the mouth.

All functions take landmarks in pixels and their scheme. Left and right are those of the viewer. An
`InputError` states which landmarks a scheme lacks, or which ones are NaN or infinite.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import Affine, warp
from lcgcn_jax.landmarks import IBUG68, WFLW98, WFLW98_TO_IBUG68, LandmarkScheme

Landmarks = Float[np.ndarray, "k 2"]
_Point = Sequence[int | float]
Template = Mapping[str, _Point] | Mapping[int, _Point] | Mapping[str | int, _Point]
"""Name or index of a landmark, or part whose mean is used -> location in the aligned crop, in pixels."""

ARCFACE_SIZE = 112
ARCFACE_TEMPLATE: Template = {
    "left_eye": (38.2946, 51.6963),
    "right_eye": (73.5318, 51.5014),
    "nose_bridge_3": (56.0252, 71.7366),
    "outer_lips_0": (41.5493, 92.3655),
    "outer_lips_6": (70.7299, 92.2041),
}
"""Template of ArcFace (Deng et al., CVPR 2019) for crops of 112 x 112 px, as in InsightFace.

The landmarks are the centers of the eyes, the tip of the nose and the corners of the mouth."""

_SHAPE_FILE = Path(__file__).with_name("head_shape.json")
_FIRST_LANDMARK = 17  # of IBUG68 in the file; the jaw is left out
_MIN_LOCATED = 8
_LANDMARK_NOISE = 0.03  # standard deviation; halves of the distance between the ears
_MAX_ALIGNED_SIZE = 8192  # pixels
_MAX_ITERATIONS = 50
_MAX_STEP = 0.5  # radians, or a factor of the scale
_CONVERGED = 1e-4  # radians


class HeadPose(NamedTuple):
    """Rotation of the head in degrees, relative to a face that looks at the camera.

    The rotation matrix is `roll @ pitch @ yaw` (yaw first), with x to the right of the image, y down and z
    towards the camera. `pitch` is in -90..90, the others are in -180..180.

    Attributes:
      yaw: positive if the nose points to the right side of the image (the person turns to their left).
      pitch: positive if the nose points down.
      roll: positive if the head is rotated clockwise in the image.
    """

    yaw: float
    pitch: float
    roll: float


class EyeOpenness(NamedTuple):
    """Aspect ratio of each eye: about 0.3 for an open eye, below about 0.15 for a closed one.

    Attributes:
      left: eye on the left of an upright image.
      right: eye on the right of an upright image.
    """

    left: float
    right: float


def align_transform(
    landmarks: Landmarks,
    scheme: LandmarkScheme,
    size: int = ARCFACE_SIZE,
    template: Template | None = None,
) -> Affine:
    """Similarity from the image to an aligned crop, the least-squares fit of Umeyama (1991).

    Args:
      landmarks: in pixels of the image.
      size: side of the crop in pixels.
      template: location of two or more landmarks or parts in the crop. Default: `ARCFACE_TEMPLATE`,
        multiplied by `size / 112`.

    Raises:
      InputError: the template does not fit the scheme, or the landmarks determine no similarity.
    """
    if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
        raise InputError(f"size: {size!r} is not a positive number of pixels")
    if template is None:
        missing = [name for name in ARCFACE_TEMPLATE if name not in _landmark_sets(scheme)]
        if missing:
            raise InputError(
                f"the ArcFace template needs {missing[0]!r}, which the scheme {scheme.name} lacks; pass "
                "template={landmark or part: (x, y), ...} in pixels of the crop"
            )
        scale = size / ARCFACE_SIZE
        template = {name: (scale * x, scale * y) for name, (x, y) in ARCFACE_TEMPLATE.items()}
    if len(template) < 2:
        raise InputError("template: needs at least two landmarks or parts")
    try:
        target = np.array(list(template.values()), np.float64)
    except (TypeError, ValueError):  # of different lengths, or not numbers
        target = np.zeros(0)
    if target.shape != (len(template), 2) or not np.isfinite(target).all():
        raise InputError("template: a location is not a pair (x, y) of numbers")
    source = np.stack([_mean_point(landmarks, scheme, name) for name in template])
    # A point is a complex number, and a scaled rotation is a complex factor.
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    centered = z - z.mean()
    norm = np.vdot(centered, centered).real
    factor = np.vdot(centered, w - w.mean()) / norm if norm > 0 else 0
    if not abs(factor) > 0:
        raise InputError("the landmarks or the points of the template coincide: no alignment")
    shift = w.mean() - factor * z.mean()
    return np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )


def align(
    image: UInt8[np.ndarray, "h w 3"],
    landmarks: Landmarks,
    scheme: LandmarkScheme,
    size: int = ARCFACE_SIZE,
    template: Template | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """Aligned RGB crop of a face, for face recognition and similar models; black outside the image.

    The arguments after `image` are those of `align_transform`.

    Raises:
      InputError: as `align_transform`, all landmarks lie outside the image, or `size` is out of range.
    """
    affine = align_transform(landmarks, scheme, size, template)
    if size > _MAX_ALIGNED_SIZE:
        raise InputError(f"size: {size} is more than {_MAX_ALIGNED_SIZE:,} pixels")
    height, width = image.shape[:2]
    if not ((landmarks > -0.5) & (landmarks < np.array([width, height]) - 0.5)).all(axis=1).any():
        raise InputError(
            f"all landmarks lie outside the image, which is {width} x {height}; pass the image that they "
            "were predicted for"
        )
    return warp(image, affine, size)


def head_pose(landmarks: Landmarks, scheme: LandmarkScheme) -> HeadPose:
    """Head pose, from the fit of a 3D shape model of the face under weak perspective.

    The model (`synthetic.shape_model`) has a mean shape and eight modes of identity and expression. Pose and
    modes are a maximum a posteriori estimate: Gauss-Newton on the distances to the landmarks, with a
    standard normal prior of the modes. Weak perspective holds for faces that are several head sizes away;
    a selfie at arm's length adds a few degrees of pitch.

    Args:
      landmarks: in pixels. NaN or infinite ones are ignored.
      scheme: `IBUG68` or `WFLW98`.

    Raises:
      InputError: another scheme, fewer than 8 finite landmarks (without the jaw), or the landmarks
        coincide.
    """
    points = _inner_landmarks(np.asarray(landmarks, np.float64), scheme)
    located = np.isfinite(points).all(axis=1)
    if located.sum() < _MIN_LOCATED:
        raise InputError(
            f"the head pose needs {_MIN_LOCATED} landmarks besides the jaw that are not NaN; there are "
            f"{located.sum()}"
        )
    mean, modes = _shape_model()
    points, mean, modes = points[located], mean[located], modes[:, located]
    points = points - points.mean(axis=0)
    size = np.sqrt((points**2).sum(axis=1).mean())
    if not size > 0:
        raise InputError("the landmarks of the face coincide: no head pose")
    mean = mean - mean.mean(axis=0)
    modes = modes - modes.mean(axis=1, keepdims=True)
    return _angles(_fit_rotation(points / size, mean, modes))


def _inner_landmarks(landmarks: np.ndarray, scheme: LandmarkScheme) -> Float[np.ndarray, "51 2"]:
    """The landmarks of the shape model."""
    if scheme.name == WFLW98.name:
        landmarks = landmarks[list(WFLW98_TO_IBUG68)]
    elif scheme.name != IBUG68.name:
        raise InputError(
            f"the head pose needs the scheme {IBUG68.name} or {WFLW98.name}, not {scheme.name}"
        )
    return landmarks[_FIRST_LANDMARK:]


@functools.cache
def _shape_model() -> tuple[Float[np.ndarray, "51 3"], Float[np.ndarray, "m 51 3"]]:
    content = json.loads(_SHAPE_FILE.read_text(encoding="utf-8"))
    return np.array(content["mean"]), np.array(content["modes"])


def _fit_rotation(
    points: Float[np.ndarray, "n 2"],
    mean: Float[np.ndarray, "n 3"],
    modes: Float[np.ndarray, "m n 3"],
) -> Float[np.ndarray, "3 3"]:
    """Rotation of the shape model that explains centered points of unit size."""
    rotation, scale = _affine_start(points, mean)
    weights = np.zeros(len(modes))
    precision = np.diag([1e-6] * 4 + [1.0] * len(modes))
    for _ in range(_MAX_ITERATIONS):
        x, y, z = turned = rotation @ (mean + np.tensordot(weights, modes, 1)).T
        zero = np.zeros_like(x)
        # Derivatives by a small rotation about x, y and z, the logarithm of the scale, and the modes.
        derivatives = [
            (zero, -z),
            (z, zero),
            (-y, x),
            (x, y),
            *(rotation[:2] @ modes.swapaxes(1, 2)),
        ]
        jacobian = np.stack([np.concatenate(pair) for pair in derivatives]) / _LANDMARK_NOISE
        residual = (points.T / scale - turned[:2]).ravel() / _LANDMARK_NOISE
        gradient = jacobian @ residual - np.concatenate([np.zeros(4), weights])
        step = np.linalg.solve(jacobian @ jacobian.T + precision, gradient)
        step *= min(1.0, _MAX_STEP / max(np.abs(step[:4]).max(), _CONVERGED))
        rotation = cv2.Rodrigues(step[:3])[0] @ rotation
        scale *= np.exp(step[3])
        weights += step[4:]
        if np.abs(step[:3]).max() < _CONVERGED:
            break
    return rotation


def _affine_start(
    points: Float[np.ndarray, "n 2"], shape: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "3 3"], float]:
    """Rotation and scale closest to the least-squares affine from a 3D shape to points."""
    affine = np.linalg.lstsq(shape, points, rcond=None)[0].T
    u, scales, vt = np.linalg.svd(affine, full_matrices=False)
    first, second = u @ vt
    return np.stack([first, second, np.cross(first, second)]), float(scales.mean())


def _angles(rotation: Float[np.ndarray, "3 3"]) -> HeadPose:
    """Angles of a rotation `roll @ pitch @ yaw`."""
    yaw = np.arctan2(-rotation[2, 0], rotation[2, 2])
    pitch = np.arcsin(np.clip(-rotation[2, 1], -1, 1))
    roll = np.arctan2(-rotation[0, 1], rotation[1, 1])
    return HeadPose(*map(float, np.degrees([yaw, pitch, roll])))


def eye_openness(landmarks: Landmarks, scheme: LandmarkScheme) -> EyeOpenness:
    """Eye aspect ratio (Soukupova and Cech, 2016) of each eye, from the contours `left_eye`, `right_eye`.

    It is the mean distance between opposite landmarks of the lids, divided by the distance between the
    corners. A contour of a custom scheme starts at a corner and has the other corner half way round.

    Raises:
      InputError: the scheme has no such closed contours of 4, 6, 8, ... landmarks, or one is NaN.
    """
    return EyeOpenness(*(_aspect_ratio(landmarks, scheme, n) for n in ("left_eye", "right_eye")))


def mouth_openness(landmarks: Landmarks, scheme: LandmarkScheme) -> float:
    """Mouth aspect ratio: `eye_openness` of the contour `inner_lips`; about 0 for a closed mouth.

    Raises:
      InputError: as `eye_openness`.
    """
    return _aspect_ratio(landmarks, scheme, "inner_lips")


def _aspect_ratio(landmarks: Landmarks, scheme: LandmarkScheme, name: str) -> float:
    contour = next((contour for contour in scheme.contours if contour.name == name), None)
    n = 0 if contour is None or not contour.closed else len(contour.indices)
    if contour is None or n < 4 or n % 2:
        raise InputError(
            f"the openness needs a closed contour {name!r} of 4, 6, 8 or more landmarks, which the scheme "
            f"{scheme.name} lacks"
        )
    ring = _finite(landmarks, scheme, contour.indices)
    heights = np.linalg.norm(ring[1 : n // 2] - ring[: n // 2 : -1], axis=1)
    width = np.linalg.norm(ring[0] - ring[n // 2])
    if not width > 0:
        raise InputError(f"the corners of {name!r} coincide: no openness")
    return float(heights.mean() / width)


def _landmark_sets(scheme: LandmarkScheme) -> dict[str, tuple[int, ...]]:
    return scheme.parts | {name: (i,) for i, name in enumerate(scheme.names)}


def _mean_point(
    landmarks: Landmarks, scheme: LandmarkScheme, name: str | int
) -> Float[np.ndarray, "2"]:
    return _finite(landmarks, scheme, scheme.find(str(name))).mean(axis=0)


def _finite(
    landmarks: Landmarks, scheme: LandmarkScheme, indices: tuple[int, ...]
) -> Float[np.ndarray, "n 2"]:
    points = np.asarray(landmarks, np.float64)[list(indices)]
    for i, point in zip(indices, points, strict=True):
        if not np.isfinite(point).all():
            raise InputError(f"the landmark {scheme.names[i]!r} is NaN or infinite")
    return points


def describe_geometry(landmarks: Landmarks, scheme: LandmarkScheme) -> dict[str, Any]:
    """Head pose in degrees and openness for JSON; None for what the scheme or NaN landmarks do not allow."""
    pose, eyes, mouth = (
        _or_none(function, landmarks, scheme)
        for function in (head_pose, eye_openness, mouth_openness)
    )
    return {
        "head_pose": pose and {name: round(v, 2) for name, v in pose._asdict().items()},
        "eye_openness": eyes and {name: round(v, 4) for name, v in eyes._asdict().items()},
        "mouth_openness": None if mouth is None else round(mouth, 4),
    }


def _or_none(function: Any, landmarks: Landmarks, scheme: LandmarkScheme) -> Any:
    try:
        return function(landmarks, scheme)
    except InputError:
        return None


def require_geometry(scheme: LandmarkScheme) -> None:
    """Check that a scheme allows a part of `describe_geometry`.

    Raises:
      InputError: it allows none.
    """
    angle = np.linspace(0, 2 * np.pi, scheme.num_landmarks, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    if all(value is None for value in describe_geometry(circle, scheme).values()):
        raise InputError(
            f"--geometry: the scheme {scheme.name} is neither {IBUG68.name} nor {WFLW98.name}, and has no "
            "closed contours left_eye and right_eye, or inner_lips; leave out the option"
        )
