import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.heatmaps import sample
from lcgcn_jax.models.config import GraphConfig
from lcgcn_jax.models.graph_head import GraphHead
from lcgcn_jax.models.patch_refiner import SIDE, PatchRefiner

B, K, C, HH, HW = 2, 5, 6, 12, 16
RNG = np.random.default_rng(0)
MAPS = jnp.asarray(RNG.normal(size=(B, HH, HW, C)), jnp.float32)
HEATMAPS = jnp.asarray(RNG.uniform(size=(B, HH, HW, K)), jnp.float32)
POSITIONS = jnp.asarray(RNG.uniform(0.3, 0.7, size=(B, K, 2)), jnp.float32)
PIXELS = POSITIONS * jnp.array([[[HW, HH]]], jnp.float32) - 0.5
CONFIDENCE = jnp.asarray(RNG.uniform(0.2, 1.0, size=(B, K)), jnp.float32)
EDGES = jax.nn.softmax(jnp.asarray(RNG.normal(size=(B, K, K)), jnp.float32), axis=-1)


def randomize(model):
    """Set all parameters to random values; the output weights start at 0."""
    for weight in jax.tree.leaves(
        nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Param)
    ):
        weight.set_value(jnp.asarray(0.3 * RNG.normal(size=weight.shape), jnp.float32))
    return model


def make():
    return randomize(PatchRefiner(K, C, rngs=nnx.Rngs(0)))


@nnx.jit
def run(refiner, positions=POSITIONS, edges=EDGES, maps=MAPS, heatmaps=HEATMAPS):
    return refiner(positions, jnp.log(CONFIDENCE), edges, maps, heatmaps)


def test_initial_refiner_is_the_identity():
    fresh = PatchRefiner(K, C, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(run(fresh), POSITIONS)


def test_refiner_matches_a_loop_over_landmarks():
    refiner = make()
    refined = np.asarray(run(refiner))
    size = np.array([HW, HH])
    for b in range(B):
        pixels = np.asarray(POSITIONS[b]) * size - 0.5
        nodes = []
        for i in range(K):
            offsets = [(dx, dy) for dy in range(-2, 3) for dx in range(-2, 3)]
            window = jnp.asarray(pixels[i] + np.array(offsets), jnp.float32)[None]
            features = sample(MAPS[b : b + 1], window, bilinear=True)[0] @ refiner.project[...]
            patch = sample(HEATMAPS[b : b + 1], window, bilinear=True)[0, :, i]
            node = jnp.concatenate(
                [
                    features.ravel(),
                    patch,
                    jnp.log(CONFIDENCE[b, i : i + 1]),
                    refiner.classes[...][i],
                ]
            )
            nodes.append(jax.nn.relu(node @ refiner.embedding[...]))
        nodes = np.array(nodes)
        for conv, activate in ((refiner.hidden, jax.nn.relu), (refiner.displacement, jnp.asarray)):
            outputs = []
            for i in range(K):
                total = 0
                for j in range(K):
                    offset = np.asarray(POSITIONS[b, i] - POSITIONS[b, j]) * size
                    message = nodes[j] @ conv.neighbor[...] + offset @ conv.shape[...]
                    total = total + EDGES[b, i, j] * message
                outputs.append(activate(nodes[i] @ conv.node[...] + conv.bias[...] + total))
            nodes = np.array(outputs)
        np.testing.assert_allclose(refined[b], POSITIONS[b] + nodes / size, atol=2e-5)


def test_only_the_patch_and_only_the_heatmap_of_the_landmark_have_an_effect():
    refiner = make()
    self_only = jnp.eye(K)[None].repeat(B, axis=0)

    def energy(maps, heatmaps):
        refined = refiner(POSITIONS, jnp.log(CONFIDENCE), self_only, maps, heatmaps)
        return (refined[:, :1] ** 2).sum()

    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(MAPS, HEATMAPS)
    rows, columns = np.nonzero(np.asarray(gradients[0][0] != 0).any(axis=-1))
    assert np.ptp(rows) <= SIDE
    assert np.ptp(columns) <= SIDE
    x, y = np.asarray(POSITIONS[0, 0]) * [HW, HH] - 0.5
    assert abs(rows.mean() - y) < 1
    assert abs(columns.mean() - x) < 1
    assert np.abs(gradients[1][..., 0]).max() > 0
    np.testing.assert_array_equal(gradients[1][..., 1:], 0)


@pytest.mark.slow
def test_each_stage_samples_at_the_landmarks_of_the_previous_one():
    config = GraphConfig(
        output="residual",
        sampling="bilinear",
        refinements=2,
        norm="none",
        embedding_widths=(7, 3),
        gcn_widths=(6, 2),
    )
    head = randomize(GraphHead(config, K, C, bn_momentum=0.9, rngs=nnx.Rngs(0)))

    def run_head(maps):
        features = head.select_features(maps, HEATMAPS, PIXELS)
        return head(POSITIONS, CONFIDENCE, features, train=False)[0]

    stages = run_head(MAPS)
    assert stages.shape == (B, 3, K, 2)
    displacements = np.abs(np.diff(stages, axis=1)).min(axis=(0, 2, 3))
    assert (displacements > 0).all()
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def trained_by(stage):
        @jax.jit
        def total(p):
            model = nnx.merge(graphdef, p, rest)
            features = model.select_features(MAPS, HEATMAPS, PIXELS)
            return (model(POSITIONS, CONFIDENCE, features, train=False)[0][:, stage] ** 2).sum()

        flat = nnx.to_flat_state(jax.grad(total)(params))
        return {path[:2] for path, value in flat if np.abs(value[...]).max() > 0}

    # Patch positions are constants, so the loss of a stage does not train the previous one.
    first, second = ("refinements", 0), ("refinements", 1)
    trained = trained_by(1)
    assert first in trained
    assert second not in trained
    trained = trained_by(2)
    assert second in trained
    assert first not in trained
