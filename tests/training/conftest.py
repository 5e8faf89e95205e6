"""Tiny configuration with synthetic faces, whose programs are traced once per session."""

import dataclasses
from collections.abc import Callable

import pytest
import tiny

from lcgcn_jax.synthetic.dataset import prepare_synthetic
from lcgcn_jax.training import sharding, trainer
from lcgcn_jax.training.config import to_json
from lcgcn_jax.training.config_types import Config, DataConfig, TrainConfig


@pytest.fixture
def tiny_config(make_tiny_config):
    """A full configuration at 32 px with the tiny heatmap model; tests change it."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def make_tiny_config(synthetic98):
    def make():
        config = tiny.get_config()
        config.data.dir = str(synthetic98)
        return config

    return make


@pytest.fixture(scope="session")
def more98(tmp_path_factory):
    """Second dataset of synthetic faces."""
    out = tmp_path_factory.mktemp("data") / "more98"
    prepare_synthetic("wflw98", out, num_train=9, num_test=1, seed=7)
    return out


@pytest.fixture(scope="session", autouse=True)
def cached_programs():
    """Builds each program once per configuration.

    Otherwise each `Trainer` of these tests would trace the same step again, for seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_train_step", _cached(trainer.build_train_step, _step_key))
        for module, name in (
            (trainer, "make_inference_step"),
            (sharding, "compile_predict_step"),
        ):
            patch.setattr(module, name, _cached(getattr(module, name), lambda *args: args))
        yield


def _cached(make: Callable, key_of: Callable) -> Callable:
    results = {}

    def cached(*args):
        key = key_of(*args)
        if key not in results:
            results[key] = make(*args)
        return results[key]

    return cached


def _step_key(config: Config, num_landmarks: int, mesh) -> tuple:
    """The arguments of `build_train_step`, without fields that do not change the step."""
    train = config.train
    same_step = dataclasses.replace(
        config,
        scheme="",
        seed=0,
        init_from="",
        init_scope="heatmap",
        data=DataConfig(image_size=config.data.image_size),
        train=TrainConfig(
            mode=train.mode,
            steps=train.steps,
            batch_size=train.batch_size,
            dtype=train.dtype,
            remat=train.remat,
            ema_decay=train.ema_decay,
        ),
    )
    return to_json(same_step), num_landmarks, mesh
