"""Agreement between devices: the same training step and predictions on an accelerator as on the CPU."""

import jax
import numpy as np
import optax
import pytest

from lcgcn_jax.training import sharding
from lcgcn_jax.training.config_types import Config, DataConfig, ModelConfig, TrainConfig
from lcgcn_jax.training.steps import make_inference_step
from lcgcn_jax.training.train_step import build_train_step

SIZE, BATCH, K = 32, 4, 5
LEARNING_RATE = 1.0
# Relative. In float32 with the highest matrix precision; devices sum in different orders.
LOSS, GRADIENT, STATISTICS = 1e-4, 1e-2, 1e-3
LANDMARKS = 1e-2  # pixels of the crop, decoded from the whole heatmap


def step_and_predict(device, heatmap, graph):
    """A step of plain gradient descent and a prediction on a device, from the same start on every one."""
    graph_option = {} if graph else {"graph": None}
    config = Config(
        data=DataConfig(image_size=SIZE),
        model=ModelConfig(heatmap=heatmap, decode="soft", **graph_option),
        train=TrainConfig(
            mode="joint" if graph else "heatmap_only", batch_size=BATCH, dtype="float32"
        ),
    )
    mesh = sharding.mesh_of([device])
    step = build_train_step(config, K, mesh, optimizer=optax.sgd(LEARNING_RATE))
    rng = np.random.default_rng(0)
    params, batch_stats = (
        {
            name: (rng.normal(size=leaf.shape) / 10 + name.endswith((".scale", ".var"))).astype(
                "f4"
            )
            for name, leaf in sorted(part.items())
        }
        for part in step.model[1:]
    )
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "landmarks": rng.uniform(4, 28, (BATCH, K, 2)).astype(np.float32),
        "visible": rng.random((BATCH, K)) < 0.9,
    }
    # Before the step, to which the state's arrays are donated.
    params, batch_stats = jax.device_put((params, batch_stats), sharding.replicated(mesh))
    predict = sharding.compile_predict_step(
        make_inference_step(step.model.graphdef, "predict"), mesh
    )
    output = jax.tree.map(
        np.asarray, predict(params, batch_stats, sharding.put_batch(batch["image"], mesh))
    )
    start = jax.tree.map(np.asarray, params)
    state = step.init_state(params, batch_stats)
    state, scalars = step.compiled(state, sharding.put_batch(batch, mesh))
    moves = {name: np.asarray(value) - start[name] for name, value in state.params.items()}
    return output, scalars, moves, jax.tree.map(np.asarray, state.batch_stats)


def assert_devices_agree(first, second, heatmap, *, graph):
    with jax.default_matmul_precision("highest"):
        ours, theirs = (step_and_predict(device, heatmap, graph) for device in (first, second))
    for name in ("landmarks", "heatmap_landmarks"):
        np.testing.assert_allclose(
            getattr(ours[0], name), getattr(theirs[0], name), atol=LANDMARKS, err_msg=name
        )
    for name, value in theirs[1].items():
        assert float(ours[1][name]) == pytest.approx(float(value), rel=LOSS), name
    moved = 0
    for name, move in theirs[2].items():
        size = np.linalg.norm(move)
        moved += size > 0
        assert np.linalg.norm(ours[2][name] - move) <= GRADIENT * size + 1e-5, name
    assert moved > len(theirs[2]) // 2
    for name, value in theirs[3].items():
        np.testing.assert_allclose(
            ours[3][name], value, rtol=STATISTICS, atol=STATISTICS, err_msg=name
        )


@pytest.mark.slow
def test_two_devices_of_the_cpu_agree(toy):
    assert_devices_agree(*jax.devices("cpu")[:2], {"name": "toy"}, graph=False)


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu():
    try:
        gpu = jax.devices("gpu")[0]
    except RuntimeError as error:
        pytest.skip(f"no GPU that JAX can use: {error}")
    heatmap = {"name": "hrnet", "arch": "tiny"}
    assert_devices_agree(gpu, jax.devices("cpu")[0], heatmap, graph=True)
