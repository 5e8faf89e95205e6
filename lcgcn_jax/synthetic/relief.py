"""Height map of the head, and its projection with the landmarks into the image."""

import cv2
import numpy as np

from lcgcn_jax.landmarks import IBUG68, WFLW98
from lcgcn_jax.synthetic.canvas import REGION, Canvas, polygon_mask
from lcgcn_jax.synthetic.curves import FRONTAL_LANDMARKS, Curves, Vector
from lcgcn_jax.synthetic.traits import Traits

RELIEF_SHAPE = (198, 136)
"""Rows and columns of the height map; fixed, so that landmarks do not depend on the image size."""
_POLE = np.array([0.0, 0.25])
"""Center of the front of the face; meridians run from here to the outline."""
_NUM_JAW = {len(WFLW98.names): 33, len(IBUG68.names): 17}
"""Number of jaw landmarks, which come first, by the number of landmarks of the scheme."""


class Relief:
    """Height z of the front of the head over the frontal plane: a float32 grid `[198 136]`."""

    def __init__(self, traits: Traits, curves: Curves):
        rows, columns = RELIEF_SHAPE
        low, high = REGION
        self.scale = np.array([columns, rows]) / (high - low)
        self.x = low[0] + (np.arange(columns) + 0.5) / self.scale[0]
        self.y = low[1] + (np.arange(rows) + 0.5) / self.scale[1]
        self.height = (self._head(curves) + self._features(traits, curves)).astype(np.float32)
        dy, dx = np.gradient(self.height)
        self.slope = np.stack([dx * self.scale[0], dy * self.scale[1]], -1).astype(np.float32)

    def _head(self, curves: Curves) -> np.ndarray:
        """Dome from the pole to the outline, which bends from the ears forward to the chin.

        Sets `inside`, which is positive inside the outline.
        """
        outline = curves.outline()
        arm = outline - _POLE
        angle, radius = np.arctan2(arm[:, 1], arm[:, 0]), np.linalg.norm(arm, axis=1)
        y = outline[:, 1] / np.where(outline[:, 1] > 0, outline[:, 1].max(), -outline[:, 1].min())
        rim = np.where(y > 0, 1.0, 0.5) * y**2
        # The dome is smooth: every other row and column is enough.
        dx = 0.5 * (self.x[::2] + self.x[1::2])[None] - _POLE[0]
        dy = 0.5 * (self.y[::2] + self.y[1::2])[:, None] - _POLE[1]
        direction = np.arctan2(dy, dx)
        order = np.argsort(angle)
        radius, rim = (
            np.interp(direction, angle[order], values[order], period=2 * np.pi)
            for values in (radius, rim)
        )
        # The slope extends a little past the outline, so that the outline has a gradient on both sides.
        square = np.minimum((dx**2 + dy**2) / radius**2, 1.3)
        self.inside = cv2.resize(1.0 - square, RELIEF_SHAPE[::-1]).astype(np.float32)
        dome = rim + (1.28 - rim) * (1 - 0.4 * square - 0.6 * square**3)
        return cv2.resize(dome, RELIEF_SHAPE[::-1], interpolation=cv2.INTER_CUBIC)

    def _features(self, traits: Traits, curves: Curves) -> np.ndarray:
        total = np.zeros(RELIEF_SHAPE)

        def bump(x: float, y: float, wide: float, tall: float, height: float, pair: bool = True):
            across = np.exp(-(((self.x - x) / wide) ** 2))
            if pair:
                across = across + across[::-1]
            down = height * np.exp(-(((self.y - y) / tall) ** 2))
            np.add(total, down[:, None] * across, out=total)

        eye, tip, wing = traits.eye_x, traits.nose_length, traits.nose_width
        mouth, chin = traits.mouth_y, curves.jaw(np.array([0.5]))[0, 1]
        opened = mouth + 0.75 * traits.jaw_drop
        smile = max(traits.smile, 0.0)
        bump(eye - 0.02, -0.03, 0.24, 0.14, -0.17)
        bump(eye, 0.0, 0.15, 0.1, 0.09)
        bump(0.4, traits.brow_y, 0.3, 0.1, 0.06)
        bump(0.62, 0.36, 0.24, 0.22, 0.07 + 0.03 * smile)
        bump(0.0, mouth, 0.4, 0.24, 0.1, pair=False)
        bump(0.0, mouth - 0.05, 0.28, 0.05, 0.05 * traits.lip, pair=False)
        bump(0.0, opened + 0.055, 0.24, 0.06, 0.06 * traits.lip, pair=False)
        bump(0.0, opened + 0.22, 0.25, 0.08, -0.06, pair=False)
        bump(0.0, chin - 0.16, 0.24, 0.14, 0.09, pair=False)
        bump(0.36 + 0.05 * smile, 0.78, 0.07, 0.16, -0.03 - 0.03 * smile)
        bump(wing - 0.045, tip + 0.085, 0.065, 0.07, 0.12)
        total += self._nose(traits)
        return total

    def _nose(self, traits: Traits) -> np.ndarray:
        """Nose ridge: rises and widens down to the tip, then falls to the lip."""
        tip = traits.nose_length
        stops = tip + np.array([-0.75, -0.55, -0.35, -0.12, 0.0, 0.06, 0.13, 0.2, 0.3])
        rise = traits.nose_height * np.array([0, 0.16, 0.45, 0.85, 1.0, 0.93, 0.5, 0.15, 0])
        height = np.interp(self.y, stops, rise)
        height = cv2.GaussianBlur(height[:, None], (1, 7), 1.5)
        wide = np.interp(self.y, tip + np.array([-0.5, -0.15, 0.0, 0.2]), [0.09, 0.105, 0.14, 0.15])
        return height * np.exp(-((self.x[None] / wide[:, None]) ** 2))

    def at(self, points: np.ndarray, grid: np.ndarray | None = None) -> np.ndarray:
        """Sample the height, or another grid `[rows columns ...]`, at points `[n 2]` bilinearly."""
        grid = self.height if grid is None else grid
        pixels = (np.asarray(points) - REGION[0]) * self.scale - 0.5
        pixels = pixels.clip(0, np.array(grid.shape[1::-1]) - 1.001)
        (i, j), (fx, fy) = pixels.astype(int).T, (pixels % 1).T
        fx, fy = (f.reshape(-1, *[1] * (grid.ndim - 2)) for f in (fx, fy))
        top = grid[j, i] * (1 - fx) + grid[j, i + 1] * fx
        return top * (1 - fy) + (grid[j + 1, i] * (1 - fx) + grid[j + 1, i + 1] * fx) * fy


class View:
    """Weak-perspective camera: a rotation, then a scale and a translation into the image."""

    def __init__(self, traits: Traits, curves: Curves, relief: Relief):
        (cy, cp, cr), (sy, sp, sr) = (
            f([traits.yaw, traits.pitch, traits.roll]) for f in (np.cos, np.sin)
        )
        yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        self.rotation = roll @ pitch @ yaw
        self._linear = self.rotation[:2, :2]
        # A point (x, y) at height z projects to the same place as (x, y) + z * drift at height 0.
        self.drift = np.linalg.solve(self._linear, self.rotation[:2, 2])
        self._relief = relief
        self.scale, self.shift = 1.0, np.zeros(2)
        points = self.landmarks(FRONTAL_LANDMARKS[WFLW98.name](curves))
        low, high = points.min(axis=0), points.max(axis=0)
        self.scale = traits.extent / (high - low).max()
        # Hair needs more room above the landmarks than the chin needs below: shift down by 5 %.
        free = 0.8 * (1 - self.scale * (high - low))
        self.shift = 0.5 + free * traits.offset * 0.5 - self.scale * (low + high) / 2 + [0, 0.05]

    def project(self, points: Vector) -> np.ndarray:
        """Project face coordinates `[n 3]` to image coordinates `[n 2]`."""
        return np.asarray(points, np.float64) @ self.rotation[:2].T * self.scale + self.shift

    def place(self, points: np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """Project points `[n 2]` of the frontal plane at height `z` to image coordinates `[n 2]`."""
        return self.project(np.column_stack([points, np.broadcast_to(z, len(points))]))

    def lift(self, points: np.ndarray) -> np.ndarray:
        """Project points `[n 2]` of the frontal plane, lifted to the relief, to image coordinates `[n 2]`."""
        return self.place(points, self._relief.at(points))

    def landmarks(self, frontal: np.ndarray) -> np.ndarray:
        """Project frontal landmarks `[k 2]` to image coordinates; jaw landmarks move to the silhouette."""
        jaw = _NUM_JAW[len(frontal)]
        return self.lift(np.concatenate([self._visible_edge(frontal[:jaw]), frontal[jaw:]]))

    def _visible_edge(self, rim: np.ndarray) -> np.ndarray:
        """Move points of the outline `[n 2]` inward along their meridians to the silhouette.

        The surface faces the viewer where 1 + drift . slope > 0; the silhouette is where this is 0.
        """
        steps = np.linspace(0.6, 1.0, 41)
        meridians = _POLE + steps[:, None] * (rim - _POLE)[:, None]
        slope = self._relief.at(meridians.reshape(-1, 2), self._relief.slope)
        facing = 1 + (slope @ self.drift).reshape(len(rim), -1)
        hidden = facing <= 0
        last = np.where(hidden.any(axis=1), hidden.argmax(axis=1), len(steps) - 1).clip(1)
        rows = np.arange(len(rim))
        before, after = facing[rows, last - 1], facing[rows, last]
        part = np.where(after < 0, before / np.maximum(before - after, 1e-9), 1.0).clip(0, 1)
        reach = steps[last - 1] + part * (steps[last] - steps[last - 1])
        return _POLE + reach[:, None] * (rim - _POLE)

    def unwrap(
        self, texture: Canvas, curves: Curves, side: int
    ) -> tuple[tuple[slice, slice], tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Compute which texture pixel is visible at each image pixel.

        A rotation moves every point of the relief along one direction, the drift, in proportion to its
        height. On each line of that direction, a point is visible if its position plus movement is a new
        maximum. The inverse of the running maximum is therefore the map from image to texture, and the
        last maximum is the silhouette.

        Returns:
          The window of the image (row and column slices) that the face may cover, and within the window
          the maps for `cv2.remap` and the opacity of the face `[h w]`.
        """
        amount = np.hypot(*self.drift)
        along = self.drift / amount if amount > 1e-9 else np.array([1.0, 0.0])
        basis = np.array([[along[0], -along[1]], [along[1], along[0]]])  # columns: along, across
        center, reach, n = REGION.mean(axis=0), 2.1, side // 2
        position = reach * ((np.arange(n) + 0.5) / (n / 2) - 1)
        pitch, start = 2 * reach / n, position[0]

        relief, flags = self._relief, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        offset = (center + basis @ [start, start] - REGION[0]) * relief.scale - 0.5
        lines = np.column_stack([basis * pitch * relief.scale[:, None], offset])
        height = cv2.warpAffine(relief.height, lines, (n, n), flags=flags)
        inside = cv2.warpAffine(relief.inside, lines, (n, n), flags=flags) > 0
        front = np.maximum.accumulate(np.where(inside, position + amount * height, -99.0), axis=1)
        middle = 0.6 * amount
        # The last point is repeated past the silhouette; the opacity cuts the edge.
        last = position[front.argmax(axis=1)]
        lines = zip(front, last, strict=True)
        shifted = position + middle
        source = np.stack([np.interp(shifted, line, position, right=end) for line, end in lines])

        covered = np.flatnonzero(inside.any(axis=1))
        source = source[np.arange(n).clip(covered[0], covered[-1])]
        silhouette = np.column_stack([front[covered, -1], position[covered]]) @ basis.T + center
        silhouette = silhouette @ self._linear.T * self.scale + self.shift
        shapes = [silhouette * side - 0.5, self.lift(curves.outline()) * side - 0.5]
        corners = np.concatenate(shapes)
        box = np.clip([corners.min(axis=0) - 2, corners.max(axis=0) + 3], 0, side)
        (x0, y0), (x1, y1) = box.astype(int)
        opacity = polygon_mask((y1 - y0, x1 - x0), *(shape - (x0, y0) for shape in shapes))

        to_lines = basis.T @ np.linalg.inv(self._linear * self.scale)
        origin = to_lines @ ((np.array([x0, y0]) + 0.5) / side - self.shift) - basis.T @ center
        lines = np.column_stack([to_lines / side, origin])
        a = cv2.warpAffine(
            source.astype(np.float32), (lines - [[0, 0, start + middle], [0, 0, start]]) / pitch,
            (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        columns, rows = np.arange(x1 - x0), np.arange(y1 - y0)[:, None]
        b = lines[1, 0] * columns + lines[1, 1] * rows + lines[1, 2]
        x, y = (
            a * np.float32(basis[i, 0]) + (b * basis[i, 1] + center[i]).astype(np.float32)
            for i in (0, 1)
        )
        # The forehead blends into the skull or the hair behind it.
        opacity = opacity / np.float32(255) * np.clip((y + 1.25) / np.float32(0.3), 0, 1)
        maps = ((v - texture.origin[i]) * texture.scale[i] - 0.5 for i, v in enumerate((x, y)))
        return (slice(y0, y1), slice(x0, x1)), tuple(m.astype(np.float32) for m in maps), opacity
