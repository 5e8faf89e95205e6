"""Scene behind a face (background, head, hair, body) and in front of it (glasses, occluders)."""

import cv2
import numpy as np

from lcgcn_jax.synthetic.canvas import Canvas, draw_polygons
from lcgcn_jax.synthetic.curves import Curves, Vector, ellipse, mirrored, ribbon, smooth
from lcgcn_jax.synthetic.relief import View
from lcgcn_jax.synthetic.traits import Traits, muted_colors

_SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


def background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Blurred background: a color gradient, ellipses, rectangles, and noise."""
    small = np.empty((48, 48, 3), np.float32)
    ramp = np.linspace(0, 1, 48, dtype=np.float32)
    a, b, c = muted_colors(rng, 3).astype(np.float32)
    small[:] = a + (b - a) * ramp[:, None, None] + 0.5 * (c - a) * ramp[None, :, None]
    scene = small.clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 9)):
        center = rng.uniform(-4, 52, 2)
        if rng.random() < 0.5:
            width, height = rng.uniform(3, 16, 2)
            shape = ellipse(center, width, height, rng.uniform(0, 3))
        else:
            reach, angle = rng.uniform(3, 20, 2), rng.normal(0, 0.3)
            shape = (_SQUARE * reach) @ _rotation(angle) + center
        color = muted_colors(rng, 1)[0].tolist()
        draw_polygons(scene, [shape], color)
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.6, 2.0))
    grain = rng.normal(0, rng.uniform(0, 5), (96, 96, 1)).astype(np.float32)
    scene = cv2.resize(scene, (96, 96), interpolation=cv2.INTER_CUBIC) + grain
    scene = scene.clip(0, 255).astype(np.uint8)
    return cv2.resize(scene, (side, side), interpolation=cv2.INTER_CUBIC)


def _rotation(angle: float) -> np.ndarray:
    """Matrix for `points @ matrix` that rotates row vectors from x to y by `angle` radians."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _ellipsoid(view: View, center: Vector, radii: Vector) -> np.ndarray:
    """Silhouette of an ellipsoid, as a polygon in image coordinates."""
    axes = view.rotation[:2] * np.asarray(radii)
    angle = np.linspace(0, 2 * np.pi, 65)[:-1]
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) @ np.linalg.cholesky(axes @ axes.T).T
    return ring * view.scale + view.project(np.array([center]))


def paint_behind(scene: Canvas, traits: Traits, curves: Curves, view: View) -> None:
    """Paint the hair, body, neck and ears behind the face."""
    lit = traits.ambient + 0.6 * traits.diffuse * max(traits.light[2], 0.3)
    skin, hair = traits.skin * lit, traits.hair * min(lit + 0.1, 1.0)
    bald = traits.haircut == "bald"
    volume = 0.0 if bald else traits.hair_volume
    _paint_skull(scene, traits, view, skin if bald else hair * 0.95, volume)
    if traits.haircut in ("long", "bob"):
        _paint_long_hair(scene, traits, view, hair, volume)
    _paint_body(scene, traits, curves, view, skin)
    if traits.haircut not in ("long", "bob"):
        for side in (-1, 1):
            if side * traits.yaw < 0.2:
                _paint_ear(scene, view, skin, side)


def _paint_long_hair(
    scene: Canvas, traits: Traits, view: View, hair: np.ndarray, volume: float
) -> None:
    length = 2.4 if traits.haircut == "long" else 1.3
    half = [
        (0.9, -0.9), (1.12 + volume, -0.3), (1.16 + volume, 0.5), (1.1 + volume, length),
        (0.4, length),
    ]  # fmt: skip
    half = smooth(half, 25)
    scene.fill(view.place(mirrored(half), -0.35), hair * 0.8)
    locks = [half * (side * grow, 1) for side in (-1, 1) for grow in (0.7, 0.8, 0.9)]
    locks = [ribbon(view.place(lock, -0.3)[4:20], 0.05 * view.scale) for lock in locks]
    scene.fill(locks, hair * 1.2, 0.5, 0.02 * view.scale)


def _paint_body(
    scene: Canvas, traits: Traits, curves: Curves, view: View, skin: np.ndarray
) -> None:
    """Paint the neck with the shadow of the chin, and the shoulders in clothes."""
    unit, base = view.scale, view.project([(0, 1.35, -0.25)])[0]
    shoulders = [
        (-3, 2.6), (-1.9, 1.35), (-0.85, 0.9), (0, 1.25), (0.85, 0.9), (1.9, 1.35), (3, 2.6),
    ]  # fmt: skip
    shoulders = base + unit * smooth(shoulders, 41)
    body = np.concatenate([shoulders, base + unit * np.array([(3, 6), (-3, 6)])])
    throat = view.project([(-0.66, 0.6, -0.1), (0.66, 0.6, -0.1)])
    half = smooth([(0.62, 0.2), (0.64, 0.55), (0.9, 1.0), (1.6, 1.3)], 13)
    neck = np.concatenate([throat, base + unit * mirrored(half)])
    scene.fill(neck, skin * 0.85)
    bright = neck + unit * np.array([0.45 * np.sign(traits.light[0]), 0])
    scene.fill(bright, skin * 1.12, 0.6, 0.12 * unit, clip=neck)
    chin = view.lift(curves.jaw(np.linspace(0.1, 0.9, 41))) + unit * np.array([0, 0.22])
    scene.fill(chin, skin * 0.45, 0.6, 0.07 * unit, clip=neck)
    scene.fill(body, traits.cloth)
    scene.stroke(shoulders, 0.06 * unit, traits.cloth * 0.7, 0.7, 0.02 * unit)


def _paint_skull(
    scene: Canvas, traits: Traits, view: View, color: np.ndarray, volume: float
) -> None:
    center, radii = np.array((0, -0.4, -0.1)), np.array((1.02, 1.05, 1.25)) + volume
    scene.fill(_ellipsoid(view, center, radii), color * 0.75)
    shift = view.rotation.T @ traits.light * 0.25
    scene.fill(_ellipsoid(view, center + shift, radii * 0.75), color * 1.1, 0.8, 0.15 * view.scale)
    if traits.haircut == "bald":
        return
    t, locks = np.linspace(0.1, 1.5, 13), []
    for a in np.linspace(0, np.pi, 14):
        arc = np.stack([np.sin(t) * np.cos(a), -np.cos(t), np.sin(t) * np.sin(a)], 1)
        locks.append(ribbon(view.project(center + radii * arc), 0.04 * view.scale))
    scene.fill(locks[::2], color * 1.35, 0.25, 0.01 * view.scale)
    scene.fill(locks[1::2], color * 0.6, 0.25, 0.01 * view.scale)


def _paint_ear(scene: Canvas, view: View, skin: np.ndarray, side: int) -> None:
    def ring(grow: float) -> np.ndarray:
        x, y = ellipse((0, 0), 0.5, 1.0).T * grow
        y = y * (1 - 0.15 * x)
        x, y, z = side * (1.0 + 0.17 * x + 0.03 * y), 0.13 + 0.28 * y, -0.12 - 0.2 * x
        return view.project(np.stack([x, y, z], 1))

    scene.fill(ring(1.0), skin)
    scene.fill(ring(0.62), skin * 0.6, 0.8, 0.03 * view.scale)


def paint_in_front(scene: Canvas, cover: Canvas, traits: Traits, view: View) -> None:
    """Paint glasses and the occluder in front of the face, and add the occluder to the mask `cover`."""
    if traits.occluder == "sunglasses":
        _paint_glasses(scene, traits, view, (18, 18, 22), 0.95, cover)
    elif traits.glasses:
        _paint_glasses(scene, traits, view, (255, 255, 255), 0.08, None)
    painters = {"hand": _paint_hand, "object": _paint_object, "scarf": _paint_scarf}
    if traits.occluder in painters:
        painters[traits.occluder](scene, cover, traits, view)


def _paint_glasses(
    scene: Canvas, traits: Traits, view: View, lens: Vector, opacity: float, cover: Canvas | None
) -> None:
    def place(points: np.ndarray) -> np.ndarray:
        return view.place(points, 1.36 - 0.35 * points[:, 0] ** 2)

    frame, width = np.minimum(traits.cloth * 0.4, 90), 0.035 * view.scale
    for side in (-1, 1):
        ring = ellipse((0, 0), 1.0, 1.0)
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


def _occluder_center(traits: Traits, view: View) -> np.ndarray:
    """Center of the occluder in image coordinates."""
    return view.lift(np.array([traits.occluder_at]))[0]


def _paint_hand(scene: Canvas, cover: Canvas, traits: Traits, view: View) -> None:
    unit, skin = view.scale, traits.skin * (0.6 + 0.4 * traits.ambient)
    angle = 0.5 * traits.occluder_angle
    away = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([away[1], -away[0]])
    center = _occluder_center(traits, view) + 0.35 * unit * away
    palm = ellipse(center + 0.35 * unit * away, 0.42 * unit, 0.48 * unit, -angle)
    arm = ribbon(np.array([center + 0.3 * unit * away, center + 4 * unit * away]), 0.62 * unit)
    fingers = []
    for i, length in enumerate((0.62, 0.8, 0.84, 0.7)):
        root = center + 0.2 * unit * away + (i - 1.5) * 0.2 * unit * across
        tip = root - (length * away - (i - 1.5) * 0.07 * across) * unit
        width = 0.19 * unit * np.sqrt(1 - np.linspace(0, 0.98, 9) ** 6)
        fingers.append(ribbon(root + np.linspace(0, 1, 9)[:, None] * (tip - root), width))
    for shape in [palm, arm, *fingers]:
        scene.fill(shape, skin)
        cover.fill(shape, 255.0)
    for finger in fingers:
        scene.stroke(finger, 0.02 * unit, skin * 0.55, 0.7, 0.008 * unit)


def _paint_object(scene: Canvas, cover: Canvas, traits: Traits, view: View) -> None:
    corners = _SQUARE @ _rotation(0.5 * traits.occluder_angle)
    reach = view.scale * (0.38 + 0.1 * np.sin(9 * traits.occluder_angle)) * np.array([1.0, 1.3])
    shape = corners * reach + _occluder_center(traits, view)
    scene.fill(shape, traits.occluder_color)
    scene.fill(shape.mean(0) + 0.82 * (shape - shape.mean(0)), traits.occluder_color * 0.6 + 60)
    cover.fill(shape, 255.0)


def _paint_scarf(scene: Canvas, cover: Canvas, traits: Traits, view: View) -> None:
    lift = 0.5 * traits.occluder_at[1]
    edge = [
        (-1.35, 1.2, -0.2), (-0.9, 0.95, 0.8), (0, 0.85 + 0.2 * lift, 1.55), (0.9, 0.95, 0.8),
        (1.35, 1.2, -0.2),
    ]  # fmt: skip
    edge = smooth(view.project(edge), 31)
    region = np.concatenate([edge, edge[[-1, 0]] * [1, 0] + [[0.2, 1.5], [-0.2, 1.5]]])
    scene.fill(region, traits.occluder_color)
    for drop in (0.0, 0.25, 0.55, 0.9):
        fold = edge + np.array([0, drop * view.scale])
        scene.stroke(fold, 0.07 * view.scale, traits.occluder_color * 0.65, 0.7, 0.03 * view.scale)
    cover.fill(region, 255.0)
