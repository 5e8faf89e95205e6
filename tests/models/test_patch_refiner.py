import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.heatmaps import sample
from lcgcn_jax.models.lcgcn import GraphConfig, GraphHead
from lcgcn_jax.models.patch_refiner import SIDE, PatchRefiner

B, K, C, HH, HW = 2, 5, 6, 12, 16
RNG = np.random.default_rng(0)
MAPS = jnp.asarray(RNG.normal(size=(B, HH, HW, C)), jnp.float32)
HEAT = jnp.asarray(RNG.uniform(size=(B, HH, HW, K)), jnp.float32)
POSITIONS = jnp.asarray(RNG.uniform(0.3, 0.7, size=(B, K, 2)), jnp.float32)
CELLS = POSITIONS * jnp.array([[[HW, HH]]], jnp.float32) - 0.5
CONFIDENCE = jnp.asarray(RNG.uniform(0.2, 1.0, size=(B, K)), jnp.float32)
EDGES = jax.nn.softmax(jnp.asarray(RNG.normal(size=(B, K, K)), jnp.float32), axis=-1)


def stirred(model):
    """A model away from its start, where nothing moves."""
    for weight in jax.tree.leaves(
        nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Param)
    ):
        weight.set_value(jnp.asarray(0.3 * RNG.normal(size=weight.shape), jnp.float32))
    return model


def make():
    return stirred(PatchRefiner(K, C, rngs=nnx.Rngs(0)))


def run(refiner, positions=POSITIONS, edges=EDGES, maps=MAPS, heat=HEAT):
    return refiner(positions, jnp.log(CONFIDENCE), edges, maps, heat)


def test_starts_where_the_last_turn_ended():
    fresh = PatchRefiner(K, C, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(run(fresh), POSITIONS)


def test_is_its_equations_loop_by_loop():
    refiner = make()
    found = np.asarray(run(refiner))
    size = np.array([HW, HH])
    for b in range(B):
        cells = np.asarray(POSITIONS[b]) * size - 0.5
        nodes = []
        for i in range(K):
            offsets = [(dx, dy) for dy in range(-2, 3) for dx in range(-2, 3)]
            around = jnp.asarray(cells[i] + np.array(offsets), jnp.float32)[None]
            window = sample(MAPS[b : b + 1], around, bilinear=True)[0] @ refiner.project[...]
            own = sample(HEAT[b : b + 1], around, bilinear=True)[0, :, i]
            node = jnp.concatenate(
                [window.ravel(), own, jnp.log(CONFIDENCE[b, i : i + 1]), refiner.classes[...][i]]
            )
            nodes.append(jax.nn.relu(node @ refiner.embedding[...]))
        nodes = np.array(nodes)
        for conv, end in ((refiner.hidden, jax.nn.relu), (refiner.displacement, lambda x: x)):
            after = []
            for i in range(K):
                heard = 0
                for j in range(K):
                    offset = np.asarray(POSITIONS[b, i] - POSITIONS[b, j]) * size
                    said = nodes[j] @ conv.neighbor[...] + offset @ conv.shape[...]
                    heard = heard + EDGES[b, i, j] * said
                after.append(end(nodes[i] @ conv.own[...] + conv.bias[...] + heard))
            nodes = np.array(after)
        np.testing.assert_allclose(found[b], POSITIONS[b] + nodes / size, atol=2e-5)


def read_by(function, *args):
    """Cells that a gradient reaches, rows and columns."""
    gradient = jax.grad(lambda *a: (function(*a) ** 2).sum())(*args)
    return np.asarray(gradient != 0).any(axis=-1)


def test_only_the_window_is_read_and_of_the_heat_only_its_own():
    refiner = make()
    alone = jnp.eye(K)[None].repeat(B, axis=0)

    def first(maps, heat):
        return run(refiner, edges=alone, maps=maps, heat=heat)[:, :1]

    read = read_by(lambda maps: first(maps, HEAT), MAPS)
    rows, columns = np.nonzero(read[0])
    assert np.ptp(rows) <= SIDE
    assert np.ptp(columns) <= SIDE
    x, y = np.asarray(POSITIONS[0, 0]) * [HW, HH] - 0.5
    assert abs(rows.mean() - y) < 1
    assert abs(columns.mean() - x) < 1
    heat = jax.grad(lambda heat: (first(MAPS, heat) ** 2).sum())(HEAT)
    assert np.abs(heat[..., 0]).max() > 0
    np.testing.assert_array_equal(heat[..., 1:], 0)


@pytest.mark.slow
def test_turns_read_again_where_the_last_one_ended():
    config = GraphConfig(
        output="residual",
        sampling="bilinear",
        refinements=2,
        norm="none",
        embedding_widths=(7, 3),
        gcn_widths=(6, 2),
    )
    head = stirred(GraphHead(config, K, C, bn_momentum=0.9, rngs=nnx.Rngs(0)))

    def run_head(maps):
        features = head.read(maps, HEAT, CELLS)
        return head(POSITIONS, CONFIDENCE, features, train=False)[0]

    stages = run_head(MAPS)
    assert stages.shape == (B, 3, K, 2)
    moved = np.abs(np.diff(stages, axis=1)).min(axis=(0, 2, 3))
    assert (moved > 0).all()
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def gradient_of(turn):
        def total(p):
            model = nnx.merge(graphdef, p, rest)
            features = model.read(MAPS, HEAT, CELLS)
            return (model(POSITIONS, CONFIDENCE, features, train=False)[0][:, turn] ** 2).sum()

        flat = nnx.to_flat_state(jax.grad(total)(params))
        return {path[:2] for path, value in flat if np.abs(value[...]).max() > 0}

    # Each turn is held to the truth by itself: no gradient goes back into where it began to look.
    assert ("refinements", 0) in gradient_of(1)
    assert ("refinements", 1) not in gradient_of(1)
    assert ("refinements", 1) in gradient_of(2)
    assert ("refinements", 0) not in gradient_of(2)
