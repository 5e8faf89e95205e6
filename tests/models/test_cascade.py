import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax import geometry
from lcgcn_jax.models import cascade
from lcgcn_jax.models.cascade import CascadeConfig, MeanShapeCascade
from lcgcn_jax.models.connectivity import StaticEdges

B, K, C, SIDE = 2, 5, 6, 8
SMALL = CascadeConfig(width=8, blocks=2, fine_steps=3)
RNG = np.random.default_rng(0)
SHAPE = jnp.asarray(RNG.normal(size=(K, 2)), jnp.float32)
MAPS = jnp.asarray(RNG.normal(size=(B, SIDE, SIDE, C)), jnp.float32)
PEAKS = jnp.asarray(RNG.uniform(size=(B, K, 2)), jnp.float32)
CONFIDENCE = jnp.ones((B, K))
HEAT = jnp.zeros((B, SIDE, SIDE, K))


def make(config=SMALL):
    model = MeanShapeCascade(config, K, C, rngs=nnx.Rngs(0))
    model.mean_shape.set_value(SHAPE)
    return model


def run(model, maps=MAPS, peaks=PEAKS):
    return model(peaks, CONFIDENCE, model.read(maps, HEAT, peaks), train=False)


def stirred(model):
    """The same model away from its start, where nothing moves."""
    rng = np.random.default_rng(1)
    for weight in (model.transform, model.displacement.own, model.displacement.neighbor):
        weight.set_value(jnp.asarray(0.05 * rng.normal(size=weight.shape), jnp.float32))
    return model


def test_starts_as_the_mean_shape_in_the_crop_around_its_box():
    fine_steps, edges = run(make())
    assert fine_steps.shape == (B, 1 + SMALL.fine_steps, K, 2)
    assert edges.shape == (B, K, K)
    box = geometry.box_of_landmarks(np.asarray(SHAPE, np.float64), np.ones(K, bool))
    in_crop = geometry.transform_points(
        geometry.crop_transform(box, 64), np.asarray(SHAPE, np.float64)
    )
    for position in fine_steps.reshape(-1, K, 2):
        np.testing.assert_allclose(position * 64 - 0.5, in_crop, atol=1e-3)


def test_coarse_turn_moves_all_points_by_one_transformation_and_the_fine_ones_do_not():
    fine_steps, _ = run(stirred(make()))
    start = cascade.placed_in_crop(SHAPE)
    for b in range(B):
        # Points before and after are related by one 3 x 3 matrix: a homography fits them exactly.
        rest = [homography_residual(start, fine_steps[b, t]) for t in (0, 1)]
        assert rest[0] < 1e-5 < 1e-3 < rest[1]


def homography_residual(before, after):
    """Smallest singular value of the direct linear transformation, of 5 points."""
    rows = []
    for (x, y), (u, v) in zip(np.asarray(before), np.asarray(after), strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, -u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, -v])
    return np.linalg.svd(np.array(rows))[1][-1]


@pytest.mark.slow
def test_peaks_are_not_used_and_features_are_read_again_at_every_turn():
    model = stirred(make())
    np.testing.assert_array_equal(run(model)[0], run(model, peaks=PEAKS + 0.1)[0])
    fine_steps = run(model)[0]
    again = jax.grad(lambda maps: run(model, maps)[0][:, 2].sum())(MAPS)
    first = jax.grad(lambda maps: run(model, maps)[0][:, 1].sum())(MAPS)
    read = [np.asarray(g != 0).any(axis=-1) for g in (first, again)]
    assert (read[1] & ~read[0]).any(), "cells that only the next turn reads"
    assert not np.allclose(fine_steps[:, 1], fine_steps[:, 2])


@pytest.mark.slow
def test_edges_are_the_same_for_all_images_and_learned_in_both_stages():
    model = stirred(make())
    edges = run(model)[1]
    np.testing.assert_array_equal(edges[0], edges[1])
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    gradients = jax.grad(lambda p: (run(nnx.merge(graphdef, p, rest))[0] ** 2).sum())(params)
    for stage in ("coarse", "fine"):
        assert np.abs(gradients[stage]["connectivity"]["logits"][...]).max() > 0
    assert isinstance(model.fine.connectivity, StaticEdges)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CascadeConfig)])
def test_every_size_matters(field):
    larger = make(dataclasses.replace(SMALL, **{field: 2 * getattr(SMALL, field)}))
    count = [
        sum(p.size for p in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (make(), larger)
    ]
    if field == "fine_steps":
        assert count[0] == count[1]
        assert run(larger)[0].shape[1] == 1 + 2 * SMALL.fine_steps
    else:
        assert count[1] > count[0]


def test_perspective_is_the_identity_at_0_and_an_affine_without_its_last_two():
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
    moved = cascade.apply_perspective(p, points)
    divisor = 1 + (np.asarray(points) - 0.5) @ np.asarray(p[:, 6:])[..., None]
    np.testing.assert_allclose((moved - 0.5) * divisor, affine - 0.5, atol=1e-5)
