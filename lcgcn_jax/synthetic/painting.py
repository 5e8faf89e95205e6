"""Painting of the flat, unlit face texture: skin, facial features, hair, and occluders on the skin."""

import numpy as np

from lcgcn_jax.synthetic.canvas import Canvas
from lcgcn_jax.synthetic.curves import Curves, ellipse, mirrored, ribbon, smooth
from lcgcn_jax.synthetic.traits import Traits


def paint_face(traits: Traits, curves: Curves, size: int) -> tuple[Canvas, Canvas]:
    """Paint the unlit texture of the front of the head; returns it and the mask of its occluders."""
    texture = Canvas.of_texture(size, traits.skin)
    cover = Canvas.of_texture(size, 0.0)
    _paint_skin(texture, traits, curves)
    _paint_beard(texture, traits, curves)
    _paint_nose(texture, traits, curves)
    _paint_mouth(texture, traits, curves)
    for side in (-1, 1):
        _paint_eye(texture, traits, curves, side)
        _paint_brow(texture, traits, curves, side)
    _paint_hair(texture, traits)
    if traits.occluder == "mask":
        _paint_mask(texture, cover, traits)
    if traits.occluder == "strands":
        _paint_strands(texture, cover, traits)
    return texture, cover


def _paint_skin(texture: Canvas, traits: Traits, curves: Curves) -> None:
    skin = traits.skin
    rose, deep = skin * [1.0, 0.72, 0.7], skin * 0.72
    for side in (-1, 1):
        texture.fill(ellipse((side * 0.6, 0.5), 0.22, 0.17), rose, 0.2 + traits.blush, 0.09)
        texture.fill(ellipse((side * traits.eye_x, 0.02), 0.24, 0.13), deep, 0.35, 0.06)
        fold = np.array([(0.25, 0.62), (0.36, 0.72), (0.46 + 0.04 * traits.smile, 0.92)])
        fold = smooth(fold * (side, 1), 9)
        depth = 0.12 + 0.3 * traits.age + 0.22 * max(traits.smile, 0)
        texture.stroke(fold, 0.035, deep, depth, 0.02)
        bag = np.add(curves.lid(side, np.linspace(-0.8, 0.7, 9), 1), [0, 0.07])
        texture.stroke(bag, 0.02, deep, 0.15 + 0.35 * traits.age, 0.012)
    texture.fill(ellipse((0, traits.nose_length + 0.04), 0.15, 0.1), rose, 0.2, 0.05)
    for row in range(3):
        y = -0.5 - 0.12 * row
        line = np.stack([np.linspace(-0.45, 0.45, 9), y + 0.03 * np.cos(np.linspace(-3, 3, 9))], 1)
        texture.stroke(line, 0.016, deep, 0.5 * traits.age * (max(traits.brow_raise) > 0.0), 0.01)


def _paint_beard(texture: Canvas, traits: Traits, curves: Curves) -> None:
    """Paint a full beard or stubble, or a goatee or moustache with hair on the upper lip."""
    if traits.beard == "none":
        return
    if traits.beard in ("stubble", "full"):
        half = [
            (0, 0.74), (0.2, 0.74), (0.48, 0.98), (0.74, 0.72), (0.95, 0.2), (1.2, 0.2), (1.2, 2),
        ]  # fmt: skip
        shapes = [mirrored(np.array(half))]
    else:
        lip = curves.lip(np.linspace(-1.0, 1.0, 21), "outer_top")
        shapes = [np.concatenate([np.add(lip, [0, 0.03]), lip[::-1] * [0.8, 1] - [0, 0.09]])]
    if traits.beard == "goatee":
        mouth, chin = traits.mouth_y, curves.jaw(np.array([0.5]))[0, 1]
        goatee = ellipse((0, 0.5 * (mouth + 0.08 + chin)), 0.3, 0.5 * (chin - mouth) + 0.05)
        shapes.insert(0, goatee)
    opacity = 0.22 if traits.beard == "stubble" else 0.85
    for shape in shapes:
        texture.fill(shape, traits.hair, opacity, 0.03)


def _paint_nose(texture: Canvas, traits: Traits, curves: Curves) -> None:
    dark = traits.skin * [0.5, 0.38, 0.36]
    base = curves.nose_base(np.linspace(-0.95, 0.95, 21))
    texture.stroke(base, 0.03, dark, 0.4, 0.012)
    wing = curves.nose_base(np.array([1.0]))[0]
    for side in (-1, 1):
        nostril = ellipse((side * wing[0] * 0.48, wing[1] + 0.005), 0.055, 0.027, side * 0.25)
        texture.fill(nostril, dark * 0.45, 0.9, 0.006)
        crease = np.array([(-0.03, -0.13), (0.015, -0.07), (0.015, 0.0), (-0.04, 0.035)]) + wing
        crease = smooth(crease * (side, 1), 11)
        texture.stroke(crease, 0.022, dark, 0.55, 0.008)


def _paint_mouth(texture: Canvas, traits: Traits, curves: Curves) -> None:
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
        texture.fill(ellipse(corner, 0.03, 0.025), traits.lips * 0.4, 0.5, 0.012)


def _paint_open_mouth(texture: Canvas, traits: Traits, inner: np.ndarray) -> None:
    texture.fill(inner, (58, 16, 18))
    top, low = inner[:, 1].min(), inner[:, 1].max()
    half = inner[:, 0].max()
    tongue = ellipse((0, low + 0.02), 0.6 * half, 0.35 * (low - top))
    texture.fill(tongue, (176, 78, 80), 0.9, 0.015, clip=inner)
    teeth = inner * (0.92, 1)
    teeth[:, 1] = np.minimum(teeth[:, 1], top + 0.09 + 0.03 * (teeth[:, 0] / half) ** 2)
    texture.fill(teeth, (238, 232, 220), 0.95, 0.004, clip=inner)
    gaps = [np.array([(x, top - 0.05), (x, top + 0.08)]) for x in np.linspace(-0.6, 0.6, 7) * half]
    texture.fill([ribbon(gap, 0.008) for gap in gaps], (150, 136, 124), 0.35)


def _paint_eye(texture: Canvas, traits: Traits, curves: Curves, side: int) -> None:
    opening, center = curves.lids(side), curves.iris(side)
    u = np.linspace(-1, 1, 21)
    upper, lower = curves.lid(side, u, -1), curves.lid(side, u, 1)
    dark = traits.skin * [0.42, 0.34, 0.32]
    has_make_up = traits.attributes["make_up"]
    lid = np.concatenate([upper, (upper + np.stack([0 * u, -0.1 * (1.15 - u**2)], 1))[::-1]])
    texture.fill(lid, traits.eye_shadow, 0.8 if has_make_up else 0.35, 0.025)
    crease = upper + np.stack([0 * u, -0.055 * (1.1 - u**2) ** 0.5], 1)
    texture.stroke(crease[2:-1], 0.018, dark, 0.45, 0.007)

    texture.fill(opening, (236, 232, 228))
    tear = ellipse(curves.lid(side, [-0.97], 1)[0], 0.04, 0.02)
    texture.fill(tear, (214, 140, 130), 0.8, 0.006, opening)
    texture.fill(ellipse(center, 0.085, 0.085), traits.iris * 0.55, 1.0, 0.003, opening)
    texture.fill(ellipse(center, 0.068, 0.068), traits.iris * 1.1 + 12, 1.0, 0.01, opening)
    texture.fill(ellipse(center, 0.036, 0.036), (10, 8, 8), 1.0, 0.003, opening)
    texture.fill(ribbon(np.add(upper, [0, 0.015]), 0.05), (0, 0, 0), 0.4, 0.012, opening)
    spark = np.add(center, [0.035 * np.sign(traits.light[0]), -0.032])
    texture.fill(ellipse(spark, 0.016, 0.016), (255, 255, 255), 0.95, 0.002, opening)

    width = (0.014 + 0.016 * (u + 1) / 2) * (1.6 if has_make_up else 1.0)
    texture.stroke(upper, width, (22, 16, 16), 0.95)
    texture.stroke(lower, 0.012, dark, 0.8 if has_make_up else 0.55, 0.003)


def _paint_brow(texture: Canvas, traits: Traits, curves: Curves, side: int) -> None:
    s = np.linspace(0, 1, 21)
    upper, lower = curves.brow(side, s, -1), curves.brow(side, s, 1)
    color = np.minimum(traits.hair * 0.8, 110)
    texture.fill(np.concatenate([upper, lower[::-1]]), color, 0.82, 0.004)
    root = np.linspace(0.02, 0.85, 14)
    ends = zip(curves.brow(side, root, 1), curves.brow(side, root + 0.12, -1), strict=True)
    texture.fill([ribbon(np.stack(pair), 0.012) for pair in ends], color * 0.6, 0.5)


def hair_region(traits: Traits) -> np.ndarray | None:
    """Polygon of the hair on the front of the head; None for a bald head."""
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
    return np.concatenate([smooth(edge, 61), [(1.4, -1.8), (-1.4, -1.8)]])


def _paint_hair(texture: Canvas, traits: Traits) -> None:
    region = hair_region(traits)
    if region is not None:
        texture.fill(np.add(region, [0, 0.04]), traits.skin * 0.5, 0.4, 0.04)
        texture.fill(region, traits.hair)


def _paint_mask(texture: Canvas, cover: Canvas, traits: Traits) -> None:
    top = [
        (-1.1, 0.42), (-0.7, 0.42), (-0.25, 0.3), (0, 0.22), (0.25, 0.3), (0.7, 0.42), (1.1, 0.42),
    ]  # fmt: skip
    top = smooth(top, 31)
    region = np.concatenate([top, [(1.1, 1.2), (0.9, 2.2), (-0.9, 2.2), (-1.1, 1.2)]])
    color = 0.5 * traits.occluder_color + 110
    texture.fill(region, color)
    for y in (0.75, 0.95, 1.15):
        pleat = np.stack([np.linspace(-0.85, 0.85, 9), y + 0.05 * np.linspace(-1, 1, 9) ** 2], 1)
        texture.stroke(pleat, 0.025, color * 0.75, 0.6, 0.008)
    texture.stroke(top, 0.04, color * 0.85, 0.8)
    cover.fill(region, 255.0)


def _paint_strands(texture: Canvas, cover: Canvas, traits: Traits) -> None:
    side = np.sign(traits.occluder_at[0])
    for i in range(5):
        x = 0.95 - 0.17 * i
        lock = np.array([(0.1, -1.3), (x - 0.2, -0.7), (x, -0.1), (x + 0.06, 0.55 - 0.1 * i)])
        lock = smooth(lock * (side, 1), 15)
        width = 0.26 * np.linspace(1, 0.15, 15)
        texture.stroke(lock, width, traits.hair * (0.85 + 0.08 * i), 1.0, 0.004)
        cover.stroke(lock, width, 255.0)
