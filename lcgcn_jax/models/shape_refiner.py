"""Linear shape refinement, and the similarity that fits a mean shape to landmarks."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Positions = Float[Array, "b k 2"]


MAX_YAW = 2.0
"""Bound of the yaw in `ShapeRefiner`, relative to its root mean square over the training faces."""


class ShapeRefiner(nnx.Module):
    """Linear shape refinement: corrects each landmark from the deviations of all others.

    `x_i' = x_i + A (b_i + sum_j M_ij (A^-1 (x_j - t) - m_j))`, where A and t fit the mean shape m to
    the face, weighted by the squared confidences. M_ij is a 2 x 2 matrix per pair, which allows
    negative weights and weights across axes. `gcn.OffsetVoting` has one non-negative weight per pair.

    With `pose_terms`, M and b depend on the yaw of the face: `M + s M' + |s| M''`. s is the projection of the
    deviations to the direction in which they vary with the yaw, with a root mean square of 1 over the
    training faces, clipped to [-2, 2]. Profiles need other corrections than frontal faces. The direction is 0
    until it is fitted.

    Initially the identity. `training.fit_shape_refiner` fits M and b in closed form, because face shapes vary
    mostly in few directions and gradient descent is slow in the others.

    `mean_shape` is set as in `gcn.OffsetVoting`.
    """

    def __init__(self, num_landmarks: int, *, pose_terms: bool = False):
        k = num_landmarks
        self.pose_terms = pose_terms
        self.mean_shape = nnx.BatchStat(jnp.zeros((k, 2), jnp.float32))
        self.transforms = nnx.Param(jnp.zeros((k, k, 2, 2), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((k, 2), jnp.float32))
        if pose_terms:
            self.yaw_direction = nnx.BatchStat(jnp.zeros((k, 2), jnp.float32))
            self.yaw_transforms = nnx.Param(jnp.zeros((2, k, k, 2, 2), jnp.float32))
            self.yaw_bias = nnx.Param(jnp.zeros((2, k, 2), jnp.float32))

    def __call__(self, positions: Positions, confidence: Float[Array, "b k"]) -> Positions:
        transform, canonical = self.to_canonical(positions, confidence)
        deviations = canonical - self.mean_shape[...][None]
        correction = jnp.einsum("ijde,bje->bid", self.transforms[...], deviations)
        correction = correction + self.bias[...][None]
        if self.pose_terms:
            yaw = jnp.einsum("jd,bjd->b", self.yaw_direction[...], deviations)
            yaw = jnp.clip(yaw, -MAX_YAW, MAX_YAW)
            factors = jnp.stack([yaw, jnp.abs(yaw)], axis=-1)
            scaled = jnp.einsum("bt,bje->btje", factors, deviations)
            correction = correction + jnp.einsum(
                "tijde,btje->bid", self.yaw_transforms[...], scaled
            )
            correction = correction + jnp.einsum("bt,tid->bid", factors, self.yaw_bias[...])
        return positions + jnp.einsum("bxd,bid->bix", transform, correction)

    def to_canonical(
        self, positions: Positions, confidence: Float[Array, "b k"]
    ) -> tuple[Float[Array, "b 2 2"], Positions]:
        """Return the transform A of each face, and its landmarks in the canonical frame, `A^-1 (x_j - t)`."""
        mean, weights = self.mean_shape[...], confidence**2
        transform = fit_similarity(mean, positions, weights)
        weights = _normalize(weights)
        translation = jnp.einsum("bk,bkd->bd", weights, positions)
        translation = translation - jnp.einsum("bxd,bk,kd->bx", transform, weights, mean)
        # A is a rotation times a scale, so its inverse is its transpose over the squared scale.
        square = jnp.maximum((transform[:, :, 0] ** 2).sum(axis=-1), 1e-9)[:, None, None]
        centered = positions - translation[:, None]
        return transform, jnp.einsum("bxd,bix->bid", transform, centered) / square


def fit_similarity(
    shape: Float[Array, "k 2"], positions: Positions, weights: Float[Array, "b k"]
) -> Float[Array, "b 2 2"]:
    """Fit rotation and scale (weighted Procrustes analysis).

    Returns:
      The matrix A = [[a, -b], [b, a]] that minimizes sum_i w_i |A m_i + t - p_i|^2 over A and t.
    """
    weights = _normalize(weights)
    m = shape[None] - jnp.einsum("bk,kd->bd", weights, shape)[:, None]
    p = positions - jnp.einsum("bk,bkd->bd", weights, positions)[:, None]
    size = jnp.maximum((weights * (m**2).sum(axis=-1)).sum(axis=-1), 1e-9)
    a = (weights * (m * p).sum(axis=-1)).sum(axis=-1) / size
    b = (weights * (m[..., 0] * p[..., 1] - m[..., 1] * p[..., 0])).sum(axis=-1) / size
    return jnp.stack([jnp.stack([a, -b], axis=-1), jnp.stack([b, a], axis=-1)], axis=-2)


def _normalize(weights: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Scale weights to a sum of 1 per face."""
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-9)
