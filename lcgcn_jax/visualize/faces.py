"""Drawing of landmarks on face images, and comparison of the stages (figure 3)."""

import errno
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from lcgcn_jax.atomic_io import write_all
from lcgcn_jax.geometry import Box, Points
from lcgcn_jax.landmarks import LandmarkScheme

Image = UInt8[np.ndarray, "h w 3"]
Color = tuple[int, int, int]  # RGB

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
TRUTH = (235, 60, 60)
PREDICTION = (60, 220, 90)

_NUMBER_HEIGHT = 18  # of the number of a face, in pixels

SHIFT = 4  # fractional bits of OpenCV's drawing coordinates: 1/16 pixel


def draw_landmarks(
    image: Image,
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    *,
    color: Color = PREDICTION,
    radius: float = 1.5,
    contours: bool = True,
) -> Image:
    """Draw landmarks, and the contours of the scheme, on a copy of an image.

    Args:
      image: RGB image.
      landmarks: positions in image pixels, drawn with a precision of 1/16 pixel; NaN: not drawn.
      color: RGB color.
      radius: radius of the points in pixels.
      contours: draw the contours at half opacity.
    """
    canvas = image.copy()
    if contours:
        overlay = canvas.copy()
        draw_contours(overlay, landmarks, scheme, [color] * len(scheme.contours), radius)
        canvas = cv2.addWeighted(overlay, 0.5, canvas, 0.5, 0)
    draw_points(canvas, landmarks, [color] * len(landmarks), radius)
    return canvas


def draw_contours(
    canvas: Image,
    landmarks: Float[np.ndarray, "k 2"],
    scheme: LandmarkScheme,
    colors: Sequence[Color],
    radius: float,
) -> None:
    """Draw the contours of a scheme in place, with one color per contour, between located landmarks."""
    is_located = np.all(np.isfinite(landmarks), axis=1)
    fixed = fixed_point(np.where(is_located[:, None], landmarks, 0.0))
    thickness = max(1, round(radius * 0.6))
    for contour, color in zip(scheme.contours, colors, strict=True):
        line = list(contour.indices)
        ends = line[1:] + line[: 1 if contour.closed else 0]
        pairs = [pair for pair in zip(line, ends, strict=False) if is_located[list(pair)].all()]
        pieces = [fixed[list(pair)] for pair in pairs]
        cv2.polylines(canvas, pieces, False, color, thickness, cv2.LINE_AA, shift=SHIFT)


def draw_number(canvas: Image, box: Box, number: int) -> None:
    """Draw the number of a face in place, above the top-left corner of its box if this is in the image."""
    height, width = canvas.shape[:2]
    x, y = (
        np.round(np.nan_to_num(box[:2]))
        .clip((0, _NUMBER_HEIGHT), (width, height))
        .astype(int)
        .tolist()
    )
    draw_text(canvas, str(number), (x, y - 4), 0.6)


def draw_text(canvas: Image, text: str, origin: Sequence[int], scale: float) -> None:
    """Draw white text with a black outline in place; `origin` is its lower left corner in pixels."""
    # Not by a larger thickness, which makes the characters of OpenCV 5 wider.
    shifts = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    for color, (dx, dy) in [*((BLACK, shift) for shift in shifts), (WHITE, (0, 0))]:
        corner = (origin[0] + dx, origin[1] + dy)
        cv2.putText(canvas, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)


def draw_points(
    canvas: Image,
    landmarks: Float[np.ndarray, "k 2"],
    colors: Sequence[Color],
    radius: float,
    *,
    has_rim: bool = False,
    is_hollow: Bool[np.ndarray, "k"] | None = None,
) -> None:
    """Draw one circle per located landmark in place: filled with an optional black rim, or a ring."""
    if is_hollow is None:
        is_hollow = np.zeros(len(landmarks), bool)
    is_located = np.isfinite(landmarks.sum(axis=1))
    fixed = fixed_point(np.where(is_located[:, None], landmarks, 0.0)).tolist()
    for point, located, color, hollow in zip(fixed, is_located, colors, is_hollow, strict=True):
        if not located:
            continue
        if hollow:
            size = max(2.0, 1.4 * radius)  # a smaller ring has no hole
            thickness = max(1, round(size * 0.4))
            _draw_circle(canvas, point, BLACK, size, thickness + 2)
            _draw_circle(canvas, point, color, size, thickness)
        else:
            if has_rim:
                _draw_circle(canvas, point, BLACK, 1.3 * radius, cv2.FILLED)
            _draw_circle(canvas, point, color, radius, cv2.FILLED)


def _draw_circle(
    canvas: Image, point: Sequence[int], color: Color, radius: float, thickness: int
) -> None:
    """Draw a circle around a point in fixed-point coordinates."""
    size = round(radius * (1 << SHIFT))
    cv2.circle(canvas, point, size, color, thickness, cv2.LINE_AA, SHIFT)


def fixed_point(points: Points) -> np.ndarray:
    """Convert points to OpenCV's fixed-point coordinates with `SHIFT` fractional bits."""
    # Points far outside the image must not overflow 32-bit integers.
    limit = np.iinfo(np.int32).max / 4
    return np.round(points * (1 << SHIFT)).clip(-limit, limit).astype(np.int32)


def enlarge(
    image: Image, points: Points, factor: int
) -> tuple[UInt8[np.ndarray, "hh ww 3"], Points]:
    """Enlarge an image and its points, in the pixel-center convention."""
    size = (image.shape[1] * factor, image.shape[0] * factor)
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return enlarged, (points + 0.5) * factor - 0.5


def label(image: Image, text: str) -> Image:
    """Draw a line of text in the upper left corner of a copy of an image."""
    canvas = image.copy()
    scale = max(0.4, image.shape[1] / 640)
    draw_text(canvas, text, (6, int(28 * scale) + 4), scale)
    return canvas


def stage_comparison(
    crops: UInt8[np.ndarray, "n s s 3"],
    truth: Float[np.ndarray, "n k 2"],
    stages: dict[str, Float[np.ndarray, "n k 2"]],
    scheme: LandmarkScheme,
    *,
    width: int = 256,
) -> Image:
    """Compare stages: per face the ground truth, then each stage in green over the truth in red (figure 3).

    A row holds two faces; with an odd number of faces, the last row ends with a white area.

    Args:
      crops: RGB face crops.
      truth: ground-truth landmarks in crop pixels.
      stages: predicted landmarks by the name of the stage.
      width: width of one crop in the result in pixels, rounded to a multiple of the crop side.
    """
    factor = max(1, round(width / crops.shape[1]))
    radius = 0.0045 * crops.shape[1] * factor
    strips = []
    for i, crop in enumerate(crops):
        enlarged, true = enlarge(crop, truth[i], factor)
        images = {"truth": draw_landmarks(enlarged, true, scheme, color=TRUTH, radius=radius)}
        points = draw_landmarks(enlarged, true, scheme, color=TRUTH, radius=radius, contours=False)
        for name, landmarks in stages.items():
            _, predicted = enlarge(crop, landmarks[i], factor)
            images[name] = draw_landmarks(points, predicted, scheme, radius=radius)
        # Only the first row is labeled.
        colors = {"truth": "red"}
        strip = [
            label(image, f"{name} ({colors.get(name, 'green')})") if i < 2 else image
            for name, image in images.items()
        ]
        strips.append(np.concatenate(strip, axis=1))
    if len(strips) % 2:
        strips.append(np.full_like(strips[0], 255))
    pairs = zip(strips[::2], strips[1::2], strict=True)
    return np.concatenate([np.concatenate(pair, axis=1) for pair in pairs])


def save_image(path: Path, image: Image) -> None:
    """Write an RGB image in the format of the path's suffix; creates the folder.

    Raises:
      OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_all({path: encode_image(path, image)})


def encode_image(path: Path, image: Image) -> bytes:
    """Encode an RGB image in the format of the path's suffix.

    Raises:
      OSError: the image cannot be encoded.
    """
    is_encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    if not is_encoded:
        raise OSError(errno.EIO, "the image could not be encoded", str(path))
    return data.tobytes()
