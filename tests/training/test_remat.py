"""`train.remat`: equal results with recomputed activations."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.models import registry
from lcgcn_jax.models.hrnet import BasicBlock
from lcgcn_jax.models.layers import Conv, ConvBN, run_module
from lcgcn_jax.training.config_types import Config, DataConfig, ModelConfig, TrainConfig
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.train_step import build_train_step, init_weights

SIZE, BATCH, K = 64, 4, 5


class OneBlock(nnx.Module):
    """A stem, and a residual block whose activations can be recomputed."""

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "heatmap",
    [
        {"name": "one_block"},
        {"name": "hrnet", "arch": "tiny"},
        {"name": "hourglass", "stacks": 1, "width": 16},
    ],
    ids=lambda heatmap: heatmap["name"],
)
def test_step_is_the_same_with_remat(heatmap, monkeypatch):
    monkeypatch.setitem(registry._HEATMAP_MODELS, "one_block", OneBlock)
    config = Config(
        data=DataConfig(image_size=SIZE),
        model=ModelConfig(heatmap=heatmap, graph=None),
        train=TrainConfig(mode="heatmap_only", batch_size=BATCH),
    )
    params, batch_stats = init_weights(config, K)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "landmarks": rng.uniform(8, 56, (BATCH, K, 2)).astype(np.float32),
        "visible": np.ones((BATCH, K), bool),
    }
    outcomes, convolutions = [], []
    for remat in (False, True):
        train = dataclasses.replace(config.train, remat=remat)
        step = build_train_step(
            dataclasses.replace(config, train=train), K, make_mesh(1), optimizer=optax.sgd(1.0)
        )
        state = step.init_state(params, batch_stats)
        lowered = jax.jit(step.function, compiler_options=compiler_options()).lower(state, batch)
        # Counted before XLA's optimization, which merges equal computations on a CPU.
        convolutions.append(lowered.as_text().count("stablehlo.convolution"))
        outcomes.append(lowered.compile()(state, batch))
    (expected, scalars), (result, remat_scalars) = outcomes
    np.testing.assert_allclose(remat_scalars["loss"], scalars["loss"], rtol=1e-5)
    for name, start in params.items():
        update = np.asarray(expected.params[name] - start)
        difference = np.asarray(result.params[name] - expected.params[name])
        # Rounding may open a ReLU whose input is nearly 0; see tests/test_compilation.py.
        assert np.linalg.norm(difference) <= 2e-2 * np.linalg.norm(update) + 1e-6, name
    for name, value in expected.batch_stats.items():
        assert np.any(value != batch_stats[name]), f"{name} did not move"
        np.testing.assert_allclose(result.batch_stats[name], value, rtol=1e-3, atol=1e-5)
    # Nearly the whole network is recomputed, in addition to the forward and the backward pass.
    plain, with_remat = convolutions
    assert with_remat > 1.2 * plain
