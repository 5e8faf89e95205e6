import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.hourglass import PreActivation
from lcgcn_jax.models.layers import BatchNorm
from lcgcn_jax.models.lcgcn import LCGCNOutput
from lcgcn_jax.models.weights import merge_weights

SCHEME = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5})
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
HEATMAP_MODELS = [
    {"name": "toy"},
    {"name": "hrnet", "arch": "tiny", "features": "head"},
    {"name": "hourglass", "stacks": 2, "width": 8},
]


def config_of(heatmap, **graph):
    return {"heatmap": heatmap, "decode": "soft", "graph": graph, "bn_momentum": 0.9}


@functools.partial(jax.jit, static_argnums=0)
def outputs(*weights) -> LCGCNOutput:
    return merge_weights(*weights)(IMAGES)


def norms_of(weights):
    return [m for _, m in nnx.iter_modules(merge_weights(*weights)) if isinstance(m, BatchNorm)]


@pytest.mark.slow
@pytest.mark.parametrize("heatmap", HEATMAP_MODELS, ids=lambda heatmap: heatmap["name"])
def test_a_folded_model_says_the_same(toy, random_bundle, heatmap):
    config = config_of(heatmap, message="offsets", mlp_output="activated")
    weights = random_bundle(config, SCHEME, 64).create()
    plain, folded = outputs(*weights), outputs(*fold_batch_norm(*weights))
    assert np.ptp(plain.heatmap_logits) > 1
    assert np.ptp(plain.edges) > 0.01
    np.testing.assert_allclose(
        folded.heatmap_logits, plain.heatmap_logits, atol=1e-5 * np.ptp(plain.heatmap_logits)
    )
    np.testing.assert_allclose(folded.edges, plain.edges, atol=1e-5)
    np.testing.assert_allclose(folded.landmarks, plain.landmarks, atol=1e-3)


@pytest.mark.parametrize("heatmap", HEATMAP_MODELS[:2], ids=lambda heatmap: heatmap["name"])
def test_no_norm_is_left(toy, random_bundle, heatmap):
    weights = random_bundle(config_of(heatmap), SCHEME, 64).create()
    assert len(norms_of(weights)) > 5
    assert not norms_of(fold_batch_norm(*weights))


def test_norms_with_no_layer_beside_them_stay(toy, random_bundle):
    """One before each block of an hourglass, one behind the edges' logits in the authors' graph."""
    config = config_of({"name": "hourglass", "stacks": 1, "width": 8}, mlp_output="activated")
    weights = random_bundle(config, SCHEME, 64).create()
    blocks = [
        m for _, m in nnx.iter_modules(merge_weights(*weights)) if isinstance(m, PreActivation)
    ]
    assert len(norms_of(fold_batch_norm(*weights))) == len(blocks) + 1


def test_the_model_that_is_folded_is_left_as_it_was(toy, random_bundle):
    graphdef, params, batch_stats = random_bundle(config_of({"name": "toy"}), SCHEME, 64).create()
    before = jax.tree.map(np.array, (params, batch_stats))
    fold_batch_norm(graphdef, params, batch_stats)
    jax.tree.map(np.testing.assert_array_equal, (params, batch_stats), before)


def test_a_folded_model_is_not_trained(toy, random_bundle):
    weights = random_bundle(config_of({"name": "toy"}), SCHEME, 64).create()
    model = merge_weights(*fold_batch_norm(*weights))
    with pytest.raises(ValueError, match="cannot be trained"):
        model(IMAGES, train_heatmap=True)
