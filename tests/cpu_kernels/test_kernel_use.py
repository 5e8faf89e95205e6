"""Tests of models, training runs and predictions with the kernels for CPUs."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcgcn_jax import cpu_kernels
from lcgcn_jax.cpu_kernels import library
from lcgcn_jax.inference.programs import Programs
from lcgcn_jax.models.bundles import load_bundle
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import batch_stats_of, merge_weights, split_weights
from lcgcn_jax.training import sharding


@pytest.mark.parametrize(
    ("heatmap", "size", "tolerance"),
    [
        ({"name": "hrnet", "arch": "w18-small-v1"}, 64, 3e-5),
        # Batch normalization of few values per channel, at the lowest resolution, amplifies rounding errors.
        ({"name": "hourglass"}, 128, 3e-4),
    ],
)
def test_models_in_training(kernels, heatmap, size, tolerance):
    model = {"heatmap": heatmap, "decode": "argmax", "graph": None, "bn_momentum": 0.9}
    graphdef, params, batch_stats = split_weights(create_model(model, 5, rngs=nnx.Rngs(0)))
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)

    def run(params, batch_stats, images):
        merged = merge_weights(graphdef, params, batch_stats)
        logits, features = merged.heatmap_model(images, train=True)
        return logits, features, batch_stats_of(merged)

    for expected, actual in zip(
        *(
            jax.tree.leaves(
                jax.jit(cpu_kernels.with_cpu_kernels(run, prefix))(params, batch_stats, images)
            )
            for prefix in (None, kernels)
        ),
        strict=True,
    ):
        scale = max(float(np.abs(np.asarray(expected)).max()), 1e-6)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_predictions(kernels):
    bundle = load_bundle("w300-lcgcn-small")
    crops = np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3), np.uint8)
    programs = Programs(bundle)
    assert programs._kernels == kernels
    actual = programs.predict(crops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, "0")
        other = Programs(bundle)
        assert other._kernels is None
        expected = other.predict(crops)
    assert other._key(1) != programs._key(1), "a program with kernels has another file"
    np.testing.assert_allclose(actual.landmarks, expected.landmarks, atol=1e-3)


def test_only_programs_for_one_cpu_use_them(kernels):
    def uses_them(mesh):
        step = sharding.compile_predict_step(
            lambda params, stats, x: jnp.float32(cpu_kernels.is_active(x)) + x, mesh
        )
        return bool(step({}, {}, jnp.zeros((8, 1), jnp.float32)).all())

    assert uses_them(sharding.make_mesh(1))
    assert not uses_them(sharding.make_mesh(8))
    assert sharding.is_one_cpu(sharding.make_mesh(1))


def test_other_types_use_xla(kernels):
    x = kernel = jnp.ones((1, 1, 3, 3), jnp.float32)
    active = cpu_kernels.with_cpu_kernels(cpu_kernels.is_active, kernels)
    assert active(x, kernel)
    assert not active(x, kernel.astype(jnp.bfloat16))
    assert not cpu_kernels.is_active(x)


def train(workdir, data, *, switch, cache):
    """Losses of the steps of a run of the command."""
    variables = {
        library.VARIABLE: switch,
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    options = [
        "--config.data.image_size=64",
        f"--config.data.dir={data}",
        "--config.train.batch_size=4",
        "--config.train.steps=6",
        "--config.train.eval_every=6",
        "--config.train.log_every=1",
    ]
    words = ["train", "--config", "w300_lcgcn:small", "--workdir", str(workdir), *options]
    result = subprocess.run(
        [sys.executable, "-m", "lcgcn_jax", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]


@pytest.mark.slow
def test_training_run(synthetic68, kernel_cache, tmp_path):
    """The losses are those with XLA's operations."""
    expected = train(tmp_path / "plain", synthetic68, switch="false", cache=tmp_path / "jit")
    actual = train(tmp_path / "kernels", synthetic68, switch="true", cache=kernel_cache)
    assert len(expected) == len(actual) == 6
    assert expected != actual
    np.testing.assert_allclose(actual, expected, rtol=2e-2)
    assert not list((tmp_path / "jit").glob("*/*.so"))
