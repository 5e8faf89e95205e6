"""Random traits of a synthetic face: proportions, expression, pose, colors, style and camera."""

import types
from typing import Any

import numpy as np

from lcgcn_jax.data.formats.wflw import WFLW_ATTRIBUTES

ATTRIBUTES = WFLW_ATTRIBUTES

_SKINS = [
    (253, 224, 202), (242, 202, 174), (228, 178, 142), (205, 148, 108), (166, 112, 78), (122, 79, 54),
    (84, 54, 38),
]  # fmt: skip
_HAIRS = [
    (24, 20, 20), (38, 28, 24), (66, 44, 30), (98, 66, 42), (124, 62, 36), (186, 146, 92),
    (218, 190, 140), (150, 148, 146), (214, 212, 208),
]  # fmt: skip
_IRISES = [
    (62, 38, 24), (84, 54, 30), (112, 88, 48), (90, 120, 90), (84, 124, 160), (110, 130, 142),
]  # fmt: skip
_LIPSTICKS = [(190, 24, 44), (150, 16, 60), (214, 60, 96), (120, 24, 40), (226, 84, 60)]
_EYE_SHADOWS = [(70, 60, 130), (40, 90, 110), (120, 50, 90), (60, 44, 44), (150, 90, 40)]
_TINTS = [(1.3, 0.8, 0.5), (0.6, 0.85, 1.35), (1.25, 0.65, 1.1), (0.75, 1.2, 0.7)]


class Traits(types.SimpleNamespace):
    """All random traits of a face except its noise; the `_sample_` functions below define them."""


def sample_traits(rng: np.random.Generator) -> Traits:
    """Sample the traits; attributes are independent, and each one exaggerates its group of traits."""
    flags = {name: bool(rng.random() < 0.2) for name in ATTRIBUTES}
    return Traits(
        attributes=flags,
        **_sample_identity(rng),
        **_sample_expression(rng, flags["expression"]),
        **_sample_pose(rng, flags["pose"]),
        **_sample_colors(rng, flags["make_up"]),
        **_sample_style(rng, flags["make_up"]),
        **_sample_occluder(rng, flags["occlusion"]),
        **_sample_camera(rng, flags["illumination"], flags["blur"]),
    )


def _sample_identity(rng: np.random.Generator) -> dict[str, Any]:
    """Sample the proportions of the head, in face units."""
    return {
        "jaw_width": rng.normal(0, 0.05),
        "jaw_square": rng.uniform(-0.02, 0.06),
        "chin": rng.normal(1.0, 0.04),
        "eye_x": rng.normal(0.455, 0.014),
        "eye_width": rng.normal(0.182, 0.009),
        "eye_tilt": rng.normal(0.01, 0.014),
        "brow_y": rng.normal(-0.25, 0.02),
        "brow_arch": rng.uniform(0.03, 0.11),
        "brow_thick": rng.uniform(0.05, 0.1),
        "nose_length": rng.normal(0.5, 0.03),
        "nose_width": rng.normal(0.2, 0.022),
        "nose_height": rng.normal(0.36, 0.05),
        "mouth_y": rng.normal(0.945, 0.025),
        "mouth_width": rng.normal(0.37, 0.025),
        "lip": rng.uniform(0.7, 1.25),
        "age": rng.random() ** 2,
    }


def _sample_expression(rng: np.random.Generator, is_exaggerated: bool) -> dict[str, Any]:
    """Sample the facial expression; pairs are (left, right)."""
    traits = {
        "jaw_drop": max(0.0, rng.normal(0, 0.06)),
        "smile": rng.normal(0.2, 0.4),
        "frown": rng.uniform(0, 0.3),
        "eye_open": np.full(2, rng.uniform(0.8, 1.15)),
        "brow_raise": np.full(2, rng.normal(0, 0.02)),
        "gaze": rng.normal(0, [0.028, 0.01]).clip(-0.06, 0.06),
    }
    if not is_exaggerated:
        return traits
    eyes, brows = traits["eye_open"], traits["brow_raise"]
    drop, curl = rng.uniform(0, 1, 2)
    moods = [
        {"jaw_drop": 0.15 + 0.15 * drop, "smile": 1.1 + 0.6 * curl, "eye_open": 0.7 * eyes},
        {"jaw_drop": 0.35 + 0.15 * drop, "smile": -0.3 + 0.9 * curl, "frown": 1.0},
        {"jaw_drop": 0.0, "smile": -1.0 - 0.5 * curl, "frown": 1.2},
        {"jaw_drop": 0.25 + 0.2 * drop, "smile": -0.2, "eye_open": 1.35 * eyes,
         "brow_raise": brows + 0.1 + 0.05 * curl},
        {"eye_open": 0.4 * eyes, "frown": 0.8, "smile": curl},
        {"eye_open": eyes * rng.permutation([0.3, 1.0]), "smile": 1.2},
    ]  # fmt: skip
    return traits | moods[rng.integers(len(moods))]


def _sample_pose(rng: np.random.Generator, is_extreme: bool) -> dict[str, Any]:
    """Sample the rotation angles in radians, and the size and position in the image."""
    limit = np.array([0.42, 0.2, 0.25])
    angles = rng.normal(0, [0.17, 0.08, 0.09]).clip(-limit, limit)
    if is_extreme:
        axis = rng.choice([0, 0, 1, 2])
        low, high = [(0.6, 0.85), (0.3, 0.45), (0.4, 0.7)][axis]
        angles[axis] = rng.choice([-1, 1]) * rng.uniform(low, high)
    yaw, pitch, roll = angles
    position = {"extent": rng.uniform(0.46, 0.58), "offset": rng.uniform(-0.5, 0.5, 2)}
    return {"yaw": yaw, "pitch": pitch, "roll": roll} | position


def _sample_colors(rng: np.random.Generator, has_make_up: bool) -> dict[str, Any]:
    """Sample the RGB colors (0..255) of skin, hair, irises and make-up."""
    tone = rng.uniform(0, len(_SKINS) - 1)
    skin = [
        np.interp(tone, np.arange(len(_SKINS)), channel) for channel in zip(*_SKINS, strict=True)
    ]
    skin = (np.array(skin) + rng.normal(0, 5, 3)).clip(30, 252)
    fair = skin.mean() > 150
    colors = {
        "skin": skin,
        "hair": rng.choice(_HAIRS if fair else _HAIRS[:3]) * rng.uniform(0.9, 1.1),
        "iris": rng.choice(_IRISES if fair else _IRISES[:2]).astype(np.float64),
        "lips": skin * [0.86, 0.6, 0.6] + [14, 4, 6],
        "eye_shadow": skin * 0.8,
        "blush": rng.uniform(0, 0.18),
        "freckles": rng.random() * (fair and rng.random() < 0.2),
    }
    if has_make_up:
        colors["lips"] = rng.choice(_LIPSTICKS).astype(np.float64)
        colors["eye_shadow"] = rng.choice(_EYE_SHADOWS).astype(np.float64)
        colors["blush"] = rng.uniform(0.35, 0.55)
    return colors


def _sample_style(rng: np.random.Generator, has_make_up: bool) -> dict[str, Any]:
    """Sample hair, beard, clothes and glasses."""
    haircut = str(rng.choice(["bald", "short", "short", "short", "fringe", "long", "long", "bob"]))
    beard = str(rng.choice(["none", "none", "none", "stubble", "full", "goatee", "moustache"]))
    return {
        "haircut": haircut,
        "hair_volume": rng.uniform(0.04, 0.12) + 0.1 * (haircut != "short") * rng.random(),
        "hairline": rng.uniform(-0.92, -0.72),
        "parting": rng.uniform(-0.5, 0.5),
        "beard": "none" if has_make_up or haircut in ("long", "bob") else beard,
        "glasses": bool(rng.random() < 0.15),
        "cloth": muted_colors(rng, 1)[0],
    }


def _sample_occluder(rng: np.random.Generator, is_present: bool) -> dict[str, Any]:
    """Sample the occluder, and its position on the frontal plane."""
    kinds = ["sunglasses", "mask", "hand", "object", "scarf", "strands"]
    return {
        "occluder": str(rng.choice(kinds)) if is_present else "none",
        "occluder_color": muted_colors(rng, 1)[0],
        "occluder_at": rng.uniform([-0.5, -0.1], [0.5, 1.2]),
        "occluder_angle": rng.uniform(-1, 1),
    }


def _sample_camera(
    rng: np.random.Generator, is_hard_light: bool, is_blurred: bool
) -> dict[str, Any]:
    """Sample light, exposure and blur; `blur` is a fraction of the image side, `motion` an angle or NaN."""
    angle, elevation = rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.7)
    light = {
        "ambient": rng.uniform(0.5, 0.66),
        "diffuse": rng.uniform(0.4, 0.55),
        "gain": rng.uniform(0.9, 1.1),
        "tint": rng.uniform(0.96, 1.04, 3),
    }
    if is_hard_light:
        kind = rng.choice(["side", "dark", "bright", "colored"])
        if kind == "side":
            angle = np.sign(angle) * rng.uniform(1.1, 1.4)
        light |= {
            "side": {"ambient": 0.16, "diffuse": 1.0},
            "dark": {"gain": rng.uniform(0.25, 0.42)},
            "bright": {"gain": rng.uniform(1.5, 1.8), "diffuse": 0.7},
            "colored": {"tint": rng.choice(_TINTS)},
        }[kind]
    towards = np.array([np.sin(angle), -np.sin(elevation), np.cos(angle)])
    return light | {
        "light": towards / np.linalg.norm(towards),
        "blur": rng.uniform(0.009, 0.018) if is_blurred else rng.uniform(0, 0.0025),
        "motion": rng.uniform(0, np.pi) if is_blurred and rng.random() < 0.4 else np.nan,
    }


def muted_colors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Sample colors `[n 3]` of any brightness and low saturation."""
    return (rng.uniform(25, 225, (n, 1)) + rng.normal(0, 28, (n, 3))).clip(0, 255)
