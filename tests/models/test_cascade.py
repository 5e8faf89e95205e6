import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax import geometry
from lcgcn_jax.models import cascade
from lcgcn_jax.models.cascade import MeanShapeCascade
from lcgcn_jax.models.config import CascadeConfig
from lcgcn_jax.models.connectivity import StaticEdges

B, K, C, SIDE = 2, 5, 6, 8
SMALL = CascadeConfig(width=8, blocks=2, fine_steps=3)
RNG = np.random.default_rng(0)
SHAPE = jnp.asarray(RNG.normal(size=(K, 2)), jnp.float32)
MAPS = jnp.asarray(RNG.normal(size=(B, SIDE, SIDE, C)), jnp.float32)
PEAKS = jnp.asarray(RNG.uniform(size=(B, K, 2)), jnp.float32)
CONFIDENCE = jnp.ones((B, K))
HEATMAPS = jnp.zeros((B, SIDE, SIDE, K))


def make(config=SMALL):
    model = MeanShapeCascade(config, K, C, rngs=nnx.Rngs(0))
    model.mean_shape.set_value(SHAPE)
    return model


def forward(model, maps=MAPS, peaks=PEAKS):
    return model(peaks, CONFIDENCE, model.select_features(maps, HEATMAPS, peaks), train=False)


run = nnx.jit(forward)


def randomize(model):
    """Set the output weights, which start at 0, to random values."""
    rng = np.random.default_rng(1)
    for weight in (model.transform, model.displacement.node, model.displacement.neighbor):
        weight.set_value(jnp.asarray(0.05 * rng.normal(size=weight.shape), jnp.float32))
    return model


def test_initial_output_is_the_mean_shape_in_the_crop_of_its_box():
    fine_steps, edges = run(make())
    assert fine_steps.shape == (B, 1 + SMALL.fine_steps, K, 2)
    assert edges.shape == (B, K, K)
    box = geometry.box_of_landmarks(np.asarray(SHAPE, np.float64), np.ones(K, bool))
    in_crop = geometry.transform_points(
        geometry.crop_transform(box, 64), np.asarray(SHAPE, np.float64)
    )
    for position in fine_steps.reshape(-1, K, 2):
        np.testing.assert_allclose(position * 64 - 0.5, in_crop, atol=1e-3)


def test_only_the_coarse_stage_is_one_transformation_of_all_landmarks():
    fine_steps, _ = run(randomize(make()))
    start = cascade.placed_in_crop(SHAPE)
    for b in range(B):
        # After the coarse stage a homography fits the landmarks exactly.
        residuals = [homography_residual(start, fine_steps[b, t]) for t in (0, 1)]
        assert residuals[0] < 1e-5 < 1e-3 < residuals[1]


def homography_residual(before, after):
    """Smallest singular value of the direct linear transformation for 5 points."""
    rows = []
    for (x, y), (u, v) in zip(np.asarray(before), np.asarray(after), strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, -u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, -v])
    return np.linalg.svd(np.array(rows))[1][-1]


@pytest.mark.slow
def test_every_stage_samples_features_and_none_uses_the_peaks():
    model = randomize(make())
    np.testing.assert_array_equal(forward(model)[0], forward(model, peaks=PEAKS + 0.1)[0])
    fine_steps = forward(model)[0]
    gradients = [
        jax.grad(lambda maps, i=i: forward(model, maps)[0][:, i].sum())(MAPS) for i in (1, 2)
    ]
    is_read = [np.asarray(gradient != 0).any(axis=-1) for gradient in gradients]
    assert (is_read[1] & ~is_read[0]).any(), "pixels that only the next step reads"
    assert not np.allclose(fine_steps[:, 1], fine_steps[:, 2])


@pytest.mark.slow
def test_edges_are_static_and_learned_in_both_stages():
    model = randomize(make())
    edges = forward(model)[1]
    np.testing.assert_array_equal(edges[0], edges[1])
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    gradients = jax.grad(lambda p: (forward(nnx.merge(graphdef, p, rest))[0] ** 2).sum())(params)
    for stage in ("coarse", "fine"):
        assert np.abs(gradients[stage]["connectivity"]["logits"][...]).max() > 0
    assert isinstance(model.fine.connectivity, StaticEdges)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CascadeConfig)])
def test_every_option_changes_the_model(field):
    larger = make(dataclasses.replace(SMALL, **{field: 2 * getattr(SMALL, field)}))
    count = [
        sum(p.size for p in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (make(), larger)
    ]
    if field == "fine_steps":
        assert count[0] == count[1]
        assert forward(larger)[0].shape[1] == 1 + 2 * SMALL.fine_steps
    else:
        assert count[1] > count[0]


def test_perspective_is_the_identity_at_0_and_affine_without_its_last_two_parameters():
    points = PEAKS
    np.testing.assert_allclose(
        cascade.apply_perspective(jnp.zeros((B, 8)), points), points, atol=1e-6
    )
    p = jnp.asarray(RNG.normal(size=(B, 8)) * 0.1, jnp.float32)
    affine = cascade.apply_perspective(p.at[:, 6:].set(0.0), points)
    for b in range(B):
        a = np.asarray(p[b])
        matrix = np.array([[1 + a[0], a[1], a[2]], [a[3], 1 + a[4], a[5]]])
        expected = (np.asarray(points[b]) - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
        np.testing.assert_allclose(affine[b], expected, atol=1e-5)
    transformed = cascade.apply_perspective(p, points)
    divisor = 1 + (np.asarray(points) - 0.5) @ np.asarray(p[:, 6:])[..., None]
    np.testing.assert_allclose((transformed - 0.5) * divisor, affine - 0.5, atol=1e-5)
