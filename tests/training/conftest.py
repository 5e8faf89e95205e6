"""The tiny configuration, with synthetic faces, and its programs traced once."""

from collections.abc import Callable, Mapping

import pytest
import tiny

from lcgcn_jax.training import sharding, trainer


@pytest.fixture
def tiny_config(make_tiny_config):
    """The whole configuration at 32 px with the tiny heatmap model; tests change it."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def make_tiny_config(synthetic98):
    def make():
        config = tiny.get_config()
        config.data.dir = str(synthetic98)
        return config

    return make


@pytest.fixture(scope="session", autouse=True)
def programs_made_once():
    """Makes each optimizer and each step once per configuration: JAX then traces and loads it once.

    Otherwise each `Trainer` of these tests would spend seconds on tracing a step that another one has
    traced before.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "make_optimizer",
            "make_train_step",
            "make_predict_step",
            "make_refine_step",
            "make_detect_step",
        ):
            patch.setattr(trainer, name, _made_once(getattr(trainer, name)))
        for name in ("compile_train_step", "compile_predict_step"):
            patch.setattr(sharding, name, _made_once(getattr(sharding, name)))
        yield


def _made_once(make: Callable) -> Callable:
    made = {}

    def once(*args, **kwargs):
        key = _hashable((args, kwargs))
        if key not in made:
            made[key] = make(*args, **kwargs)
        return made[key]

    return once


def _hashable(value):
    if isinstance(value, Mapping):
        return tuple((name, _hashable(item)) for name, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value
