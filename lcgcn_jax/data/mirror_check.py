"""Check of a scheme's mirror pairs against the mean face of annotated faces."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lcgcn_jax.data.annotation_offsets import similarity_factor, to_complex, to_pairs
from lcgcn_jax.landmarks import LandmarkScheme

_MAX_FACES = 1000
_MAX_ROLL = 45  # degrees
_SMALL_ROLL = 9  # degrees
_MAX_NAMES = 6
_MIN_SIZE = 1e-3  # of a face


def mirror_pair_note(
    scheme: LandmarkScheme,
    landmarks: Sequence[Float[np.ndarray, "k 2"]],
    visible: Sequence[Bool[np.ndarray, "k"]],
) -> str | None:
    """Note about landmarks that do not lie opposite their mirror partner in the mean face.

    The mean face is mirrored at the vertical axis that fits most pairs. A landmark is reported if its
    mirror image is far from its partner, compared with the other landmarks and with the variation that
    turned heads cause in a small number of faces.

    Args:
      landmarks: pixels, per face.

    Returns:
      A note of one line, or None.
    """
    if not landmarks or scheme.mirror == tuple(range(scheme.num_landmarks)):
        return None
    # Sample evenly, because different parts of the list may have different conventions.
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
    # Faces with opposite orders of points cancel out.
    if np.ptp(mean[compared], axis=0).max() < _MIN_SIZE:
        return None
    limit = 0.12 + 0.4 / math.sqrt(num_faces)
    # The mean of few faces may be rolled. But wrong pairs may fit best at a large roll: then try a small one.
    for max_roll in (_MAX_ROLL, _SMALL_ROLL):
        wrong = _far_points(mean, mirror, compared, max_roll, limit)
        if not wrong:
            return None
    pairs = list(dict.fromkeys(tuple(sorted((i, int(mirror[i])))) for i in wrong))
    texts = [
        f"{scheme.names[i]} and {scheme.names[j]}" if i != j else f"{scheme.names[i]} (no partner)"
        for i, j in pairs
    ]
    more = f" and {len(texts) - _MAX_NAMES} more" if len(texts) > _MAX_NAMES else ""
    return (
        f"{scheme.name}: in the mean face of {num_faces} faces these do not lie opposite each other: "
        f"{', '.join(texts[:_MAX_NAMES])}{more}; check mirror_pairs, and the order of the points"
    )


def _mean_face(points: Float[np.ndarray, "n k 2"]) -> tuple[Float[np.ndarray, "k 2"], int]:
    """Mean of the faces after alignment, and their number; NaN marks missing points."""
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
    # Align to the first mean: missing points change the center and size of a face.
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
    """Align a face to the reference by the least-squares similarity."""
    common = np.all(np.isfinite(face) & np.isfinite(reference), axis=1)
    factor = similarity_factor(face, reference, common)
    if factor == 0:
        return face
    source, target = to_complex(face), to_complex(reference)
    return to_pairs(factor * (source - source[common].mean()) + target[common].mean())


def _far_points(
    mean: Float[np.ndarray, "k 2"],
    mirror: np.ndarray,
    compared: Bool[np.ndarray, "k"],
    max_roll: int,
    limit: float,
) -> list[int]:
    """Indices of points that lie far from the mirror image of their partner.

    The roll of the mean face minimizes the sum of distances. It is limited, because an eye and the mouth
    corner below it would be opposite at 90 degrees. Distances are relative to the size of the face.
    """
    size = np.ptp(mean[compared], axis=0).max()
    best = np.full(compared.sum(), np.inf)
    for degrees in range(-max_roll, max_roll + 1, 3):
        angle = math.radians(degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        rotated = mean @ np.array([[cos, sin], [-sin, cos]])
        partners = rotated[mirror[compared]]
        axis = np.median((rotated[compared, 0] + partners[:, 0]) / 2)
        mirrored = rotated[compared] * [-1, 1] + [2 * axis, 0]
        distances = np.linalg.norm(mirrored - partners, axis=1) / size
        if distances.sum() < best.sum():
            best = distances
    # Turned heads move all points a little. Wrong pairs move some points, or all of them far.
    limit = min(max(limit, 3 * float(np.median(best))), 0.5)
    return np.flatnonzero(compared)[best > limit].tolist()
