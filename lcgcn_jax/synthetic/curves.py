"""Curves of the facial features in the frontal plane, and the landmarks on them.

Face coordinates (x, y, z): x to the viewer's right, y down, z towards the viewer. The unit is half the
distance between the ears; the eyes are at y = 0.
"""

from collections.abc import Sequence

import numpy as np

from lcgcn_jax.landmarks import IBUG68, WFLW98
from lcgcn_jax.synthetic.traits import Traits

Vector = np.ndarray | Sequence
"""An array, or a sequence that NumPy converts to one."""

_JAW = np.array([
    (-1.0, 0.0), (-0.985, 0.265), (-0.95, 0.525), (-0.9, 0.785), (-0.8, 1.025), (-0.65, 1.23),
    (-0.46, 1.405), (-0.24, 1.54), (0.0, 1.585),
])  # fmt: skip
"""Left half of the mean jaw in near-frontal images of 300W, made symmetric."""


def spline(points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Evaluate a Catmull-Rom spline through points `[n 2]` at parameters `t` in 0..1."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    position = np.asarray(t, np.float64) * (len(points) - 1)
    i = np.clip(position.astype(int), 0, len(points) - 2)
    f = (position - i)[:, None]
    p0, p1, p2, p3 = (padded[i + j] for j in range(4))
    return p1 + 0.5 * f * (
        p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0))
    )


def smooth(points: Vector, n: int) -> np.ndarray:
    """Sample a Catmull-Rom spline through points as a polyline `[n 2]`."""
    return spline(np.asarray(points, np.float64), np.linspace(0, 1, n))


def mirrored(half: np.ndarray) -> np.ndarray:
    """Symmetric polygon whose right half is the polyline `half` `[n 2]`."""
    return np.concatenate([half, half[::-1] * (-1, 1)])


def ellipse(center: Vector, rx: float, ry: float, rotation: float = 0.0) -> np.ndarray:
    """Polygon of an ellipse; `rotation` in radians, from x to y."""
    angle = np.linspace(0, 2 * np.pi, 33)[:-1]
    x, y = rx * np.cos(angle), ry * np.sin(angle)
    cos, sin = np.cos(rotation), np.sin(rotation)
    return np.stack([x * cos - y * sin, x * sin + y * cos], 1) + center


def ribbon(points: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Polygon of a band around a polyline; `width` may vary along it."""
    step = np.diff(points, axis=0)
    along = np.concatenate([step[:1], step[1:] + step[:-1], step[-1:]])
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normal *= 0.5 / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    side = normal * np.broadcast_to(width, len(points))[:, None]
    return np.concatenate([points + side, (points - side)[::-1]])


class Curves:
    """Curves of the facial features `[n 2]`; `side` is -1 for the viewer's left, 1 for the right."""

    def __init__(self, traits: Traits):
        self._t = traits

    def jaw(self, t: np.ndarray) -> np.ndarray:
        """Jaw from the left ear (t = 0) over the chin to the right ear (t = 1)."""
        tr = self._t
        x, y = spline(np.concatenate([_JAW, _JAW[-2::-1] * (-1, 1)]), t).T
        x = x * (1 + tr.jaw_width * (y / 1.2).clip(0, 1))
        grow = 1 + tr.jaw_square * np.exp(-(((np.abs(x) - 0.68) / 0.25) ** 2)) * (y > 0)
        y = y * grow * tr.chin + 0.8 * tr.jaw_drop * ((y - 0.6) / 0.98).clip(0, None) ** 1.5
        return np.stack([x * grow, y], 1)

    def outline(self) -> np.ndarray:
        """Outline of the front of the head: jaw, and forehead up to the crown."""
        angle = np.linspace(0, np.pi, 50)[1:-1]
        cos, sin = np.cos(angle), np.sin(angle)
        crown = np.stack([np.sign(cos) * np.abs(cos) ** 0.8, -1.3 * sin**0.9], 1)
        return np.concatenate([self.jaw(np.linspace(0, 1, 97)), crown])

    def brow(self, side: int, s: Vector, edge: int) -> np.ndarray:
        """Eyebrow from the inner end (s = 0) to the tip (s = 1); `edge` -1 is the upper, 1 the lower."""
        tr, s = self._t, np.asarray(s, np.float64)
        lift = tr.brow_raise[int(side > 0)]
        arch = tr.brow_arch * (1 - ((s - 0.6) / 0.6) ** 2) * (1 - 0.4 * tr.frown)
        y = tr.brow_y - arch - lift + 0.1 * tr.frown * (1 - s) ** 2 * 0.8 + 0.05 * s**3
        half = 0.5 * tr.brow_thick * (1 - s**2.5) ** 0.6 * (0.85 + 0.3 * np.sin(np.pi * s))
        return np.stack([side * (0.18 - 0.02 * tr.frown + 0.63 * s), y + edge * half], 1)

    def lid(self, side: int, u: Vector, edge: int) -> np.ndarray:
        """Eyelid from the inner (u = -1) to the outer corner (u = 1); `edge` -1 is the upper, 1 the lower."""
        tr, u = self._t, np.asarray(u, np.float64)
        openness = tr.eye_open[int(side > 0)]
        rise = 0.085 * openness if edge < 0 else 0.052 * min(openness, 1.0)
        peak = u + 0.12 * (1 - u**2) * (1 if edge < 0 else -1)
        y = edge * rise * (1 - peak**2) ** 0.85 - tr.eye_tilt * u + 0.012 * (u < 0) * u**2
        return np.stack([side * (tr.eye_x + tr.eye_width * u), y], 1)

    def lids(self, side: int) -> np.ndarray:
        """Polygon of the eye opening."""
        u = np.linspace(-1, 1, 21)
        return np.concatenate([self.lid(side, u, -1), self.lid(side, u[-2:0:-1], 1)])

    def iris(self, side: int) -> np.ndarray:
        """Center of the iris, always inside the eye opening."""
        tr = self._t
        x = side * tr.eye_x + tr.gaze[0]
        u = np.array([side * tr.gaze[0] / tr.eye_width])
        low, high = self.lid(side, u, -1)[0, 1], self.lid(side, u, 1)[0, 1]
        y = np.clip(tr.gaze[1] - 0.01, 0.6 * low + 0.4 * high, 0.4 * low + 0.6 * high)
        return np.array([x, y])

    def nose_bridge(self, t: np.ndarray) -> np.ndarray:
        """Nose bridge from between the eyes (t = 0) to the tip (t = 1)."""
        return np.stack([np.zeros(len(t)), -0.03 + (self._t.nose_length + 0.03) * t], 1)

    def nose_base(self, u: Vector) -> np.ndarray:
        """Nose base from the left wing (u = -1) over the septum (u = 0) to the right wing (u = 1)."""
        tr, u = self._t, np.asarray(u, np.float64)
        wide = tr.nose_width * (1 + 0.08 * max(tr.smile, 0))
        return np.stack([wide * u, tr.nose_length + 0.16 - 0.055 * np.abs(u) ** 1.6], 1)

    def lip(self, u: Vector, edge: str) -> np.ndarray:
        """Lip edge from the left (u = -1) to the right (u = 1) corner; `edge`: `outer_top`, ..."""
        tr, u = self._t, np.asarray(u, np.float64)
        inner = edge.startswith("inner")
        half = tr.mouth_width * (1 + 0.14 * tr.smile - 0.35 * tr.jaw_drop)
        bulge = (1 - np.abs(u) ** 2.2) ** 0.75
        y = tr.mouth_y - 0.07 * tr.smile * (u * (0.86 if inner else 1)) ** 2 + 0.03 * tr.smile
        upper, lower = -0.25 * tr.jaw_drop * bulge, 0.75 * tr.jaw_drop * bulge
        if edge == "outer_top":
            peaks, dip = np.exp(-(((np.abs(u) - 0.25) / 0.16) ** 2)), np.exp(-((u / 0.1) ** 2))
            bow = 1 + 0.12 * peaks - 0.12 * dip
            y = y + upper - 0.085 * tr.lip * bow * (1 - np.abs(u) ** 1.6) ** 0.9
        elif edge == "outer_bottom":
            y = y + lower + 0.115 * tr.lip * (1 - u**2) ** 0.75
        else:
            y = y + (upper if edge == "inner_top" else lower)
        return np.stack([half * (0.86 * u if inner else u), y], 1)

    def lips(self, ring: str) -> np.ndarray:
        """Polygon of the `outer` or `inner` edge of the lips."""
        u = np.linspace(-1, 1, 41)
        return np.concatenate([self.lip(u, f"{ring}_top"), self.lip(u[-2:0:-1], f"{ring}_bottom")])


def _nose_and_mouth(c: Curves) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Nose and mouth landmarks, which are the same in both schemes."""
    nose = [c.nose_bridge(np.linspace(0, 1, 4)), c.nose_base(np.linspace(-1, 1, 5))]
    outer, inner = np.array([-0.62, -0.26, 0, 0.26, 0.62]), np.array([-0.34, 0, 0.34])
    mouth = [
        c.lip(np.array([-1, *outer, 1]), "outer_top"),
        c.lip(outer[::-1], "outer_bottom"),
        c.lip(np.array([-1, *inner, 1]), "inner_top"),
        c.lip(inner[::-1], "inner_bottom"),
    ]
    return nose, mouth


def _wflw_landmarks(c: Curves) -> np.ndarray:
    """Frontal positions of the 98 WFLW landmarks, `[98 2]`."""
    s, u = np.linspace(0, 1, 5), np.linspace(-1, 1, 5)
    nose, mouth = _nose_and_mouth(c)
    return np.concatenate([
        c.jaw(np.linspace(0, 1, 33)),
        c.brow(-1, s[::-1], -1), c.brow(-1, s[:4], 1),
        c.brow(1, s, -1), c.brow(1, s[3::-1], 1),
        *nose,
        c.lid(-1, u[::-1], -1), c.lid(-1, u[1:4], 1),
        c.lid(1, u, -1), c.lid(1, u[3:0:-1], 1),
        *mouth,
        c.iris(-1)[None], c.iris(1)[None],
    ])  # fmt: skip


def _ibug_landmarks(c: Curves) -> np.ndarray:
    """Frontal positions of the 68 iBUG landmarks, `[68 2]`."""
    s, u = np.linspace(0, 1, 5), np.linspace(-1, 1, 4)
    nose, mouth = _nose_and_mouth(c)
    return np.concatenate([
        c.jaw(np.linspace(0, 1, 17)),
        c.brow(-1, s[::-1], -1), c.brow(1, s, -1),
        *nose,
        c.lid(-1, u[::-1], -1), c.lid(-1, u[1:3], 1),
        c.lid(1, u, -1), c.lid(1, u[2:0:-1], 1),
        *mouth,
    ])  # fmt: skip


FRONTAL_LANDMARKS = {WFLW98.name: _wflw_landmarks, IBUG68.name: _ibug_landmarks}
"""Functions from the curves to the frontal landmarks, by the name of the scheme."""
