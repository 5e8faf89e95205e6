"""Check of a scheme's mirror pairs against the mean face of annotated faces."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.landmarks import LandmarkScheme

_MAX_FACES = 1000
_MAX_ROLL = 45  # degrees
_SMALL_ROLL = 9  # degrees
_NAMED = 6
_MIN_SIZE = 1e-3  # of a face


def mirror_pair_note(
    scheme: LandmarkScheme,
    landmarks: Sequence[Float[np.ndarray, "k 2"]],
    visible: Sequence[Bool[np.ndarray, "k"]],
) -> str | None:
    """Name the points whose partner does not lie opposite in the mean face.

    The mean face is mirrored at the vertical axis that suits most pairs; an image of a point that
    lies far from the point's partner, compared with the other points and with what turned heads in
    a small number of faces give, is named.

    Args:
      scheme: the landmarks and their mirror pairs.
      landmarks: pixels, per face.
      visible: which of them are there.

    Returns:
      A remark of one line, or None.
    """
    if not landmarks or scheme.mirror == tuple(range(scheme.num_landmarks)):
        return None
    # Evenly over the list, whose parts may be of different kinds.
    indices = np.linspace(0, len(landmarks) - 1, min(len(landmarks), _MAX_FACES)).astype(int)
    points = np.where(
        np.stack([visible[i] for i in indices])[..., None],
        np.stack([landmarks[i] for i in indices]),
        np.nan,
    )
    mean, num_faces = _mean_face(points)
    known = np.all(np.isfinite(mean), axis=1)
    mirror = np.array(scheme.mirror)
    compared = known & known[mirror]
    if num_faces == 0 or compared.sum() < 3:
        return None
    # Faces whose points are in opposite orders cancel out.
    if np.ptp(mean[compared], axis=0).max() < _MIN_SIZE:
        return None
    limit = 0.12 + 0.4 / math.sqrt(num_faces)
    # Few faces may be rolled; but in search of the roll, wrong pairs turn a face whose roll is small.
    for max_roll in (_MAX_ROLL, _SMALL_ROLL):
        wrong = _far_points(mean, mirror, compared, max_roll, limit)
        if not wrong:
            return None
    pairs = list(dict.fromkeys(tuple(sorted((i, int(mirror[i])))) for i in wrong))
    texts = [
        f"{scheme.names[i]} and {scheme.names[j]}" if i != j else f"{scheme.names[i]} (no partner)"
        for i, j in pairs
    ]
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return (
        f"{scheme.name}: in the mean face of {num_faces} faces these do not lie opposite each other: "
        f"{', '.join(texts[:_NAMED])}{more}; check mirror_pairs, and the order of the points"
    )


def _mean_face(points: Float[np.ndarray, "n k 2"]) -> tuple[Float[np.ndarray, "k 2"], int]:
    """Mean of all faces after each is moved and scaled, and its number of faces; NaN is missing."""
    usable = np.isfinite(points).all(axis=-1).sum(axis=1) >= 2
    points = points[usable]
    if not len(points):
        return np.full(points.shape[1:], np.nan), 0
    low, high = np.nanmin(points, axis=1), np.nanmax(points, axis=1)
    size = (high - low).max(axis=-1)
    points, low, high, size = (values[size > 0] for values in (points, low, high, size))
    if not len(points):
        return np.full(points.shape[1:], np.nan), 0
    normalized = (points - (low + high)[:, None] / 2) / size[:, None, None]
    # A second time against the first mean: a face with missing points has another center and size.
    reference = _mean(normalized)
    aligned = [_aligned(face, reference) for face in normalized]
    return _mean(np.stack(aligned)), len(points)


def _mean(points: Float[np.ndarray, "n k 2"]) -> Float[np.ndarray, "k 2"]:
    present = np.isfinite(points)
    count = present.sum(axis=0)
    total = np.where(present, points, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _aligned(
    face: Float[np.ndarray, "k 2"], reference: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, "k 2"]:
    """The face after the rotation, scale and shift that bring it closest to the reference."""
    common = np.isfinite(face).all(axis=1) & np.isfinite(reference).all(axis=1)
    # Complex numbers: the factor of a least-squares fit is a rotation with a scale.
    source, target = face @ [1, 1j], reference @ [1, 1j]
    shift, goal = source[common].mean(), target[common].mean()
    power = (abs(source[common] - shift) ** 2).sum()
    if power == 0:
        return face
    factor = (np.conj(source[common] - shift) * (target[common] - goal)).sum() / power
    moved = factor * (source - shift) + goal
    return np.stack([moved.real, moved.imag], axis=-1)


def _far_points(
    mean: Float[np.ndarray, "k 2"],
    mirror: np.ndarray,
    compared: Bool[np.ndarray, "k"],
    max_roll: int,
    limit: float,
) -> list[int]:
    """Points that lie far from the mirrored ones of their partners, as parts of the face's size.

    The roll of the mean face is the one with the smallest sum of distances. It is limited, since a
    pair of an eye and the corner of the mouth below it would be opposite at 90 degrees.
    """
    size = np.ptp(mean[compared], axis=0).max()
    best = np.full(compared.sum(), np.inf)
    for degrees in range(-max_roll, max_roll + 1, 3):
        angle = math.radians(degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        turned = mean @ np.array([[cos, sin], [-sin, cos]])
        partners = turned[mirror[compared]]
        axis = np.median((turned[compared, 0] + partners[:, 0]) / 2)
        mirrored = turned[compared] * [-1, 1] + [2 * axis, 0]
        distances = np.linalg.norm(mirrored - partners, axis=1) / size
        if distances.sum() < best.sum():
            best = distances
    # Turned heads move all points; wrong pairs move some of them, or all of them by much.
    limit = min(max(limit, 3 * float(np.median(best))), 0.5)
    return np.flatnonzero(compared)[best > limit].tolist()
