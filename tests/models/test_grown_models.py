import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax.models import hrnet
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.growth import can_grow, grow_weights
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import split_weights

K = 5


WIDTHS = (6, 9, 20, 40)
MORE_BLOCKS = hrnet.Arch(12, 2, WIDTHS, (1, 1, 1), 2)
MORE_MODULES = hrnet.Arch(12, 1, WIDTHS, (1, 1, 2), 1)


@pytest.fixture
def register(monkeypatch):
    """Replace the size of an HRNet, and return its name."""

    def replace(size):
        monkeypatch.setitem(hrnet.ARCHS, "w18-small-v2", size)
        return "w18-small-v2"

    return replace


def random_model(arch, features, seed):
    config = {
        "heatmap": {"name": "hrnet", "arch": arch, "features": features},
        "graph": {"name": "lcgcn", "message": "offset_votes", "embedding_widths": [8, 4]},
        "visibility": {"head": "local", "width": 8},
        "decode": "argmax",
        "bn_momentum": 0.9,
    }
    # Not `abstract_weights`, which caches by name.
    model = nnx.eval_shape(lambda: create_model(config, K, rngs=nnx.Rngs(0)))
    graphdef, *parts = split_weights(model)
    rng = np.random.default_rng(seed)
    return FunctionalModel(
        graphdef,
        *({n: random_weight(rng, n, w.shape) for n, w in sorted(p.items())} for p in parts),
    )


def random_weight(rng, name, shape):
    if name.endswith((".scale", ".var")):
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
    return jnp.asarray(value, jnp.float32)


def grown_model(small, arch, features):
    graphdef, *parts = random_model(arch, features, seed=1)
    initial = parts[0] | parts[1]
    weights = {name: np.asarray(w) for name, w in (small.params | small.batch_stats).items()}
    grown = grow_weights(weights, initial, "tiny", arch)
    assert {n: w.shape for n, w in grown.items()} == {n: w.shape for n, w in initial.items()}
    parts = [{name: jnp.asarray(grown[name], jnp.float32) for name in part} for part in parts]
    return FunctionalModel(graphdef, *parts)


@pytest.mark.parametrize(("size", "features"), [(MORE_BLOCKS, "concat"), (MORE_MODULES, "head")])
def test_grown_model_computes_the_same_function(register, size, features):
    small = random_model("tiny", features, seed=0)
    large = grown_model(small, register(size), features)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    forward = jax.jit(FunctionalModel.forward)
    expected, result = forward(small, images), forward(large, images)
    assert np.std(expected.heatmap_logits) > 0.1
    for name in ("heatmap_logits", "landmarks", "confidence", "edges"):
        a, b = getattr(expected, name), getattr(result, name)
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=name)
    # The visibility head normalizes the features over all channels, and there are more of them.
    np.testing.assert_allclose(result.visibility, expected.visibility, atol=0.02)


def test_new_layers_train(register):
    small = random_model("tiny", "concat", seed=0)
    large = grown_model(small, register(MORE_BLOCKS), "concat")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 64, 64, 3)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(2, 16, 16, K)), jnp.float32)

    def loss(params):
        logits, _ = large._replace(params=params).merge().heatmap_model(images, train=True)
        return jnp.mean((logits - target) ** 2)

    gradient = jax.jit(jax.grad(loss))
    params, first = large.params, gradient(large.params)
    second = gradient({name: w - 0.1 * first[name] for name, w in params.items()})
    heatmap = {name for name in params if name.startswith("heatmap_model.")}
    without = {name for name in heatmap if not np.any(first[name])}
    assert any(".stage1.1.conv2." in name for name in without), "before a scale of 0"
    assert [name for name in heatmap if not np.any(second[name])] == []
    # The last channel of the first branch is new; its weight to the heatmaps is 0.
    kernel = "heatmap_model.head_out.kernel"
    assert not np.any(params[kernel][0, 0, 5])
    assert np.all(first[kernel][0, 0, 5] != 0)


@pytest.mark.parametrize(
    ("arch", "other", "fits"),
    [
        ("tiny", "w18-small-v1", True),
        ("w18-small-v1", "w18", True),
        ("w18", "w18", True),
        ("w18", "w48", True),
        ("w18", "w18-small-v2", False),
        ("w32", "w18", False),
    ],
)
def test_can_grow(arch, other, fits):
    assert can_grow(arch, other) == fits
