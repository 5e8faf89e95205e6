"""Boxes, crop transforms and mirroring in one pixel convention.

A point is (x, y) in pixels, and the center of the top-left pixel is (0, 0), as in OpenCV. An image of width
`w` therefore spans -0.5 to w - 0.5. An affine is a `[2 3]` float64 matrix that maps points of one image to
points of another. A box is (x0, y0, x1, y1).
"""

from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

Affine = Float[np.ndarray, "2 3"]
Homography = Float[np.ndarray, "3 3"]
Box = Float[np.ndarray, "4"]
Points = Float[np.ndarray, "*b 2"]
AnyPoints = TypeVar("AnyPoints", bound=Any)  # NumPy or JAX; the data package does not import JAX

BOX_FORMATS = {"xyxy": "x0,y0,x1,y1", "xywh": "x,y,width,height"}
"""Format of a face box -> its four numbers; x and y are those of the top-left corner."""

CROP_SCALE = 1.25
"""Side of a face crop, relative to the longer side of the face box."""

_MIN_BOX_SIDE = 0.5  # pixels

# EXIF orientation -> axes of the stored image that are the x and y axes of the upright image.
_UPRIGHT_AXES = {
    1: ("x", "y"), 2: ("-x", "y"), 3: ("-x", "-y"), 4: ("x", "-y"),
    5: ("y", "x"), 6: ("-y", "x"), 7: ("-y", "-x"), 8: ("y", "-x"),
}  # fmt: skip


def box_of_landmarks(
    landmarks: Float[np.ndarray, "k 2"], visible: Bool[np.ndarray, "k"] | None = None
) -> Box:
    """Bounding box of the visible landmarks, by default all, which is the ground-truth box in evaluation."""
    points = landmarks if visible is None else landmarks[visible]
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float64)


def box_of_crop(width: int, height: int) -> Box:
    """Box whose crop is the whole image, for images that are face crops."""
    center = np.array([width - 1, height - 1]) / 2
    half = np.array([width, height]) / CROP_SCALE / 2
    return np.concatenate([center - half, center + half])


def box_overlaps(box: Box, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    """Intersection over union of a box with each of several boxes."""
    extent = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = extent.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def distance_outside(points: Float[np.ndarray, "n 2"], width: int, height: int) -> float:
    """Largest distance of a point from the image, in pixels; 0 or less if all points are inside."""
    return float(np.maximum(-points, points - np.array([width - 1, height - 1])).max())


def check_box(box: Box, width: int, height: int) -> None:
    """Validate a face box.

    Raises:
      ValueError: the box is not finite, has no positive width and height or less than half a pixel, its
        center is outside the image, or it extends beyond the image by more than the size of the image.
    """
    x0, y0, x1, y1 = box
    if not np.isfinite(box).all():
        raise ValueError("a box is four numbers x0,y0,x1,y1 in pixels")
    if x1 <= x0 or y1 <= y0:
        raise ValueError("x1 and y1 have to be larger than x0 and y0")
    size = f"the image, which is {width} x {height}"
    outside = distance_outside(box.reshape(2, 2), width, height)
    # Before the sums below, which could overflow.
    if outside > max(width, height):
        raise ValueError(f"the box extends {outside:.4g} px outside {size}")
    if not (0 <= (x0 + x1) / 2 < width and 0 <= (y0 + y1) / 2 < height):
        raise ValueError(f"the center of the box is outside {size}")
    if max(x1 - x0, y1 - y0) < _MIN_BOX_SIDE:
        raise ValueError("the box is less than half a pixel large")


def compose(outer: Affine, inner: Affine) -> Affine:
    """Compose two affines; `inner` is applied first."""
    return outer @ np.vstack([inner, [0.0, 0.0, 1.0]])


def invert(affine: Affine) -> Affine:
    """Invert an affine."""
    # Not `cv2.invertAffineTransform`, which returns zeros for a singular matrix.
    linear = np.linalg.inv(affine[:, :2])
    return np.concatenate([linear, -linear @ affine[:, 2:]], axis=1)


def transform_points(transform: Affine | Homography, points: Points) -> Points:
    """Apply an affine or a homography to points, and keep their dtype."""
    result = points @ transform[:, :2].T + transform[:, 2]
    if len(transform) == 3:
        result = result[..., :2] / result[..., 2:]
    return result.astype(points.dtype)


def transform_box(affine: Affine, box: Box) -> Box:
    """Apply an affine without rotation to a box."""
    return transform_points(affine, box.reshape(2, 2)).reshape(4)


def upright_transform(orientation: int, width: int, height: int) -> Affine:
    """Affine from pixels of the stored image to pixels of the upright image.

    Args:
      orientation: EXIF orientation, 1 to 8.
    """
    rows = {"x": (1, 0, 0), "-x": (-1, 0, width - 1), "y": (0, 1, 0), "-y": (0, -1, height - 1)}
    x, y = _UPRIGHT_AXES[orientation]
    return np.array([rows[x], rows[y]], np.float64)


def is_mirrored(orientation: int) -> bool:
    """Whether an image with this EXIF orientation is stored as its mirror image."""
    return orientation in (2, 4, 5, 7)


def crop_side(box: Box, scale: float = CROP_SCALE) -> float:
    """Side of the square region around a face box, in image pixels."""
    x0, y0, x1, y1 = box
    return float(scale * max(x1 - x0, y1 - y0))


def crop_transform(
    box: Box,
    size: int,
    *,
    scale: float = CROP_SCALE,
    rotation: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Affine:
    """Affine from an image to the square crop of a face.

    Args:
      box: face box in image pixels.
      scale: side of the region relative to max(box width, box height).
      rotation: clockwise rotation of the face in the crop around the center, in degrees.
      zoom: scale of the face in the crop.
      shift: (x, y) translation of the face in the crop, as a fraction of the side of the crop.

    Raises:
      ValueError: the box has no extent, or is not finite.
    """
    x0, y0, x1, y1 = box
    side = crop_side(box, scale)
    if not np.isfinite(box).all() or side <= 0:
        raise ValueError(f"box {tuple(map(float, box))} has no extent")
    factor = zoom * size / side
    cos, sin = factor * np.cos(np.deg2rad(rotation)), factor * np.sin(np.deg2rad(rotation))
    linear = np.array([[cos, -sin], [sin, cos]])
    center = np.array([x0 + x1, y0 + y1]) / 2
    target = (size - 1) / 2 + size * np.asarray(shift)
    return np.concatenate([linear, (target - linear @ center)[:, None]], axis=1)


def mirror_transform(width: int) -> Affine:
    """Affine x -> width - 1 - x that mirrors an image horizontally."""
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])


Border = Literal["black", "replicate", "reflect", "blur"]
BORDERS: dict[Border, int] = {
    "black": cv2.BORDER_CONSTANT,
    "replicate": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "blur": cv2.BORDER_REPLICATE,
}
"""OpenCV modes for pixels outside the image. `blur` is `replicate` followed by a Gaussian blur with a
sigma of 4 % of the side of the crop, which removes streaks."""

_BORDER_BLUR = 0.04  # fraction of the side of the crop


def warp(
    image: UInt8[np.ndarray, "h w c"],
    affine: Affine,
    size: int,
    border: Border = "black",
    perspective: Homography | None = None,
) -> UInt8[np.ndarray, "size size c"]:
    """Warp an image to a `size` x `size` crop with bilinear interpolation.

    For a scale of one half or less, the image is first downsampled by the Gaussian pyramid of OpenCV
    (whose pixel i is centered on pixel 2i), so that thin structures do not alias.

    Args:
      border: content of the crop outside the image, a key of `BORDERS`.
      perspective: homography of the crop that follows the affine.
    """
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    while scale <= 0.5 and min(image.shape[:2]) > 2:
        image = cv2.pyrDown(image)
        affine = compose(affine, np.diag([2.0, 2.0, 1.0])[:2])
        scale *= 2
    shape = (size, size)

    def warp_once(image: np.ndarray, interpolation: int, border_mode: int) -> np.ndarray:
        if perspective is None:
            return cv2.warpAffine(image, affine, shape, flags=interpolation, borderMode=border_mode)
        homography = perspective @ np.vstack([affine, [0.0, 0.0, 1.0]])
        return cv2.warpPerspective(
            image, homography, shape, flags=interpolation, borderMode=border_mode
        )

    crop = warp_once(image, cv2.INTER_LINEAR, BORDERS[border])
    if border == "blur":
        inside = np.ones(image.shape[:2], np.uint8)
        is_outside = warp_once(inside, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT) == 0
        if is_outside.any():
            crop[is_outside] = cv2.GaussianBlur(crop, (0, 0), _BORDER_BLUR * size)[is_outside]
    return crop


def centered_offset(stride: int | float) -> float:
    """Input pixel, in x and in y, at the center of heatmap pixel (0, 0) of a heatmap that covers the input.

    It is the center of the `stride` input pixels that the heatmap pixel covers: 1.5 for a stride of 4. Other
    projects use other offsets, see `interop.torch_weights`.
    """
    return (stride - 1) / 2


def input_to_heatmap(
    points: AnyPoints, stride: int | float, offset: float | None = None
) -> AnyPoints:
    """Convert input pixels to heatmap pixels, `u = (x - offset) / stride`, in NumPy or JAX.

    Args:
      points: (x, y) in input pixels.
      stride: number of input pixels for each heatmap pixel.
      offset: input pixel at the center of heatmap pixel (0, 0); None: `centered_offset(stride)`, for
        which `u = (x + 0.5) / stride - 0.5`.
    """
    return (points - (centered_offset(stride) if offset is None else offset)) / stride


def heatmap_to_input(
    points: AnyPoints, stride: int | float, offset: float | None = None
) -> AnyPoints:
    """Convert heatmap pixels to input pixels, the inverse of `input_to_heatmap`."""
    return points * stride + (centered_offset(stride) if offset is None else offset)
