import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lcgcn_jax.errors import InputError
from lcgcn_jax.models import registry
from lcgcn_jax.models.bundles import abstract_weights
from lcgcn_jax.models.config import ModelConfig
from lcgcn_jax.models.layers import Conv
from lcgcn_jax.training.config import default_config
from lcgcn_jax.training.config_types import Config, LearningRates, OptimizerConfig, TrainConfig
from lcgcn_jax.training.optimizer import (
    TRAINED,
    is_muon_kernel,
    make_optimizer,
    make_schedule,
    trained_names,
)
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.train_step import build_train_step

CONFIG = OptimizerConfig(
    learning_rate=LearningRates(heatmap=1e-4, graph=1e-3),
    schedule="constant",
    milestones=(0.5, 0.8),
)
PARAMS = {
    "heatmap_model.conv.kernel": jnp.full((2, 2), 3.0),
    "heatmap_model.bn.scale": jnp.full((2,), 3.0),
    "graph.blocks.0.node": jnp.full((2, 3), 3.0),
    "graph.blocks.0.bias": jnp.full((3,), 3.0),
}


def rates(steps=100, **config):
    schedule = make_schedule(dataclasses.replace(CONFIG, **config), 0.2, steps)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


def steps_taken(gradients, mode="joint", params=PARAMS, **config):
    """Update of each parameter for each gradient, a number for all elements."""
    optimizer, _ = make_optimizer(dataclasses.replace(CONFIG, **config), mode, 100)
    state, steps = optimizer.init(params), []
    for gradient in gradients:
        full = jax.tree.map(lambda p, value=gradient: jnp.full_like(p, value), params)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic mixes types
            updates, state = optimizer.update(full, state, params)
        steps.append({name: np.unique(update) for name, update in updates.items()})
    return steps


def test_constant_schedule():
    np.testing.assert_allclose(rates(), 0.2)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_is_linear_from_zero_to_the_peak(schedule):
    warm = rates(schedule=schedule, warmup_steps=10)[:11]
    np.testing.assert_allclose(warm, 0.2 * np.arange(11) / 10, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_ends_at_zero(warmup):
    rate = rates(schedule="cosine", warmup_steps=warmup)
    middle = warmup + (100 - warmup) // 2
    np.testing.assert_allclose(rate[[warmup, middle, 100]], [0.2, 0.1, 0.0], atol=1e-6)
    assert (np.diff(rate[warmup:]) < 0).all()


@pytest.mark.parametrize("warmup", [0, 10])
def test_step_schedule_divides_by_ten_at_each_milestone(warmup):
    rate = rates(schedule="step", warmup_steps=warmup)
    expected = np.repeat([0.2, 0.02, 0.002], [50 - warmup, 30, 21])
    np.testing.assert_allclose(rate[warmup:], expected, rtol=1e-5)


def test_milestones_at_the_same_step_both_divide():
    """Both are in the warm-up of this short run."""
    rate = rates(steps=20, schedule="step", warmup_steps=10, milestones=(0.3, 0.4))
    assert rate[20] == pytest.approx(0.002)


def test_warm_up_is_at_most_half_of_the_training():
    rate = rates(steps=20, warmup_steps=500)
    assert rate.argmax() == 10
    assert rate[20] == pytest.approx(0.2)


def test_each_group_has_its_learning_rate():
    (steps,) = steps_taken([0.7])
    for name, step in steps.items():  # Adam's first step is the learning rate
        expected = -1e-4 if name.startswith("heatmap_model.") else -1e-3
        np.testing.assert_allclose(step, [expected], rtol=1e-4)


def test_schedules_of_the_groups_are_returned():
    _, schedules = make_optimizer(CONFIG, "joint", 100)
    assert {group: float(rate(0)) for group, rate in schedules.items()} == pytest.approx(
        {"heatmap": 1e-4, "graph": 1e-3}
    )


def test_weight_decay_applies_only_to_matrices():
    (steps,) = steps_taken([0.0], weight_decay=0.1)
    expected = {
        "heatmap_model.conv.kernel": -1e-4 * 0.1 * 3,
        "heatmap_model.bn.scale": 0.0,
        "graph.blocks.0.node": -1e-3 * 0.1 * 3,
        "graph.blocks.0.bias": 0.0,
    }
    assert {name: step.item() for name, step in steps.items()} == pytest.approx(expected, rel=1e-4)


def test_clipping_limits_outliers():
    one = {"graph.bias": jnp.ones((1,))}
    (_, clipped), (_, free) = (
        steps_taken([1.0, 1e6], "frozen", one, clip_norm=norm) for norm in (1.0, 0.0)
    )
    assert clipped["graph.bias"] == pytest.approx(-1e-3, rel=1e-4)  # as for another gradient of 1
    assert abs(free["graph.bias"]) < 0.8e-3


def test_clipping_uses_the_norm_of_all_gradients():
    optimizer, _ = make_optimizer(dataclasses.replace(CONFIG, clip_norm=1.0), "joint", 100)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    first_moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if ".mu" in jax.tree_util.keystr(path)
    ]
    assert optax.tree.norm(first_moments) == pytest.approx(0.1, rel=1e-4)  # 1 - beta1


KERNELS = {
    "heatmap_model.stem1.conv.kernel": (3, 3, 3, 8),
    "heatmap_model.stem2.conv.kernel": (3, 3, 8, 16),
    "heatmap_model.fuse.conv.kernel": (1, 1, 16, 8),
    "heatmap_model.stem2.bn.scale": (16,),
    "heatmap_model.head_out.kernel": (1, 1, 8, 5),
    "heatmap_model.outs.0.kernel": (1, 1, 8, 5),
    "heatmap_model.from_heatmaps.0.kernel": (1, 1, 5, 8),
    "heatmap_model.position": (1, 4, 4, 8),
    "graph.refine.kernel": (3, 3, 8, 8),
}


def kernel_updates(method, count=3, **config):
    """Updates of `KERNELS` after the same random gradients, with one large singular value."""
    config = dataclasses.replace(CONFIG, method=method, **config)
    params = {
        name: jax.random.normal(jax.random.key(i), shape)
        for i, (name, shape) in enumerate(KERNELS.items())
    }
    optimizer, _ = make_optimizer(config, "joint", 100)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for i in range(count):
            gradients = {
                name: 3 + jax.random.normal(jax.random.key(100 * i + j), value.shape)
                for j, (name, value) in enumerate(params.items())
            }
            updates, state = optimizer.update(gradients, state, params)
    return updates


def test_muon_updates_hidden_kernels_of_the_heatmap_model():
    adam, muon = (kernel_updates(method) for method in ("adam", "muon"))
    changed = {name for name in KERNELS if not np.allclose(adam[name], muon[name], rtol=1e-6)}
    assert changed == {"heatmap_model.stem2.conv.kernel", "heatmap_model.fuse.conv.kernel"}


@pytest.mark.parametrize(
    "name", ["heatmap_model.stem2.conv.kernel", "heatmap_model.fuse.conv.kernel"]
)
def test_muon_updates_are_nearly_orthogonal(name):
    def condition_and_rms(method):
        update = np.asarray(kernel_updates(method)[name]).reshape(-1, KERNELS[name][-1])
        values = np.linalg.svd(update, compute_uv=False)
        return values.max() / values.min(), np.sqrt((update**2).mean())

    (adam, _), (muon, rms) = condition_and_rms("adam"), condition_and_rms("muon")
    assert adam > 10
    assert muon < 2
    assert rms == pytest.approx(0.4 * 1e-4, rel=0.2)


@pytest.mark.parametrize(
    ("heatmap", "expected"),
    [
        ({"name": "hrnet", "arch": "w18"}, {"stem1.conv.kernel", "head_out.kernel"}),
        (
            {"name": "hourglass", "stacks": 2},
            {"stem.conv.kernel", "outs.0.kernel", "outs.1.kernel", "from_heatmaps.0.kernel"},
        ),
    ],
)
def test_kernels_of_images_and_heatmaps_are_not_for_muon(heatmap, expected):
    model = default_config().model.to_dict() | {"heatmap": heatmap, "graph": None}
    params = abstract_weights(model, 5).params
    kernels = {name: value.shape for name, value in params.items() if len(value.shape) == 4}
    others = {name for name, shape in kernels.items() if not is_muon_kernel(name, shape)}
    assert {name.removeprefix("heatmap_model.") for name in others} == expected
    assert len(kernels) > 3 * len(others)


class OneConv(nnx.Module):
    stride, head_modules, feature_channels, activation = 4, ("head",), 3, "sigmoid"

    def __init__(self, num_landmarks, *, bn_momentum, dtype, rngs):
        self.head = Conv(3, num_landmarks, 3, stride=4, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        return self.head(images), images[:, ::4, ::4]


def test_muon_is_refused_for_a_model_without_hidden_kernels(monkeypatch):
    monkeypatch.setitem(registry._HEATMAP_MODELS, "one_conv", OneConv)
    config = Config(
        model=ModelConfig(heatmap={"name": "one_conv"}, graph=None),
        optimizer=OptimizerConfig(method="muon"),
        train=TrainConfig(mode="heatmap_only", steps=2),
    )
    with pytest.raises(InputError, match=r"'one_conv' has no kernels for 'muon'.* use 'adam'"):
        build_train_step(config, 5, make_mesh(1))


def test_weight_decay_applies_to_kernels_with_muon():
    plain, decayed = (kernel_updates("muon", 1, weight_decay=decay) for decay in (0.0, 0.1))
    name = "heatmap_model.stem2.conv.kernel"
    kernel = jax.random.normal(jax.random.key(list(KERNELS).index(name)), KERNELS[name])
    np.testing.assert_allclose(
        decayed[name] - plain[name], -1e-4 * 0.1 * kernel, rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("joint", {"heatmap_model", "graph"}),
        ("frozen", {"graph"}),
        ("heatmap_only", {"heatmap_model"}),
    ],
)
def test_modes_train_their_parts(mode, parts):
    names = trained_names(mode, PARAMS)
    assert names == {name for name in PARAMS if name.split(".")[0] in parts}
    optimizer, schedules = make_optimizer(CONFIG, mode, 100)
    assert schedules.keys() == set(TRAINED[mode])
    optimizer.init({name: PARAMS[name] for name in names})


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_mode_that_trains_the_graph_of_a_model_without_one_is_rejected(mode):
    heatmap_params = {name: value for name, value in PARAMS.items() if name.startswith("heatmap")}
    with pytest.raises(InputError, match=rf"'{mode}' trains the graph, and model\.graph is null"):
        trained_names(mode, heatmap_params)
