"""Procedural faces with exact landmarks, drawn from a seed, in the layouts of WFLW and 300W.

A face is a painted relief. Its features are curves in the frontal plane: they are painted on a flat
texture, a height map lifts the texture to the shape of a head, light falls on the relief, and a
rotation carries it into the picture. Landmarks are points of the same curves, lifted by the same
height map and carried by the same rotation, so each lies on a drawn structure at any pose.

Face coordinates are (x, y, z): x to the viewer's right, y down, z towards the viewer. The unit is half
the distance between the ears, and the eyes lie at y = 0. Picture coordinates run over 0..1 from edge
to edge, so that a face does not depend on the size of its picture: pixel = picture * size - 0.5.
"""

import concurrent.futures
import dataclasses
import types
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from lcgcn_jax.errors import InputError
from lcgcn_jax.geometry import box_of_landmarks
from lcgcn_jax.landmarks import IBUG68, WFLW98, LandmarkScheme

ATTRIBUTES = ("pose", "expression", "illumination", "make_up", "occlusion", "blur")

_REGION = np.array([[-1.3, -1.6], [1.3, 2.2]])
"""The part of the frontal plane that the texture and the relief cover."""
_RELIEF_SHAPE = (198, 136)
"""Rows and columns of the height map; the same for every picture size, and so are landmarks."""
_POLE = np.array([0.0, 0.25])
"""Where the front of the face is centred; meridians run from here to its outline."""
_SUPERSAMPLE = 2

_SKINS = [
    (253, 224, 202), (242, 202, 174), (228, 178, 142), (205, 148, 108), (166, 112, 78), (122, 79, 54),
    (84, 54, 38),
]  # fmt: skip
_HAIRS = [
    (24, 20, 20), (38, 28, 24), (66, 44, 30), (98, 66, 42), (124, 62, 36), (186, 146, 92),
    (218, 190, 140), (150, 148, 146), (214, 212, 208),
]  # fmt: skip
_IRISES = [
    (62, 38, 24),
    (84, 54, 30),
    (112, 88, 48),
    (90, 120, 90),
    (84, 124, 160),
    (110, 130, 142),
]
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

_Vector = np.ndarray | Sequence


@dataclasses.dataclass(frozen=True)
class SyntheticFace:
    """A drawn face.

    Attributes:
      image: the picture, RGB.
      landmarks: points in pixels of the picture, in the order of the scheme.
      attributes: the six WFLW attributes by name.
      occluded: which landmarks something in front of the face covers.
    """

    image: UInt8[np.ndarray, "h w 3"]
    landmarks: Float[np.ndarray, "k 2"]
    attributes: dict[str, bool]
    occluded: Bool[np.ndarray, "k"]


def draw_face(seed: int, scheme: LandmarkScheme, size: int = 192) -> SyntheticFace:
    """Draws the face of a seed.

    Args:
      seed: the face's number; every random choice comes from it alone.
      scheme: `WFLW98` or `IBUG68`. The picture is the same for both.
      size: side of the picture in pixels. The face is the same at any size.

    Raises:
      ValueError: synthetic faces have no landmarks of this scheme.
    """
    if scheme.name not in _SELECT:
        raise ValueError(f"no synthetic faces with scheme {scheme.name!r}; use wflw98 or ibug68")
    rng = np.random.default_rng(seed)
    traits = _sample_traits(rng)
    curves = _Curves(traits)
    relief = _Relief(traits, curves)
    view = _View(traits, curves, relief)

    texture, cover = _paint_face(traits, curves, size)
    _light_face(texture, traits, relief, view, rng)
    scene = _Canvas.of_picture(_background(rng, _SUPERSAMPLE * size))
    hidden = _Canvas.of_picture(np.zeros((scene.side, scene.side), np.uint8))
    _paint_behind(scene, traits, curves, view)
    window, maps, opacity = view.unwrap(texture, curves, scene.side)
    face = cv2.remap(texture.pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    scene.pixels[window] = cv2.blendLinear(face, scene.pixels[window], opacity, 1 - opacity)
    if cover.pixels.any():
        covered = cv2.remap(cover.pixels, *maps, cv2.INTER_LINEAR)
        hidden.pixels[window] = np.where(opacity > 0.5, covered, 0)
    _paint_in_front(scene, hidden, traits, view)

    points = view.landmarks(_SELECT[scheme.name](curves))
    return SyntheticFace(
        image=_finish(scene.pixels, traits, size, rng),
        landmarks=points * size - 0.5,
        attributes=dict(traits.attributes),
        occluded=hidden.sample(points) > 127,
    )


# --- what a face is like ---------------------------------------------------------------------------


class _Traits(types.SimpleNamespace):
    """Everything random about a face but its noise: see `_sample_traits`."""


def _sample_traits(rng: np.random.Generator) -> _Traits:
    """Draws the traits; attributes are independent, and each exaggerates the traits that it names."""
    flags = {name: bool(rng.random() < 0.2) for name in ATTRIBUTES}

    def either(low: float, high: float) -> float:
        return float(rng.choice([-1, 1]) * rng.uniform(low, high))

    def pick(options: Sequence) -> np.ndarray:
        return np.array(options[rng.integers(len(options))], np.float64)

    def tone(options: Sequence) -> np.ndarray:
        place = rng.uniform(0, len(options) - 1)
        low = min(int(place), len(options) - 2)
        return np.array(options[low]) + (place - low) * np.subtract(options[low + 1], options[low])

    yaw, pitch, roll = rng.normal(0, [0.17, 0.08, 0.09]).clip(
        [-0.42, -0.2, -0.25], [0.42, 0.2, 0.25]
    )
    if flags["pose"]:
        turn = rng.choice(["yaw", "yaw", "pitch", "roll"])
        yaw = either(0.6, 0.85) if turn == "yaw" else yaw
        pitch = either(0.3, 0.45) if turn == "pitch" else pitch
        roll = either(0.4, 0.7) if turn == "roll" else roll

    jaw_drop, smile, frown = (
        max(0.0, rng.normal(0, 0.06)),
        rng.normal(0.2, 0.4),
        rng.uniform(0, 0.3),
    )
    eye_open, brow_raise = np.full(2, rng.uniform(0.8, 1.15)), np.full(2, rng.normal(0, 0.02))
    if flags["expression"]:
        mood = rng.choice(["laugh", "shout", "frown", "surprise", "squint", "wink"])
        if mood == "laugh":
            jaw_drop, smile, eye_open = (
                rng.uniform(0.15, 0.3),
                rng.uniform(1.1, 1.7),
                eye_open * 0.7,
            )
        elif mood == "shout":
            jaw_drop, smile, frown = rng.uniform(0.35, 0.5), rng.uniform(-0.3, 0.6), 1.0
        elif mood == "frown":
            jaw_drop, smile, frown = 0.0, rng.uniform(-1.5, -1.0), 1.2
        elif mood == "surprise":
            jaw_drop, smile, eye_open = rng.uniform(0.25, 0.45), -0.2, eye_open * 1.35
            brow_raise = brow_raise + rng.uniform(0.1, 0.15)
        elif mood == "squint":
            eye_open, frown, smile = eye_open * 0.4, 0.8, rng.normal(0.4, 0.5)
        else:
            eye_open = eye_open * rng.permutation([0.3, 1.0])
            brow_raise, smile = brow_raise + rng.permutation([0.08, 0.0]), 1.2

    skin = (tone(_SKINS) + rng.normal(0, 5, 3)).clip(30, 252)
    fair = skin.mean() > 150
    lips = skin * np.array([0.86, 0.6, 0.6]) + np.array([14, 4, 6])
    eye_shadow, blush = skin * 0.8, rng.uniform(0, 0.18)
    if flags["make_up"]:
        lips = pick([(190, 24, 44), (150, 16, 60), (214, 60, 96), (120, 24, 40), (226, 84, 60)])
        eye_shadow = pick(
            [(70, 60, 130), (40, 90, 110), (120, 50, 90), (60, 44, 44), (150, 90, 40)]
        )
        blush = rng.uniform(0.35, 0.55)

    angle, ambient, diffuse = rng.uniform(-0.8, 0.8), rng.uniform(0.5, 0.66), rng.uniform(0.4, 0.55)
    gain, tint = rng.uniform(0.9, 1.1), rng.uniform(0.96, 1.04, 3)
    if flags["illumination"]:
        lighting = rng.choice(["side", "dark", "bright", "coloured"])
        if lighting == "side":
            angle, ambient, diffuse = either(1.1, 1.4), 0.16, 1.0
        elif lighting == "dark":
            gain = rng.uniform(0.25, 0.42)
        elif lighting == "bright":
            gain, diffuse = rng.uniform(1.5, 1.8), 0.7
        else:
            tint = pick([(1.3, 0.8, 0.5), (0.6, 0.85, 1.35), (1.25, 0.65, 1.1), (0.75, 1.2, 0.7)])
    elevation = rng.uniform(0.2, 0.7)
    light = np.array([np.sin(angle), -np.sin(elevation), np.cos(angle)])

    haircuts = ["bald", "short", "short", "fringe", "long", "long", "bob"]
    haircut = "short" if rng.random() < 0.15 else str(rng.choice(haircuts))
    beards = ["none"] if haircut in ("long", "bob") or flags["make_up"] else [
        "none", "none", "none", "stubble", "full", "goatee", "moustache",
    ]  # fmt: skip
    occluders = ["sunglasses", "mask", "hand", "object", "scarf", "strands"]

    return _Traits(
        attributes=flags,
        jaw_width=rng.normal(0, 0.05),
        jaw_square=rng.uniform(-0.02, 0.06),
        chin=rng.normal(1.0, 0.04),
        eye_x=rng.normal(0.455, 0.014),
        eye_width=rng.normal(0.182, 0.009),
        eye_tilt=rng.normal(0.01, 0.014),
        eye_open=tuple(eye_open),
        brow_y=rng.normal(-0.25, 0.02),
        brow_arch=rng.uniform(0.03, 0.11),
        brow_thick=rng.uniform(0.05, 0.1),
        brow_raise=tuple(brow_raise),
        frown=frown,
        nose_length=rng.normal(0.5, 0.03),
        nose_width=rng.normal(0.2, 0.022),
        nose_height=rng.normal(0.36, 0.05),
        mouth_y=rng.normal(0.945, 0.025),
        mouth_width=rng.normal(0.37, 0.025),
        lip=rng.uniform(0.7, 1.25),
        jaw_drop=jaw_drop,
        smile=smile,
        gaze=tuple(rng.normal(0, [0.028, 0.01]).clip(-0.06, 0.06)),
        age=rng.random() ** 2,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        extent=rng.uniform(0.46, 0.58),
        offset=tuple(rng.uniform(-0.5, 0.5, 2)),
        skin=skin,
        hair=pick(_HAIRS if fair else _HAIRS[:3]) * rng.uniform(0.9, 1.1),
        lips=lips,
        iris=pick(_IRISES if fair else _IRISES[:2]),
        cloth=_muted(rng, 1)[0],
        haircut=haircut,
        hair_volume=rng.uniform(0.04, 0.12) + 0.1 * (haircut != "short") * rng.random(),
        hairline=rng.uniform(-0.92, -0.72),
        parting=rng.uniform(-0.5, 0.5),
        beard=str(rng.choice(beards)),
        freckles=rng.random() if fair and rng.random() < 0.2 else 0.0,
        glasses=bool(rng.random() < 0.15),
        occluder=str(rng.choice(occluders)) if flags["occlusion"] else "none",
        occluder_colour=_muted(rng, 1)[0],
        occluder_at=(rng.uniform(-0.5, 0.5), rng.uniform(-0.1, 1.2)),
        occluder_turn=rng.uniform(-np.pi, np.pi),
        eye_shadow=eye_shadow,
        blush=blush,
        light=light / np.linalg.norm(light),
        ambient=ambient,
        diffuse=diffuse,
        gain=gain,
        tint=tint,
        blur=rng.uniform(0.009, 0.018) if flags["blur"] else rng.uniform(0, 0.0025),
        motion=either(0.0, np.pi / 2) if flags["blur"] and rng.random() < 0.4 else np.nan,
    )


# --- the curves of a face, in the frontal plane ----------------------------------------------------

_JAW = np.array([
    (-1.0, 0.0), (-0.985, 0.265), (-0.95, 0.525), (-0.9, 0.785), (-0.8, 1.025), (-0.65, 1.23),
    (-0.46, 1.405), (-0.24, 1.54), (0.0, 1.585),
])  # fmt: skip
"""Half of the mean jaw of near-frontal photographs in 300W, symmetrised."""


def _spline(points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Catmull-Rom curve through `[n 2]` points at parameters 0..1."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    place = np.asarray(t, np.float64) * (len(points) - 1)
    i = np.clip(place.astype(int), 0, len(points) - 2)
    f = (place - i)[:, None]
    p0, p1, p2, p3 = (padded[i + j] for j in range(4))
    return p1 + 0.5 * f * (
        p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0))
    )


def _ellipse(centre: _Vector, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 33)[:-1]
    x, y = rx * np.cos(angle), ry * np.sin(angle)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack([x * cos - y * sin, x * sin + y * cos], 1) + centre


def _ribbon(points: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Polygon of a band around a polyline; the width may vary along it."""
    step = np.diff(points, axis=0)
    along = np.concatenate([step[:1], step[1:] + step[:-1], step[-1:]])
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normal *= 0.5 / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    side = normal * np.broadcast_to(width, len(points))[:, None]
    return np.concatenate([points + side, (points - side)[::-1]])


class _Curves:
    """Curves of the features. `side` is -1 for the viewer's left, 1 for the right; results `[n 2]`."""

    def __init__(self, traits: _Traits):
        self._t = traits

    def jaw(self, t: np.ndarray) -> np.ndarray:
        """From the left ear (t = 0) by the chin to the right ear (t = 1)."""
        tr = self._t
        x, y = _spline(np.concatenate([_JAW, _JAW[-2::-1] * (-1, 1)]), t).T
        x = x * (1 + tr.jaw_width * (y / 1.2).clip(0, 1))
        grow = 1 + tr.jaw_square * np.exp(-(((np.abs(x) - 0.68) / 0.25) ** 2)) * (y > 0)
        y = y * grow * tr.chin + 0.8 * tr.jaw_drop * ((y - 0.6) / 0.98).clip(0, None) ** 1.5
        return np.stack([x * grow, y], 1)

    def outline(self) -> np.ndarray:
        """The whole front of the head: the jaw and the forehead up to the crown."""
        angle = np.linspace(0, np.pi, 50)[1:-1]
        cos, sin = np.cos(angle), np.sin(angle)
        crown = np.stack([np.sign(cos) * np.abs(cos) ** 0.8, -1.3 * sin**0.9], 1)
        return np.concatenate([self.jaw(np.linspace(0, 1, 97)), crown])

    def brow(self, side: int, s: _Vector, edge: int) -> np.ndarray:
        """From the inner end (s = 0) to the tip (s = 1); edge -1 is the upper, 1 the lower."""
        tr, s = self._t, np.asarray(s, np.float64)
        raised = tr.brow_raise[side > 0]
        arch = tr.brow_arch * (1 - ((s - 0.6) / 0.6) ** 2) * (1 - 0.4 * tr.frown)
        y = tr.brow_y - arch - raised + 0.1 * tr.frown * (1 - s) ** 2 * 0.8 + 0.05 * s**3
        half = 0.5 * tr.brow_thick * (1 - s**2.5) ** 0.6 * (0.85 + 0.3 * np.sin(np.pi * s))
        return np.stack([side * (0.18 - 0.02 * tr.frown + 0.63 * s), y + edge * half], 1)

    def eye(self, side: int) -> np.ndarray:
        """Midpoint between the corners of an eye."""
        return np.array([side * self._t.eye_x, 0.0])

    def lid(self, side: int, u: _Vector, edge: int) -> np.ndarray:
        """From the inner (u = -1) to the outer corner (u = 1); edge -1 is the upper, 1 the lower lid."""
        tr, u = self._t, np.asarray(u, np.float64)
        opened = tr.eye_open[side > 0]
        rise = 0.085 * opened if edge < 0 else 0.052 * min(opened, 1.0)
        peak = u + 0.12 * (1 - u**2) * (1 if edge < 0 else -1)
        y = edge * rise * (1 - peak**2) ** 0.85 - tr.eye_tilt * u + 0.012 * (u < 0) * u**2
        return np.stack([side * (tr.eye_x + tr.eye_width * u), y], 1)

    def lids(self, side: int) -> np.ndarray:
        """The opening of an eye as a polygon."""
        u = np.linspace(-1, 1, 21)
        return np.concatenate([self.lid(side, u, -1), self.lid(side, u[-2:0:-1], 1)])

    def iris(self, side: int) -> np.ndarray:
        """Centre of an iris; it never leaves the opening of the eye."""
        tr = self._t
        x = side * tr.eye_x + tr.gaze[0]
        u = np.array([side * tr.gaze[0] / tr.eye_width])
        low, high = self.lid(side, u, -1)[0, 1], self.lid(side, u, 1)[0, 1]
        return np.array(
            [x, np.clip(tr.gaze[1] - 0.01, 0.6 * low + 0.4 * high, 0.4 * low + 0.6 * high)]
        )

    def nose_bridge(self, t: np.ndarray) -> np.ndarray:
        """Down the ridge, from between the eyes (t = 0) to the tip (t = 1)."""
        return np.stack([np.zeros(len(t)), -0.03 + (self._t.nose_length + 0.03) * t], 1)

    def nose_base(self, u: _Vector) -> np.ndarray:
        """From the left wing (u = -1) by the base of the septum (u = 0) to the right wing (u = 1)."""
        tr, u = self._t, np.asarray(u, np.float64)
        wide = tr.nose_width * (1 + 0.08 * max(tr.smile, 0))
        return np.stack([wide * u, tr.nose_length + 0.16 - 0.055 * np.abs(u) ** 1.6], 1)

    def lip(self, u: _Vector, edge: str) -> np.ndarray:
        """From the left (u = -1) to the right (u = 1) corner along one of four edges of the lips."""
        tr, u = self._t, np.asarray(u, np.float64)
        inner = edge.startswith("inner")
        half = tr.mouth_width * (1 + 0.14 * tr.smile - 0.35 * tr.jaw_drop)
        bulge = (1 - np.abs(u) ** 2.2) ** 0.75
        y = tr.mouth_y - 0.07 * tr.smile * (u * (0.86 if inner else 1)) ** 2 + 0.03 * tr.smile
        upper, lower = -0.25 * tr.jaw_drop * bulge, 0.75 * tr.jaw_drop * bulge
        if edge == "outer_top":
            bow = (
                1
                + 0.12 * np.exp(-(((np.abs(u) - 0.25) / 0.16) ** 2))
                - 0.12 * np.exp(-((u / 0.1) ** 2))
            )
            y = y + upper - 0.085 * tr.lip * bow * (1 - np.abs(u) ** 1.6) ** 0.9
        elif edge == "outer_bottom":
            y = y + lower + 0.115 * tr.lip * (1 - u**2) ** 0.75
        else:
            y = y + (upper if edge == "inner_top" else lower)
        return np.stack([half * (0.86 * u if inner else u), y], 1)

    def lips(self, ring: str) -> np.ndarray:
        """The `outer` or `inner` edge of the lips as a polygon."""
        u = np.linspace(-1, 1, 41)
        return np.concatenate([self.lip(u, f"{ring}_top"), self.lip(u[-2:0:-1], f"{ring}_bottom")])


def _shared_mouth_and_nose(c: _Curves) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Nose and mouth landmarks, which both schemes place alike."""
    nose = [c.nose_bridge(np.linspace(0, 1, 4)), c.nose_base(np.linspace(-1, 1, 5))]
    outer, inner = np.array([-0.62, -0.26, 0, 0.26, 0.62]), np.array([-0.34, 0, 0.34])
    mouth = [
        c.lip(np.array([-1, *outer, 1]), "outer_top"),
        c.lip(outer[::-1], "outer_bottom"),
        c.lip(np.array([-1, *inner, 1]), "inner_top"),
        c.lip(inner[::-1], "inner_bottom"),
    ]
    return nose, mouth


def _select_wflw(c: _Curves) -> np.ndarray:
    """The frontal positions of WFLW's 98 points, `[98 2]`."""
    s, u = np.linspace(0, 1, 5), np.linspace(-1, 1, 5)
    nose, mouth = _shared_mouth_and_nose(c)
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


def _select_ibug(c: _Curves) -> np.ndarray:
    """The frontal positions of iBUG's 68 points, `[68 2]`."""
    s, u = np.linspace(0, 1, 5), np.linspace(-1, 1, 4)
    nose, mouth = _shared_mouth_and_nose(c)
    return np.concatenate([
        c.jaw(np.linspace(0, 1, 17)),
        c.brow(-1, s[::-1], -1), c.brow(1, s, -1),
        *nose,
        c.lid(-1, u[::-1], -1), c.lid(-1, u[1:3], 1),
        c.lid(1, u, -1), c.lid(1, u[2:0:-1], 1),
        *mouth,
    ])  # fmt: skip


_SELECT = {WFLW98.name: _select_wflw, IBUG68.name: _select_ibug}
_JAW_LANDMARKS = {98: 33, 68: 17}


# --- the relief and how it is seen -----------------------------------------------------------------


class _Relief:
    """Height z of the front of the head over the frontal plane, as a grid `[198 136]` of float32."""

    def __init__(self, traits: _Traits, curves: _Curves):
        rows, columns = _RELIEF_SHAPE
        low, high = _REGION
        self.scale = np.array([columns, rows]) / (high - low)
        self.x = low[0] + (np.arange(columns) + 0.5) / self.scale[0]
        self.y = low[1] + (np.arange(rows) + 0.5) / self.scale[1]
        self.height = (self._head(curves) + self._features(traits, curves)).astype(np.float32)
        dy, dx = np.gradient(self.height)
        self.slope = np.stack([dx * self.scale[0], dy * self.scale[1]], -1).astype(np.float32)

    def _head(self, curves: _Curves) -> np.ndarray:
        """A dome from the pole to the outline, which bends from the ears forward to the chin.

        Sets `inside`, which is positive up to the outline.
        """
        outline = curves.outline()
        arm = outline - _POLE
        angle, radius = np.arctan2(arm[:, 1], arm[:, 0]), np.linalg.norm(arm, axis=1)
        y = outline[:, 1] / np.where(outline[:, 1] > 0, outline[:, 1].max(), -outline[:, 1].min())
        rim = np.where(y > 0, 1.0, 0.5) * y**2
        # The dome is smooth: every other row and column will do.
        dx = 0.5 * (self.x[::2] + self.x[1::2])[None] - _POLE[0]
        dy = 0.5 * (self.y[::2] + self.y[1::2])[:, None] - _POLE[1]
        turn = np.arctan2(dy, dx)
        order = np.argsort(angle)
        radius, rim = (
            np.interp(turn, angle[order], values[order], period=2 * np.pi)
            for values in (radius, rim)
        )
        # Past the outline the slope goes on a little, so that the outline has a gradient on both sides.
        square = np.minimum((dx**2 + dy**2) / radius**2, 1.3)
        self.inside = cv2.resize(1.0 - square, _RELIEF_SHAPE[::-1]).astype(np.float32)
        dome = rim + (1.28 - rim) * (1 - 0.4 * square - 0.6 * square**3)
        return cv2.resize(dome, _RELIEF_SHAPE[::-1], interpolation=cv2.INTER_CUBIC)

    def _features(self, traits: _Traits, curves: _Curves) -> np.ndarray:
        total = np.zeros(_RELIEF_SHAPE)

        def bump(x: float, y: float, wide: float, tall: float, height: float, pair: bool = True):
            across = np.exp(-(((self.x - x) / wide) ** 2))
            if pair:
                across = across + across[::-1]
            np.add(
                total, (height * np.exp(-(((self.y - y) / tall) ** 2)))[:, None] * across, out=total
            )

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

    def _nose(self, traits: _Traits) -> np.ndarray:
        """A ridge that rises and widens down to the tip, then falls to the lip."""
        tip = traits.nose_length
        stops = tip + np.array([-0.75, -0.55, -0.35, -0.12, 0.0, 0.06, 0.13, 0.2, 0.3])
        rise = traits.nose_height * np.array([0, 0.16, 0.45, 0.85, 1.0, 0.93, 0.5, 0.15, 0])
        height = np.interp(self.y, stops, rise)
        height = cv2.GaussianBlur(height[:, None], (1, 7), 1.5)
        wide = np.interp(self.y, tip + np.array([-0.5, -0.15, 0.0, 0.2]), [0.09, 0.105, 0.14, 0.15])
        return height * np.exp(-((self.x[None] / wide[:, None]) ** 2))

    def at(self, points: np.ndarray, grid: np.ndarray | None = None) -> np.ndarray:
        """Height, or another `[rows columns ...]` grid, at points `[n 2]` by bilinear interpolation."""
        grid = self.height if grid is None else grid
        place = (np.asarray(points) - _REGION[0]) * self.scale - 0.5
        place = place.clip(0, np.array(grid.shape[1::-1]) - 1.001)
        (i, j), (fx, fy) = place.astype(int).T, (place % 1).T
        fx, fy = (f.reshape(-1, *[1] * (grid.ndim - 2)) for f in (fx, fy))
        top = grid[j, i] * (1 - fx) + grid[j, i + 1] * fx
        return top * (1 - fy) + (grid[j + 1, i] * (1 - fx) + grid[j + 1, i + 1] * fx) * fy


class _View:
    """Weak perspective: rotation, then a scale and a shift into the picture."""

    def __init__(self, traits: _Traits, curves: _Curves, relief: _Relief):
        (cy, cp, cr), (sy, sp, sr) = (
            f([traits.yaw, traits.pitch, traits.roll]) for f in (np.cos, np.sin)
        )
        yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        self.rotation = roll @ pitch @ yaw
        self._linear = self.rotation[:2, :2]
        # A point at height z appears where the point (x, y) + z * drift of the frontal plane does.
        self.drift = np.linalg.solve(self._linear, self.rotation[:2, 2])
        self._relief = relief
        self.scale, self.shift = 1.0, np.zeros(2)
        seen = self.landmarks(_select_wflw(curves))
        low, high = seen.min(axis=0), seen.max(axis=0)
        self.scale = traits.extent / (high - low).max()
        # Hair needs more room above the landmarks than the chin below: the middle of the offsets is low.
        free = 0.8 * (1 - self.scale * (high - low))
        self.shift = 0.5 + free * traits.offset * 0.5 - self.scale * (low + high) / 2 + [0, 0.05]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Face coordinates `[n 3]` to picture coordinates `[n 2]`."""
        return np.asarray(points, np.float64) @ self.rotation[:2].T * self.scale + self.shift

    def lift(self, points: np.ndarray) -> np.ndarray:
        """Points `[n 2]` of the frontal plane, on the relief, to picture coordinates `[n 2]`."""
        return self.project(np.column_stack([points, self._relief.at(points)]))

    def landmarks(self, frontal: np.ndarray) -> np.ndarray:
        """Frontal landmarks `[k 2]` to picture coordinates; the jaw goes to where its edge is seen."""
        jaw = _JAW_LANDMARKS[len(frontal)]
        return self.lift(np.concatenate([self._visible_edge(frontal[:jaw]), frontal[jaw:]]))

    def _visible_edge(self, rim: np.ndarray) -> np.ndarray:
        """Moves points of the outline `[n 2]` in along their meridians to where the surface turns away.

        The surface faces the viewer where 1 + drift . slope > 0, and is its own silhouette at zero.
        """
        steps = np.linspace(0.6, 1.0, 41)
        meridians = _POLE + steps[:, None] * (rim - _POLE)[:, None]
        slope = self._relief.at(meridians.reshape(-1, 2), self._relief.slope)
        facing = 1 + (slope @ self.drift).reshape(len(rim), -1)
        turned = facing <= 0
        last = np.where(turned.any(axis=1), turned.argmax(axis=1), len(steps) - 1).clip(1)
        rows = np.arange(len(rim))
        before, after = facing[rows, last - 1], facing[rows, last]
        part = np.where(after < 0, before / np.maximum(before - after, 1e-9), 1.0).clip(0, 1)
        reach = steps[last - 1] + part * (steps[last] - steps[last - 1])
        return _POLE + reach[:, None] * (rim - _POLE)

    def unwrap(
        self, texture: "_Canvas", curves: _Curves, side: int
    ) -> tuple[tuple[slice, slice], tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Says for each pixel of a picture which texture pixel is seen there.

        Seen from an angle, every point of the relief moves by its height along one direction, the
        drift. On each line of that direction the points in sight are those where place plus movement
        reaches a new maximum, so the inverse of the running maximum tells which point is seen where,
        and the last maximum is the silhouette.

        Args:
          texture: what the face is painted on.
          curves: of the face.
          side: of the picture, in pixels.

        Returns:
          The rows and columns of the picture that the face may cover; there, maps for `cv2.remap`; and
          there, the opacity of the face `[h w]`.
        """
        amount = np.hypot(*self.drift)
        along = self.drift / amount if amount > 1e-9 else np.array([1.0, 0.0])
        turn = np.array([[along[0], -along[1]], [along[1], along[0]]])  # columns: along, across
        centre, reach, n = _REGION.mean(axis=0), 2.1, side // 2
        place = reach * ((np.arange(n) + 0.5) / (n / 2) - 1)
        pitch, start = 2 * reach / n, place[0]

        relief, flags = self._relief, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        offset = (centre + turn @ [start, start] - _REGION[0]) * relief.scale - 0.5
        lines = np.column_stack([turn * pitch * relief.scale[:, None], offset])
        height = cv2.warpAffine(relief.height, lines, (n, n), flags=flags)
        inside = cv2.warpAffine(relief.inside, lines, (n, n), flags=flags) > 0
        front = np.maximum.accumulate(np.where(inside, place + amount * height, -99.0), axis=1)
        middle = 0.6 * amount
        # Past the silhouette the last point goes on, so that the edge is cut by the opacity alone.
        last = place[front.argmax(axis=1)]
        source = np.stack(
            [
                np.interp(place + middle, row, place, right=r)
                for row, r in zip(front, last, strict=True)
            ]
        )

        seen = np.flatnonzero(inside.any(axis=1))
        source = source[np.arange(n).clip(seen[0], seen[-1])]
        silhouette = np.column_stack([front[seen, -1], place[seen]]) @ turn.T + centre
        silhouette = silhouette @ self._linear.T * self.scale + self.shift
        shapes = [silhouette * side - 0.5, self.lift(curves.outline()) * side - 0.5]
        corners = np.concatenate(shapes)
        (x0, y0), (x1, y1) = np.clip(
            [corners.min(axis=0) - 2, corners.max(axis=0) + 3], 0, side
        ).astype(int)
        opacity = _mask((y1 - y0, x1 - x0), *(shape - (x0, y0) for shape in shapes))

        to_lines = turn.T @ np.linalg.inv(self._linear * self.scale)
        origin = to_lines @ ((np.array([x0, y0]) + 0.5) / side - self.shift) - turn.T @ centre
        lines = np.column_stack([to_lines / side, origin])
        a = cv2.warpAffine(
            source.astype(np.float32), (lines - [[0, 0, start + middle], [0, 0, start]]) / pitch,
            (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        b = (
            lines[1, 0] * np.arange(x1 - x0)
            + lines[1, 1] * np.arange(y1 - y0)[:, None]
            + lines[1, 2]
        )
        x, y = (
            a * np.float32(turn[i, 0]) + (b * turn[i, 1] + centre[i]).astype(np.float32)
            for i in (0, 1)
        )
        # The forehead fades into the skull or the hair behind it.
        opacity = opacity / np.float32(255) * np.clip((y + 1.25) / np.float32(0.3), 0, 1)
        maps = ((v - texture.origin[i]) * texture.scale[i] - 0.5 for i, v in enumerate((x, y)))
        return (slice(y0, y1), slice(x0, x1)), tuple(m.astype(np.float32) for m in maps), opacity


# --- painting --------------------------------------------------------------------------------------


class _Canvas:
    """Pixels that are painted in face or picture coordinates: pixel = (point - origin) * scale - 0.5."""

    def __init__(self, pixels: np.ndarray, origin: np.ndarray, scale: np.ndarray):
        self.pixels, self.origin, self.scale = pixels, origin, scale

    @classmethod
    def of_texture(cls, size: int, colour: _Vector | float) -> "_Canvas":
        """A texture for a picture of `size`, about as fine as the supersampled picture."""
        low, high = _REGION
        columns, rows = np.round((high - low) * 0.46 * size).astype(int)
        shape = (rows, columns, 3) if np.ndim(colour) else (rows, columns)
        pixels = np.full(shape, np.asarray(colour).astype(np.uint8))
        return cls(pixels, low, np.array([columns, rows]) / (high - low))

    @classmethod
    def of_picture(cls, pixels: np.ndarray) -> "_Canvas":
        """A square picture, in picture coordinates."""
        return cls(pixels, np.zeros(2), np.full(2, float(len(pixels))))

    @property
    def side(self) -> int:
        return len(self.pixels)

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Values at the pixels nearest to points `[n 2]`."""
        place = np.rint(self._place(points)).astype(int)
        column, row = place.clip(0, np.array(self.pixels.shape[1::-1]) - 1).T
        return self.pixels[row, column]

    def fill(
        self,
        shapes: np.ndarray | Sequence[np.ndarray],
        colour: _Vector | float,
        opacity: float = 1.0,
        soft: float = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Fills polygons `[n 2]`, softened by `soft` units, only inside the polygon `clip`."""
        places = [self._place(s) for s in ([shapes] if isinstance(shapes, np.ndarray) else shapes)]
        spread = soft * self.scale[0]
        margin = int(2 * spread) + 2
        together = places[0] if len(places) == 1 else np.concatenate(places)
        rows, columns = self.pixels.shape[:2]
        (x0, y0), (x1, y1) = together.min(axis=0), together.max(axis=0)
        x0, y0 = max(int(x0) - margin, 0), max(int(y0) - margin, 0)
        x1, y1 = min(int(x1) + margin + 1, columns), min(int(y1) + margin + 1, rows)
        if x0 >= x1 or y0 >= y1:
            return
        if opacity == 1.0 and spread < 0.4 and clip is None:
            _draw(self.pixels, places, np.clip(colour, 0, 255).tolist())
            return
        part = self.pixels[y0:y1, x0:x1]
        mask = _mask(part.shape[:2], *(place - (x0, y0) for place in places))
        if spread > 0.4:
            # Two box blurs stand for a Gaussian, at a cost that does not grow with its width.
            box = 2 * int(np.sqrt(6 * spread**2 + 1) / 2) + 1
            for _ in range(2):
                mask = cv2.blur(mask, (box, box), borderType=cv2.BORDER_CONSTANT)
        if clip is not None:
            mask = cv2.min(mask, _mask(part.shape[:2], self._place(clip) - (x0, y0)))
        weight = mask.astype(np.float32) * np.float32(opacity / 255)
        paint = np.empty_like(part)
        paint[:] = np.clip(colour, 0, 255)
        part[:] = cv2.blendLinear(paint, part, weight, 1 - weight)

    def stroke(self, points: np.ndarray, width, colour, opacity: float = 1.0, soft: float = 0.0):
        """Paints a band along a polyline `[n 2]`."""
        self.fill(_ribbon(points, width), colour, opacity, soft)

    def _place(self, points: np.ndarray) -> np.ndarray:
        return (points - self.origin) * self.scale - 0.5


def _mask(shape: tuple[int, int], *polygons: np.ndarray) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    _draw(mask, polygons, 255.0)
    return mask


def _draw(pixels: np.ndarray, polygons: Sequence[np.ndarray], colour: _Vector | float) -> None:
    """Fills polygons in pixel coordinates with smooth edges."""
    # One call each: a single call would leave a hole where two overlap.
    for polygon in polygons:
        cv2.fillPoly(pixels, [np.rint(polygon * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)


def _paint_face(traits: _Traits, curves: _Curves, size: int) -> tuple[_Canvas, _Canvas]:
    """The unlit texture of the front of the head, and a mask of what on it hides the face."""
    texture = _Canvas.of_texture(size, traits.skin)
    cover = _Canvas.of_texture(size, 0.0)
    _paint_skin(texture, traits, curves)
    _paint_beard(texture, traits, curves)
    _paint_nose(texture, traits, curves)
    _paint_mouth(texture, traits, curves)
    for side in (-1, 1):
        _paint_eye(texture, traits, curves, side)
        _paint_brow(texture, traits, curves, side)
    _paint_hair(texture, traits)
    if traits.occluder == "mask":
        _paint_mask(texture, cover, traits, curves)
    if traits.occluder == "strands":
        _paint_strands(texture, cover, traits)
    return texture, cover


def _paint_skin(texture: _Canvas, traits: _Traits, curves: _Curves) -> None:
    skin = traits.skin
    rose, deep = skin * [1.0, 0.72, 0.7], skin * 0.72
    for side in (-1, 1):
        texture.fill(_ellipse((side * 0.6, 0.5), 0.22, 0.17), rose, 0.2 + traits.blush, 0.09)
        texture.fill(_ellipse((side * traits.eye_x, 0.02), 0.24, 0.13), deep, 0.35, 0.06)
        fold = np.array([(0.25, 0.62), (0.36, 0.72), (0.46 + 0.04 * traits.smile, 0.92)])
        fold = _spline(fold * (side, 1), np.linspace(0, 1, 9))
        depth = 0.12 + 0.3 * traits.age + 0.22 * max(traits.smile, 0)
        texture.stroke(fold, 0.035, deep, depth, 0.02)
        bag = curves.lid(side, np.linspace(-0.8, 0.7, 9), 1) + (0, 0.07)
        texture.stroke(bag, 0.02, deep, 0.15 + 0.35 * traits.age, 0.012)
    texture.fill(_ellipse((0, traits.nose_length + 0.04), 0.15, 0.1), rose, 0.2, 0.05)
    for row in range(3):
        y = -0.5 - 0.12 * row
        line = np.stack([np.linspace(-0.45, 0.45, 9), y + 0.03 * np.cos(np.linspace(-3, 3, 9))], 1)
        texture.stroke(line, 0.016, deep, 0.5 * traits.age * (max(traits.brow_raise) > 0.0), 0.01)


def _paint_beard(texture: _Canvas, traits: _Traits, curves: _Curves) -> None:
    if traits.beard == "none":
        return
    mouth, chin = traits.mouth_y, curves.jaw(np.array([0.5]))[0, 1]
    opacity = {"stubble": 0.22}.get(traits.beard, 0.85)
    half = np.array(
        [(0, 0.74), (0.2, 0.74), (0.48, 0.98), (0.74, 0.72), (0.95, 0.2), (1.2, 0.2), (1.2, 2)]
    )
    shapes = {
        "goatee": [_ellipse((0, 0.5 * (mouth + 0.08 + chin)), 0.3, 0.5 * (chin - mouth) + 0.05)],
        "moustache": [],
    }.get(traits.beard, [np.concatenate([half, half[::-1] * (-1, 1)])])
    if traits.beard in ("goatee", "moustache"):
        lip = curves.lip(np.linspace(-1.0, 1.0, 21), "outer_top")
        shapes.append(np.concatenate([lip + (0, 0.03), lip[::-1] * (0.8, 1) - (0, 0.09)]))
    for shape in shapes:
        texture.fill(shape, traits.hair, opacity, 0.03)


def _paint_nose(texture: _Canvas, traits: _Traits, curves: _Curves) -> None:
    dark = traits.skin * [0.5, 0.38, 0.36]
    base = curves.nose_base(np.linspace(-0.95, 0.95, 21))
    texture.stroke(base, 0.03, dark, 0.4, 0.012)
    wing = curves.nose_base(np.array([1.0]))[0]
    for side in (-1, 1):
        nostril = _ellipse((side * wing[0] * 0.48, wing[1] + 0.005), 0.055, 0.027, side * 0.25)
        texture.fill(nostril, dark * 0.45, 0.9, 0.006)
        crease = np.array([(-0.03, -0.13), (0.015, -0.07), (0.015, 0.0), (-0.04, 0.035)]) + wing
        crease = _spline(crease * (side, 1), np.linspace(0, 1, 11))
        texture.stroke(crease, 0.022, dark, 0.55, 0.008)


def _paint_mouth(texture: _Canvas, traits: _Traits, curves: _Curves) -> None:
    outer, inner = curves.lips("outer"), curves.lips("inner")
    texture.fill(outer, traits.lips, 0.95, 0.004)
    u = np.linspace(-0.6, 0.6, 11)
    shine = 0.5 * (curves.lip(u, "inner_bottom") + curves.lip(u, "outer_bottom"))
    texture.stroke(shine, 0.03, traits.lips + 50, 0.35, 0.015)
    shade = 0.5 * (curves.lip(u, "inner_top") + curves.lip(u, "outer_top"))
    texture.stroke(shade, 0.05, traits.lips * 0.7, 0.3, 0.015)
    if traits.jaw_drop > 0.02:
        _paint_open_mouth(texture, traits, inner)
    line = curves.lip(np.linspace(-1, 1, 31), "inner_top")
    texture.stroke(line, 0.018, traits.lips * 0.35, 0.85, 0.003)
    for corner in (line[0], line[-1]):
        texture.fill(_ellipse(corner, 0.03, 0.025), traits.lips * 0.4, 0.5, 0.012)


def _paint_open_mouth(texture: _Canvas, traits: _Traits, inner: np.ndarray) -> None:
    texture.fill(inner, (58, 16, 18))
    top, low = inner[:, 1].min(), inner[:, 1].max()
    half = inner[:, 0].max()
    tongue = _ellipse((0, low + 0.02), 0.6 * half, 0.35 * (low - top))
    texture.fill(tongue, (176, 78, 80), 0.9, 0.015, clip=inner)
    teeth = inner * (0.92, 1)
    teeth[:, 1] = np.minimum(teeth[:, 1], top + 0.09 + 0.03 * (teeth[:, 0] / half) ** 2)
    texture.fill(teeth, (238, 232, 220), 0.95, 0.004, clip=inner)
    gaps = [np.array([(x, top - 0.05), (x, top + 0.08)]) for x in np.linspace(-0.6, 0.6, 7) * half]
    texture.fill([_ribbon(gap, 0.008) for gap in gaps], (150, 136, 124), 0.35)


def _paint_eye(texture: _Canvas, traits: _Traits, curves: _Curves, side: int) -> None:
    opening, centre = curves.lids(side), curves.iris(side)
    u = np.linspace(-1, 1, 21)
    upper, lower = curves.lid(side, u, -1), curves.lid(side, u, 1)
    dark = traits.skin * [0.42, 0.34, 0.32]
    made_up = traits.attributes["make_up"]
    lid = np.concatenate([upper, (upper + np.stack([0 * u, -0.1 * (1.15 - u**2)], 1))[::-1]])
    texture.fill(lid, traits.eye_shadow, 0.8 if made_up else 0.35, 0.025)
    crease = (
        curves.lid(side, u[2:-1], -1) + np.stack([0 * u, -0.055 * (1.1 - u**2) ** 0.5], 1)[2:-1]
    )
    texture.stroke(crease, 0.018, dark, 0.45, 0.007)

    texture.fill(opening, (236, 232, 228))
    texture.fill(
        _ellipse(curves.lid(side, [-0.97], 1)[0], 0.04, 0.02), (214, 140, 130), 0.8, 0.006, opening
    )
    texture.fill(_ellipse(centre, 0.085, 0.085), traits.iris * 0.55, 1.0, 0.003, opening)
    texture.fill(_ellipse(centre, 0.068, 0.068), traits.iris * 1.1 + 12, 1.0, 0.01, opening)
    texture.fill(_ellipse(centre, 0.036, 0.036), (10, 8, 8), 1.0, 0.003, opening)
    texture.fill(_ribbon(upper + (0, 0.015), 0.05), _BLACK, 0.4, 0.012, opening)
    spark = centre + (0.035 * np.sign(traits.light[0]), -0.032)
    texture.fill(_ellipse(spark, 0.016, 0.016), _WHITE, 0.95, 0.002, opening)

    width = (0.014 + 0.016 * (u + 1) / 2) * (1.6 if made_up else 1.0)
    texture.stroke(upper, width, (22, 16, 16), 0.95)
    texture.stroke(lower, 0.012, dark, 0.8 if made_up else 0.55, 0.003)


def _paint_brow(texture: _Canvas, traits: _Traits, curves: _Curves, side: int) -> None:
    s = np.linspace(0, 1, 21)
    upper, lower = curves.brow(side, s, -1), curves.brow(side, s, 1)
    colour = np.minimum(traits.hair * 0.8, 110)
    texture.fill(np.concatenate([upper, lower[::-1]]), colour, 0.82, 0.004)
    root = np.linspace(0.02, 0.85, 14)
    ends = zip(curves.brow(side, root, 1), curves.brow(side, root + 0.12, -1), strict=True)
    texture.fill([_ribbon(np.stack(pair), 0.012) for pair in ends], colour * 0.6, 0.5)


def _hair_region(traits: _Traits) -> np.ndarray | None:
    """Polygon of the hair on the front of the head, or None."""
    line, part = traits.hairline, traits.parting
    if traits.haircut == "bald":
        return None
    edge = {
        "short": [(-1.2, 0.2), (-0.95, 0.15), (-0.9, -0.25), (-0.82, -0.5), (-0.68, line + 0.12),
                  (part, line - 0.04), (0.68, line + 0.12), (0.82, -0.5), (0.9, -0.25), (0.95, 0.15),
                  (1.2, 0.2)],
        "fringe": [(-1.2, 0.3), (-0.93, 0.3), (-0.86, -0.2), (-0.6, -0.44), (-0.2, -0.47),
                   (0.2, -0.47), (0.6, -0.44), (0.86, -0.2), (0.93, 0.3), (1.2, 0.3)],
    }.get(traits.haircut, [
        (-1.2, 1.0), (-0.99, 0.7), (-0.9, 0.0), (-0.72, -0.45), (part - 0.25, line + 0.08),
        (part, line - 0.16), (part + 0.25, line + 0.08), (0.72, -0.45), (0.9, 0.0), (0.99, 0.7), (1.2, 1.0),
    ])  # fmt: skip
    edge = _spline(np.array(edge), np.linspace(0, 1, 61))
    return np.concatenate([edge, [(1.4, -1.8), (-1.4, -1.8)]])


def _paint_hair(texture: _Canvas, traits: _Traits) -> None:
    region = _hair_region(traits)
    if region is not None:
        texture.fill(region + (0, 0.04), traits.skin * 0.5, 0.4, 0.04)
        texture.fill(region, traits.hair)


def _paint_mask(texture: _Canvas, cover: _Canvas, traits: _Traits, curves: _Curves) -> None:
    top = [
        (-1.1, 0.42),
        (-0.7, 0.42),
        (-0.25, 0.3),
        (0, 0.22),
        (0.25, 0.3),
        (0.7, 0.42),
        (1.1, 0.42),
    ]
    top = _spline(np.array(top), np.linspace(0, 1, 31))
    region = np.concatenate([top, [(1.1, 1.2), (0.9, 2.2), (-0.9, 2.2), (-1.1, 1.2)]])
    colour = 0.5 * traits.occluder_colour + 110
    texture.fill(region, colour)
    for y in (0.75, 0.95, 1.15):
        pleat = np.stack([np.linspace(-0.85, 0.85, 9), y + 0.05 * np.linspace(-1, 1, 9) ** 2], 1)
        texture.stroke(pleat, 0.025, colour * 0.75, 0.6, 0.008)
    texture.stroke(top, 0.04, colour * 0.85, 0.8)
    cover.fill(region, 255.0)


def _paint_strands(texture: _Canvas, cover: _Canvas, traits: _Traits) -> None:
    side = np.sign(traits.occluder_at[0])
    for i in range(5):
        x = 0.95 - 0.17 * i
        lock = np.array([(0.1, -1.3), (x - 0.2, -0.7), (x, -0.1), (x + 0.06, 0.55 - 0.1 * i)])
        lock = _spline(lock * (side, 1), np.linspace(0, 1, 15))
        width = 0.26 * np.linspace(1, 0.15, 15)
        texture.stroke(lock, width, traits.hair * (0.85 + 0.08 * i), 1.0, 0.004)
        cover.stroke(lock, width, 255.0)


# --- light -----------------------------------------------------------------------------------------


def _light_face(
    texture: _Canvas, traits: _Traits, relief: _Relief, view: _View, rng: np.random.Generator
) -> None:
    """Multiplies the texture with the light that falls on the relief, and with the skin's own noise."""
    height, slope = relief.height, relief.slope
    light = view.rotation.T @ traits.light
    length = np.sqrt(1 + (slope**2).sum(-1))
    lambert = (light[2] - slope @ light[:2].astype(np.float32)) / length
    lambert = np.clip(0.8 * lambert + 0.2, 0, None) * _shadow(height, light, relief)
    hollow = np.clip(height - cv2.GaussianBlur(height, (0, 0), 5), -0.1, 0.05)
    shade = traits.ambient * (1 + 3 * hollow) + traits.diffuse * lambert
    shade *= 1 + 0.02 * _noise(rng, _RELIEF_SHAPE, 3) + 0.012 * _noise(rng, _RELIEF_SHAPE, 1)
    shade = cv2.merge([shade] * 3)
    shade += _speckles(rng, traits)[..., None] * np.float32([0.5, 0.8, 1.0])
    shade += (0.1 * np.clip(lambert, 0, 1) ** 10)[..., None]
    region = _hair_region(traits)
    if region is not None:
        mask = _mask(_RELIEF_SHAPE, (region - _REGION[0]) * relief.scale - 0.5)
        streaks = cv2.resize(
            _noise(rng, (6, 68), 1), _RELIEF_SHAPE[::-1], interpolation=cv2.INTER_CUBIC
        )
        shade += (mask / np.float32(255) * 0.16 * streaks)[..., None]
    rows, columns = texture.pixels.shape[:2]
    shade = cv2.resize(shade.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    texture.pixels = cv2.multiply(texture.pixels, shade, dtype=cv2.CV_8U)


def _shadow(height: np.ndarray, light: np.ndarray, relief: _Relief) -> np.ndarray:
    """1 in the light, less where the relief towards the light stands higher than its rays."""
    shadow = np.ones_like(height)
    rise = light[2] / max(np.hypot(*light[:2]), 1e-6)
    direction = light[:2] / max(np.hypot(*light[:2]), 1e-6)
    for distance in (0.08, 0.16, 0.26):
        dx, dy = direction * distance * relief.scale
        move = np.array([[1, 0, dx], [0, 1, dy]])
        towards = cv2.warpAffine(
            height, move, height.shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        blocked = towards - height - rise * distance
        shadow = np.minimum(shadow, np.clip(1 - 6 * blocked, 0.35, 1))
    return cv2.GaussianBlur(shadow, (0, 0), 1.5)


def _noise(rng: np.random.Generator, shape: tuple[int, int], grain: int) -> np.ndarray:
    """Normal noise, smooth over `grain` pixels."""
    coarse = rng.standard_normal((-(-shape[0] // grain), -(-shape[1] // grain)), np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _speckles(rng: np.random.Generator, traits: _Traits) -> np.ndarray:
    """Freckles across nose and cheeks, as what they take from the light."""
    if not traits.freckles:
        return np.zeros(_RELIEF_SHAPE, np.float32)
    spots = (rng.random(_RELIEF_SHAPE, np.float32) < 0.05 * traits.freckles).astype(np.float32)
    rows, columns = np.indices(_RELIEF_SHAPE, np.float32)
    where = np.exp(-(((columns - 67.5) / 40) ** 2) - ((rows - 103) / 18) ** 2)
    return -0.9 * cv2.GaussianBlur(spots, (0, 0), 0.7) * where


# --- what is behind and before the face ------------------------------------------------------------


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """A blurred scene: a colour gradient, blobs, some with edges, and noise."""
    small = np.empty((48, 48, 3), np.float32)
    ramp = np.linspace(0, 1, 48, dtype=np.float32)
    a, b, c = _muted(rng, 3).astype(np.float32)
    small[:] = a + (b - a) * ramp[:, None, None] + 0.5 * (c - a) * ramp[None, :, None]
    scene = small.clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 9)):
        centre = rng.uniform(-4, 52, 2)
        if rng.random() < 0.5:
            shape = _ellipse(centre, *rng.uniform(3, 16, 2), rng.uniform(0, 3))
        else:
            reach, turn = rng.uniform(3, 20, 2), rng.normal(0, 0.3)
            shape = (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * reach) @ np.array(
                [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
            ) + centre
        colour = _muted(rng, 1)[0].tolist()
        cv2.fillPoly(scene, [np.round(shape * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.6, 2.0))
    grain = rng.normal(0, rng.uniform(0, 5), (96, 96, 1)).astype(np.float32)
    scene = cv2.resize(scene, (96, 96), interpolation=cv2.INTER_CUBIC) + grain
    scene = scene.clip(0, 255).astype(np.uint8)
    return cv2.resize(scene, (side, side), interpolation=cv2.INTER_CUBIC)


def _muted(rng: np.random.Generator, n: int) -> np.ndarray:
    """Colours `[n 3]` of things: any brightness, seldom vivid."""
    return (rng.uniform(25, 225, (n, 1)) + rng.normal(0, 28, (n, 3))).clip(0, 255)


def _shell(view: _View, centre: _Vector, radii: _Vector) -> np.ndarray:
    """The silhouette of an ellipsoid, as a polygon in picture coordinates."""
    axes = view.rotation[:2] * np.asarray(radii)
    angle = np.linspace(0, 2 * np.pi, 65)[:-1]
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) @ np.linalg.cholesky(axes @ axes.T).T
    return ring * view.scale + view.project(np.array([centre]))


def _paint_behind(scene: _Canvas, traits: _Traits, curves: _Curves, view: _View) -> None:
    """Hair, body, neck and ears."""
    lit = traits.ambient + 0.6 * traits.diffuse * max(traits.light[2], 0.3)
    skin, hair = traits.skin * lit, traits.hair * min(lit + 0.1, 1.0)
    base = view.project([(0, 1.35, -0.25)])[0]
    unit = view.scale

    bald = traits.haircut == "bald"
    volume = 0.0 if bald else traits.hair_volume
    _paint_skull(scene, traits, view, skin if bald else hair * 0.95, volume)
    if traits.haircut in ("long", "bob"):
        length = 2.4 if traits.haircut == "long" else 1.3
        half = [
            (0.9, -0.9),
            (1.12 + volume, -0.3),
            (1.16 + volume, 0.5),
            (1.1 + volume, length),
            (0.4, length),
        ]
        half = _spline(np.array(half), np.linspace(0, 1, 25))
        fall = np.concatenate([half, half[::-1] * (-1, 1)])
        fall = view.project(np.column_stack([fall, np.full(len(fall), -0.35)]))
        scene.fill(fall, hair * 0.8)
        locks = [half * (side * grow, 1) for side in (-1, 1) for grow in (0.7, 0.8, 0.9)]
        locks = [view.project(np.column_stack([lock, np.full(len(lock), -0.3)])) for lock in locks]
        scene.fill(
            [_ribbon(lock[4:20], 0.05 * unit) for lock in locks], hair * 1.2, 0.5, 0.02 * unit
        )

    shoulders = [
        (-3, 2.6),
        (-1.9, 1.35),
        (-0.85, 0.9),
        (0, 1.25),
        (0.85, 0.9),
        (1.9, 1.35),
        (3, 2.6),
    ]
    shoulders = base + unit * _spline(np.array(shoulders), np.linspace(0, 1, 41))
    body = np.concatenate([shoulders, base + unit * np.array([(3, 6), (-3, 6)])])
    throat = view.project([(-0.66, 0.6, -0.1), (0.66, 0.6, -0.1)])
    half = _spline(
        np.array([(0.62, 0.2), (0.64, 0.55), (0.9, 1.0), (1.6, 1.3)]), np.linspace(0, 1, 13)
    )
    neck = np.concatenate([throat, base + unit * np.concatenate([half, half[::-1] * (-1, 1)])])
    scene.fill(neck, skin * 0.85)
    bright = neck + unit * np.array([0.45 * np.sign(traits.light[0]), 0])
    scene.fill(bright, skin * 1.12, 0.6, 0.12 * unit, clip=neck)
    chin = view.lift(curves.jaw(np.linspace(0.1, 0.9, 41))) + unit * np.array([0, 0.22])
    scene.fill(chin, skin * 0.45, 0.6, 0.07 * unit, clip=neck)
    scene.fill(body, traits.cloth)
    scene.stroke(shoulders, 0.06 * unit, traits.cloth * 0.7, 0.7, 0.02 * unit)
    if traits.haircut not in ("long", "bob"):
        for side in (-1, 1):
            if side * traits.yaw < 0.2:
                _paint_ear(scene, view, skin, side)


def _paint_skull(
    scene: _Canvas, traits: _Traits, view: _View, colour: np.ndarray, volume: float
) -> None:
    centre, radii = np.array((0, -0.4, -0.1)), np.array((1.02, 1.05, 1.25)) + volume
    scene.fill(_shell(view, centre, radii), colour * 0.75)
    shift = view.rotation.T @ traits.light * 0.25
    scene.fill(_shell(view, centre + shift, radii * 0.75), colour * 1.1, 0.8, 0.15 * view.scale)
    if traits.haircut == "bald":
        return
    t, locks = np.linspace(0.1, 1.5, 13), []
    for a in np.linspace(0, np.pi, 14):
        arc = np.stack([np.sin(t) * np.cos(a), -np.cos(t), np.sin(t) * np.sin(a)], 1)
        locks.append(_ribbon(view.project(centre + radii * arc), 0.04 * view.scale))
    scene.fill(locks[::2], colour * 1.35, 0.25, 0.01 * view.scale)
    scene.fill(locks[1::2], colour * 0.6, 0.25, 0.01 * view.scale)


def _paint_ear(scene: _Canvas, view: _View, skin: np.ndarray, side: int) -> None:
    def ring(grow: float) -> np.ndarray:
        x, y = _ellipse((0, 0), 0.5, 1.0).T * grow
        y = y * (1 - 0.15 * x)
        return view.project(
            np.stack([side * (1.0 + 0.17 * x + 0.03 * y), 0.13 + 0.28 * y, -0.12 - 0.2 * x], 1)
        )

    scene.fill(ring(1.0), skin)
    scene.fill(ring(0.62), skin * 0.6, 0.8, 0.03 * view.scale)


def _paint_in_front(scene: _Canvas, cover: _Canvas, traits: _Traits, view: _View) -> None:
    """Glasses, and what the occlusion attribute puts before the face; `cover` keeps what is hidden."""
    if traits.occluder == "sunglasses":
        _paint_glasses(scene, traits, view, (18, 18, 22), 0.95, cover)
    elif traits.glasses:
        _paint_glasses(scene, traits, view, _WHITE, 0.08, None)
    painter = {"hand": _paint_hand, "object": _paint_object, "scarf": _paint_scarf}.get(
        traits.occluder
    )
    if painter:
        painter(scene, cover, traits, view)


def _paint_glasses(
    scene: _Canvas,
    traits: _Traits,
    view: _View,
    lens: _Vector,
    opacity: float,
    cover: _Canvas | None,
) -> None:
    def place(points: np.ndarray) -> np.ndarray:
        depth = 1.36 - 0.35 * points[:, 0] ** 2
        return view.project(np.column_stack([points, depth]))

    frame, width = np.minimum(traits.cloth * 0.4, 90), 0.035 * view.scale
    for side in (-1, 1):
        ring = _ellipse((0, 0), 1.0, 1.0)
        ring = np.sign(ring) * np.abs(ring) ** 0.75 * (0.3, 0.22) + (side * traits.eye_x, 0.03)
        ring = place(np.concatenate([ring, ring[:2]]))
        scene.fill(ring, lens, opacity)
        scene.stroke(ring, width, frame)
        if side * traits.yaw < 0.15:
            hinge = view.project([(side * 0.75, -0.06, 1.12), (side * 1.04, -0.04, 0.0)])
            scene.stroke(hinge, width, frame)
        if cover:
            cover.fill(ring, 255.0)
    x = np.linspace(-1, 1, 9) * (traits.eye_x - 0.3)
    scene.stroke(place(np.stack([x, -0.03 - 0.03 * (1 - (x / x.max()) ** 2)], 1)), width, frame)


def _target(traits: _Traits, view: _View) -> np.ndarray:
    """Where on the face, in picture coordinates, an occluder is centred."""
    return view.lift(np.array([traits.occluder_at]))[0]


def _paint_hand(scene: _Canvas, cover: _Canvas, traits: _Traits, view: _View) -> None:
    unit, skin = view.scale, traits.skin * (0.6 + 0.4 * traits.ambient)
    turn = 0.5 * traits.occluder_turn / np.pi
    away = np.array([np.sin(turn), np.cos(turn)])
    across = np.array([away[1], -away[0]])
    centre = _target(traits, view) + 0.35 * unit * away
    palm = [_ellipse(centre + 0.35 * unit * away, 0.42 * unit, 0.48 * unit, -turn)]
    palm.append(
        _ribbon(np.array([centre + 0.3 * unit * away, centre + 4 * unit * away]), 0.62 * unit)
    )
    fingers = []
    for i, length in enumerate((0.62, 0.8, 0.84, 0.7)):
        root = centre + 0.2 * unit * away + (i - 1.5) * 0.2 * unit * across
        tip = root - (length * away - (i - 1.5) * 0.07 * across) * unit
        width = 0.19 * unit * np.sqrt(1 - np.linspace(0, 0.98, 9) ** 6)
        fingers.append(_ribbon(root + np.linspace(0, 1, 9)[:, None] * (tip - root), width))
    for shape in palm + fingers:
        scene.fill(shape, skin)
        cover.fill(shape, 255.0)
    for finger in fingers:
        scene.stroke(finger, 0.02 * unit, skin * 0.55, 0.7, 0.008 * unit)


def _paint_object(scene: _Canvas, cover: _Canvas, traits: _Traits, view: _View) -> None:
    unit, turn = view.scale, 0.15 * traits.occluder_turn
    cos, sin = np.cos(turn), np.sin(turn)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ np.array([[cos, sin], [-sin, cos]])
    reach = unit * (0.38 + 0.1 * np.sin(5 * traits.occluder_turn)) * np.array([1.0, 1.3])
    shape = corners * reach + _target(traits, view)
    scene.fill(shape, traits.occluder_colour)
    scene.fill(shape.mean(0) + 0.82 * (shape - shape.mean(0)), traits.occluder_colour * 0.6 + 60)
    cover.fill(shape, 255.0)


def _paint_scarf(scene: _Canvas, cover: _Canvas, traits: _Traits, view: _View) -> None:
    lift = 0.5 * traits.occluder_at[1]
    edge = [
        (-1.35, 1.05, -0.2),
        (-0.9, 0.95, 0.8),
        (0, 0.85 + 0.2 * lift, 1.55),
        (0.9, 0.95, 0.8),
        (1.35, 1.05, -0.2),
    ]
    edge = _spline(view.project(np.array(edge)), np.linspace(0, 1, 31))
    region = np.concatenate([edge, edge[::-1] * (1, 0) + (0, 1.5)])
    scene.fill(region, traits.occluder_colour)
    for drop in (0.0, 0.25, 0.55, 0.9):
        fold = edge + np.array([0, drop * view.scale])
        scene.stroke(fold, 0.07 * view.scale, traits.occluder_colour * 0.65, 0.7, 0.03 * view.scale)
    cover.fill(region, 255.0)


def _finish(pixels: np.ndarray, traits: _Traits, size: int, rng: np.random.Generator) -> np.ndarray:
    """What the camera does: sampling, blur, exposure, colour of the light, and noise."""
    image = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    sigma = traits.blur * size
    if np.isfinite(traits.motion):
        image = cv2.filter2D(image, -1, _motion_kernel(4 * sigma, traits.motion))
    elif sigma > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    gain = traits.gain * traits.tint
    noise = rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0.5, 3))
    return np.clip(image * gain.astype(np.float32) + noise, 0, 255).round().astype(np.uint8)


def _motion_kernel(length: float, angle: float) -> np.ndarray:
    side = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((side, side), np.uint8)
    arm = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = np.round((side // 2 + np.array([-arm, arm])) * 16).astype(int)
    cv2.line(kernel, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 255, 1, cv2.LINE_AA, 4)
    return (kernel / kernel.sum()).astype(np.float32)


# --- the official layouts --------------------------------------------------------------------------

_300W_TRAIN = ("afw", "helen/trainset", "lfpw/trainset")
_300W_TEST = ("helen/testset", "lfpw/testset", "ibug", "300W/01_Indoor", "300W/02_Outdoor")
_300W_PNG = ("lfpw/trainset", "lfpw/testset", "300W/01_Indoor")


def write_wflw(out: Path, *, num_train: int, num_test: int, seed: int = 0) -> None:
    """Writes faces with 98 points in the layout of WFLW.

    Args:
      out: folder for `WFLW_images/` and `WFLW_annotations/`.
      num_train: faces in the training list.
      num_test: faces in the test list; no face is in both.
      seed: another seed gives other faces.

    Raises:
      InputError: the folder already exists.
    """
    out = _new_folder(out)
    names = [
        f"{i % 3}--Synthetic/{i % 3}_Synthetic_{i:06d}.jpg" for i in range(num_train + num_test)
    ]
    faces = _draw_all([out / "WFLW_images" / name for name in names], seed, WFLW98)
    lines = [_wflw_line(face, name) for face, name in zip(faces, names, strict=True)]
    folder = out / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    folder.mkdir(parents=True)
    for split, part in (("train", lines[:num_train]), ("test", lines[num_train:])):
        text = "".join(f"{line}\n" for line in part)
        (folder / f"list_98pt_rect_attr_{split}.txt").write_text(text, encoding="utf-8")


def write_300w(out: Path, *, num_train: int, num_test: int, seed: int = 0) -> None:
    """Writes faces with 68 points in the layout of 300W.

    Args:
      out: folder for `afw/`, `helen/`, `lfpw/`, `ibug/` and `300W/`.
      num_train: faces for `afw` and the two `trainset` folders, dealt in turn.
      num_test: faces for the two `testset` folders, `ibug` and `300W`, dealt in turn.
      seed: another seed gives other faces.

    Raises:
      InputError: the folder already exists.
    """
    out = _new_folder(out)
    folders = [_300W_TRAIN[i % len(_300W_TRAIN)] for i in range(num_train)]
    folders += [_300W_TEST[i % len(_300W_TEST)] for i in range(num_test)]
    paths = [
        out / folder / f"synthetic_{i:06d}.{'png' if folder in _300W_PNG else 'jpg'}"
        for i, folder in enumerate(folders)
    ]
    faces = _draw_all(paths, seed, IBUG68)
    for path, folder, face in zip(paths, folders, faces, strict=True):
        text = _pts_text(face.landmarks, header=folder.startswith("lfpw"))
        path.with_suffix(".pts").write_text(text, encoding="utf-8")


def _new_folder(out: Path) -> Path:
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    out.mkdir(parents=True)
    return out


def _draw_all(paths: Sequence[Path], seed: int, scheme: LandmarkScheme) -> list[SyntheticFace]:
    """Draws a face for each path and saves its picture; the faces returned have an empty picture."""
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True)

    def draw(index: int) -> SyntheticFace:
        face = draw_face(seed * 1_000_000 + index, scheme)
        bgr = cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(paths[index]), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise InputError(f"{paths[index]}: cannot write the picture; is the disk full?")
        return dataclasses.replace(face, image=np.zeros((0, 0, 3), np.uint8))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(draw, range(len(paths))))


def _wflw_line(face: SyntheticFace, name: str) -> str:
    """A line of a WFLW list: points, a box as a detector would find it, attributes, path."""
    box = box_of_landmarks(face.landmarks, np.ones(len(face.landmarks), bool))
    fields = [f"{value:.6f}" for value in face.landmarks.ravel()]
    fields += [str(int(value)) for value in np.round(box)]
    fields += [str(int(face.attributes[attribute])) for attribute in ATTRIBUTES]
    return " ".join([*fields, name])


def _pts_text(landmarks: np.ndarray, *, header: bool) -> str:
    """A `.pts` file, which counts pixels from 1."""
    lines = [f"{x:.6f} {y:.6f}" for x, y in landmarks + 1]
    if header:
        lines = ["version: 1", f"n_points:  {len(lines)}", "{", *lines, "}"]
    return "\n".join(lines) + "\n"
