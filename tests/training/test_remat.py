"""`train.remat`: the same step, and what it computes again."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.models import registry
from lcgcn_jax.models.hrnet import BasicBlock
from lcgcn_jax.models.layers import Conv, ConvBN, make_rngs, run_module
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import split_weights
from lcgcn_jax.training.config import default_config
from lcgcn_jax.training.optimizer import trained_names
from lcgcn_jax.training.state import create_state
from lcgcn_jax.training.steps import make_train_step

SIZE, BATCH, K = 64, 4, 5
MODE = "heatmap_only"


class OneBlock(nnx.Module):
    """A stem, and a residual block that can be computed again."""

    stride, feature_channels = 4, 8

    def __init__(self, num_landmarks, *, bn_momentum, dtype, rngs, remat=False):
        make = {"momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        self.remat = remat
        self.stem = ConvBN(3, 8, 3, stride=4, **make)
        self.block = BasicBlock(8, **make)
        self.out = Conv(8, num_landmarks, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        x = self.stem(images, train=train)
        x = run_module(self.block, x, train=train, remat=self.remat)
        return self.out(x), x


@pytest.mark.parametrize(
    "heatmap",
    [
        {"name": "one_block"},
        pytest.param({"name": "hrnet", "arch": "w18-small-v1"}, marks=pytest.mark.slow),
        pytest.param({"name": "hourglass", "stacks": 1, "width": 16}, marks=pytest.mark.slow),
    ],
    ids=lambda heatmap: heatmap["name"],
)
def test_the_step_is_the_same(heatmap, monkeypatch):
    monkeypatch.setitem(registry._HEATMAP_MODELS, "one_block", OneBlock)
    config = default_config()
    model = config.model.to_dict() | {"heatmap": heatmap, "graph": None}

    def create(remat=False):
        return create_model(model, K, remat=remat, rngs=make_rngs(0))

    params, batch_stats = jax.jit(lambda: split_weights(create())[1:])()
    trained, optimizer = trained_names(MODE, params), optax.sgd(1.0)
    state = create_state(params, batch_stats, optimizer, trained, with_ema=False)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "landmarks": rng.uniform(8, 56, (BATCH, K, 2)).astype(np.float32),
        "visible": np.ones((BATCH, K), bool),
    }
    outcomes, convolutions = [], []
    for remat in (False, True):
        step = make_train_step(
            split_weights(nnx.eval_shape(lambda remat=remat: create(remat)))[0],
            optimizer,
            trained,
            mode=MODE,
            loss_config=config.loss.to_dict(),
            image_size=SIZE,
            ema_decay=0.0,
        )
        lowered = jax.jit(step, compiler_options=compiler_options()).lower(state, batch)
        # Counted before XLA has its way: on a CPU it takes equal computations together again.
        convolutions.append(lowered.as_text().count("stablehlo.convolution"))
        outcomes.append(lowered.compile()(state, batch))
    (expected, figures), (found, ours) = outcomes
    np.testing.assert_allclose(ours["loss"], figures["loss"], rtol=1e-5)
    for name, start in params.items():
        wanted = np.asarray(expected.params[name] - start)
        difference = np.asarray(found.params[name] - expected.params[name])
        # Rounding may open a ReLU whose input is nearly 0; see tests/test_compilation.py.
        assert np.linalg.norm(difference) <= 2e-2 * np.linalg.norm(wanted) + 1e-6, name
    for name, value in expected.batch_stats.items():
        assert np.any(value != batch_stats[name]), f"{name} did not move"
        np.testing.assert_allclose(found.batch_stats[name], value, rtol=1e-3, atol=1e-5)
    # Nearly all of the network lies in what is computed again: the third forward, forward and backward.
    kept, again = convolutions
    assert again > 1.2 * kept
