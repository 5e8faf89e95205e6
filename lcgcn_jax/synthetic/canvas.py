"""Painting of polygons and polylines in face or image coordinates.

Image coordinates run from 0 to 1 between the edges, so a face does not depend on the size of its image:
pixel = image coordinate * size - 0.5.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from lcgcn_jax.synthetic.curves import Vector, ribbon

REGION = np.array([[-1.3, -1.6], [1.3, 2.2]])
"""Region `[(x0, y0), (x1, y1)]` of the frontal plane that the texture and the relief cover."""


class Canvas:
    """Pixels and their coordinate system: pixel = (point - origin) * scale - 0.5."""

    def __init__(self, pixels: np.ndarray, origin: np.ndarray, scale: np.ndarray):
        self.pixels, self.origin, self.scale = pixels, origin, scale

    @classmethod
    def of_texture(cls, size: int, color: Vector | float) -> "Canvas":
        """Create a texture with about the resolution of the supersampled image of `size` pixels."""
        low, high = REGION
        columns, rows = np.round((high - low) * 0.46 * size).astype(int)
        shape = (rows, columns, 3) if np.ndim(color) else (rows, columns)
        pixels = np.full(shape, np.asarray(color).astype(np.uint8))
        return cls(pixels, low, np.array([columns, rows]) / (high - low))

    @classmethod
    def of_image(cls, pixels: np.ndarray) -> "Canvas":
        """Wrap a square image, in image coordinates."""
        return cls(pixels, np.zeros(2), np.full(2, float(len(pixels))))

    @property
    def side(self) -> int:
        """Number of rows."""
        return len(self.pixels)

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Sample the pixels nearest to points `[n 2]`."""
        pixels = np.rint(self._to_pixels(points)).astype(int)
        column, row = pixels.clip(0, np.array(self.pixels.shape[1::-1]) - 1).T
        return self.pixels[row, column]

    def fill(
        self,
        shapes: np.ndarray | Sequence[np.ndarray],
        color: Vector | float,
        opacity: float = 1.0,
        soft: float = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Fill polygons `[n 2]`, blurred by `soft` units and limited to the inside of the polygon `clip`."""
        polygons = [
            self._to_pixels(s) for s in ([shapes] if isinstance(shapes, np.ndarray) else shapes)
        ]
        sigma = soft * self.scale[0]
        margin = int(2 * sigma) + 2
        corners = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
        rows, columns = self.pixels.shape[:2]
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        x0, y0 = max(int(x0) - margin, 0), max(int(y0) - margin, 0)
        x1, y1 = min(int(x1) + margin + 1, columns), min(int(y1) + margin + 1, rows)
        if x0 >= x1 or y0 >= y1:
            return
        if opacity == 1.0 and sigma < 0.4 and clip is None:
            draw_polygons(self.pixels, polygons, np.clip(color, 0, 255).tolist())
            return
        part = self.pixels[y0:y1, x0:x1]
        mask = polygon_mask(part.shape[:2], *(polygon - (x0, y0) for polygon in polygons))
        if sigma > 0.4:
            # Two box blurs approximate a Gaussian at a cost that does not depend on its width.
            box = 2 * int(np.sqrt(6 * sigma**2 + 1) / 2) + 1
            for _ in range(2):
                mask = cv2.blur(mask, (box, box), borderType=cv2.BORDER_CONSTANT)
        if clip is not None:
            mask = cv2.min(mask, polygon_mask(part.shape[:2], self._to_pixels(clip) - (x0, y0)))
        weight = mask.astype(np.float32) * np.float32(opacity / 255)
        paint = np.empty_like(part)
        paint[:] = np.clip(color, 0, 255)
        part[:] = cv2.blendLinear(paint, part, weight, 1 - weight)

    def stroke(
        self,
        points: np.ndarray,
        width: float | np.ndarray,
        color: Vector | float,
        opacity: float = 1.0,
        soft: float = 0.0,
    ) -> None:
        """Paint a band along a polyline `[n 2]`."""
        self.fill(ribbon(points, width), color, opacity, soft)

    def _to_pixels(self, points: np.ndarray) -> np.ndarray:
        return (points - self.origin) * self.scale - 0.5


def polygon_mask(shape: Sequence, *polygons: np.ndarray) -> np.ndarray:
    """Mask `[h w]` that is 255 inside any of the polygons `[n 2]`, in pixel coordinates."""
    mask = np.zeros(shape, np.uint8)
    draw_polygons(mask, polygons, 255.0)
    return mask


def draw_polygons(
    pixels: np.ndarray, polygons: Sequence[np.ndarray], color: Sequence[int | float] | float
) -> None:
    """Fill polygons in pixel coordinates with antialiased edges."""
    # One call per polygon: a single call would leave a hole where two polygons overlap.
    for polygon in polygons:
        cv2.fillPoly(pixels, [np.rint(polygon * 16).astype(np.int32)], color, cv2.LINE_AA, 4)
