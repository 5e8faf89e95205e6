"""Conversion of epochs to steps."""

import itertools

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.training.config import (
    apply_overrides,
    config_names,
    default_config,
    load_config,
)
from lcgcn_jax.training.config_types import (
    EPOCHS,
    Config,
    TrainConfig,
    describe_steps,
    resolve_steps,
)


def typed(config):
    return Config.from_dict(config.to_dict())


def steps_of(config):
    return tuple(getattr(config.train, name) for name in EPOCHS)


@pytest.mark.parametrize("name", [name for name in config_names() if name != "demo"])
@pytest.mark.parametrize("argument", ["", ":small"])
def test_configs_set_their_length_in_epochs(name, argument):
    config = typed(load_config(name + argument))
    assert steps_of(config) == (None, None, None)
    half, whole = (resolve_steps(config, faces) for faces in (10_000, 20_000))
    for a, b in zip(steps_of(half), steps_of(whole), strict=True):
        assert b == pytest.approx(2 * a, abs=1)


@pytest.mark.parametrize(
    ("epochs", "faces", "batch", "steps"),
    [
        (26, 1802, 16, 2928),  # equal to those of older configs
        (60, 2833, 16, 10623),
        (300, 2833, 64, 13279),
        (0.1, 30, 3, 1),
        (0.5, 7, 2, 1),
        (1, 3, 8, 1),  # at least one
        (0.001, 10, 16, 1),
    ],
)
def test_epochs_to_steps(epochs, faces, batch, steps):
    config = Config(train=TrainConfig(epochs=float(epochs), batch_size=batch))
    resolved = resolve_steps(config, faces)
    assert resolved.train.steps == steps
    assert resolve_steps(resolved, 10 * faces).train.steps == steps, "resolved steps never change"


def test_steps_take_precedence_over_epochs():
    config = Config(train=TrainConfig(steps=100, checkpoint_every=7))
    resolved = resolve_steps(config, 1600)
    assert steps_of(resolved) == (100, 200, 7)
    assert describe_steps(resolved, 1600) == (
        "100 steps of 16 faces, 1.0 epochs of 1,600; validation every 200 steps, checkpoint every 7"
    )


def test_override_in_epochs_replaces_steps_of_the_config_file():
    config = load_config("demo")
    assert config.train.steps
    apply_overrides(config, {"train.epochs": "5", "train.eval_every_epochs": "0.5"})
    assert steps_of(resolve_steps(typed(config), 160)) == (
        50,
        5,
        load_config("demo").train.checkpoint_every,
    )


@pytest.mark.parametrize(("steps", "epochs"), EPOCHS.items())
def test_override_in_steps_and_epochs_is_rejected(steps, epochs):
    with pytest.raises(InputError, match=rf"train\.{steps} and train\.{epochs}: both set"):
        apply_overrides(default_config().lock(), {f"train.{epochs}": "1", f"train.{steps}": "1"})


def test_resumed_run_of_an_older_version_keeps_its_steps():
    config = load_config("w300_lcgcn:small")
    old = {"train": {"steps": 2928, "eval_every": 225, "checkpoint_every": 225}}
    assert steps_of(resolve_steps(typed(config), 2833, old)) == (2928, 225, 225)
    new = resolve_steps(typed(config), 1802).to_dict()
    assert steps_of(resolve_steps(typed(config), 2833, new))[0] == 4603
    config.train.steps = 10
    assert steps_of(resolve_steps(typed(config), 2833, old)) == (10, 225, 225)


def test_overridden_epochs_replace_the_steps_of_an_older_run():
    old = {"train": {"steps": 2928, "eval_every": 225, "checkpoint_every": 225}}
    for fields in itertools.combinations(EPOCHS, 2):
        config = load_config("w300_lcgcn:small")
        overrides = {f"train.{EPOCHS[name]}": "1" for name in fields}
        apply_overrides(config, overrides)
        resolved = resolve_steps(typed(config), 1600, old, overrides)
        expected = old["train"] | dict.fromkeys(fields, 100)
        assert steps_of(resolved) == tuple(expected[name] for name in EPOCHS)
