import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.bn_folding import fold_batch_norm
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.hourglass import PreActivation
from lcgcn_jax.models.layers import BatchNorm
from lcgcn_jax.models.lcgcn import LCGCNOutput

SCHEME = LandmarkScheme.from_dict({"name": "five", "num_landmarks": 5})
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
HEATMAP_MODELS = [
    {"name": "toy"},
    {"name": "hrnet", "arch": "tiny", "features": "head"},
    {"name": "hourglass", "stacks": 2, "width": 8},
]


def config_of(heatmap, **graph):
    return {"heatmap": heatmap, "decode": "soft", "graph": graph, "bn_momentum": 0.9}


def outputs(model: FunctionalModel) -> LCGCNOutput:
    return jax.jit(lambda *weights: FunctionalModel(model.graphdef, *weights).forward(IMAGES))(
        model.params, model.batch_stats
    )


def modules_of(model: FunctionalModel, kind: type) -> list[nnx.Module]:
    return [module for _, module in nnx.iter_modules(model.merge()) if isinstance(module, kind)]


@pytest.mark.slow
@pytest.mark.parametrize("heatmap", HEATMAP_MODELS, ids=lambda heatmap: heatmap["name"])
@pytest.mark.parametrize(
    "graph",
    [{"message": "offset_votes"}, {"authors_conventions": True, "diagonal": "zero"}],
    ids=["offset votes", "authors"],
)
def test_folded_model_has_equal_outputs(toy, random_bundle, heatmap, graph):
    model = random_bundle(config_of(heatmap, **graph), SCHEME, 64).create()
    plain, folded = outputs(model), outputs(fold_batch_norm(*model))
    assert np.ptp(plain.heatmap_logits) > 1
    assert np.ptp(plain.edges) > 0.01
    np.testing.assert_allclose(
        folded.heatmap_logits, plain.heatmap_logits, atol=1e-5 * np.ptp(plain.heatmap_logits)
    )
    np.testing.assert_allclose(folded.edges, plain.edges, atol=1e-5)
    np.testing.assert_allclose(folded.landmarks, plain.landmarks, atol=1e-3)


@pytest.mark.parametrize("heatmap", HEATMAP_MODELS[:2], ids=lambda heatmap: heatmap["name"])
def test_all_norms_are_folded(toy, random_bundle, heatmap):
    model = random_bundle(config_of(heatmap), SCHEME, 64).create()
    assert len(modules_of(model, BatchNorm)) > 5
    assert not modules_of(fold_batch_norm(*model), BatchNorm)


def test_norms_without_adjacent_layer_stay(toy, random_bundle):
    """One before each block of an hourglass, and one after the edge logits of the authors' graph."""
    heatmap = {"name": "hourglass", "stacks": 1, "width": 8}
    model = random_bundle(config_of(heatmap, authors_conventions=True), SCHEME, 64).create()
    num_blocks = len(modules_of(model, PreActivation))
    assert len(modules_of(fold_batch_norm(*model), BatchNorm)) == num_blocks + 1


def test_folding_does_not_change_its_input(toy, random_bundle):
    graphdef, params, batch_stats = random_bundle(config_of({"name": "toy"}), SCHEME, 64).create()
    before = jax.tree.map(np.array, (params, batch_stats))
    fold_batch_norm(graphdef, params, batch_stats)
    jax.tree.map(np.testing.assert_array_equal, (params, batch_stats), before)


def test_training_a_folded_model_is_an_error(toy, random_bundle):
    bundle = random_bundle(config_of({"name": "toy"}), SCHEME, 64)
    model = fold_batch_norm(*bundle.create()).merge()
    with pytest.raises(ValueError, match="cannot be trained"):
        model(IMAGES, train_heatmap=True)
