"""Bundles, checkpoints, configurations and commands written with the names of version 0.1."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from lcgcn_jax import compat, create_model
from lcgcn_jax.errors import InputError
from lcgcn_jax.models.bundles import CONFIG, WEIGHTS, abstract_weights, load_bundle
from lcgcn_jax.training.config import default_config, load_config
from lcgcn_jax.training.config_checks import check_config


@pytest.fixture
def former_bundle(shared):
    """Bundle written with the names of version 0.1."""
    return shared / "models" / "trial-small"


def test_bundle_of_0_1_loads_with_every_weight(former_bundle):
    stored = load_file(former_bundle / WEIGHTS)
    assert any(
        name.startswith("graph.guesses.") for name in stored
    )  # the file has the former names
    bundle = load_bundle(former_bundle)
    assert len(bundle.weights) == len(stored)
    assert bundle.flip_bias == json.loads((former_bundle / CONFIG).read_text())["mirror_offset"]
    assert bundle.model["graph"]["shape_refiner"] is True


def test_former_calibration_is_renamed():
    former = {"calibration": {"peak_weight": 0.3, "spread_weight": 1.1}}
    upgraded = compat.upgrade_config(former)
    assert upgraded == {"uncertainty": {"peak_weight": 0.3, "std_weight": 1.1}}


def test_former_and_new_names_have_one_order(former_bundle):
    """Moving averages are vectors in the order of the names and need no permutation."""
    stored = load_file(former_bundle / WEIGHTS)
    upgraded = compat.upgrade_weights(stored)
    for former, new in zip(sorted(stored), sorted(upgraded), strict=True):
        assert stored[former] is upgraded[new]
    _, params, batch_stats = abstract_weights(load_bundle(former_bundle).model, 68)
    assert set(upgraded) == set(params | batch_stats)


def test_weights_are_renamed_within_a_state_and_back():
    former = {
        "params": {"graph.guesses.correction": np.ones(2), "graph.blocks.0.neighbour": np.ones(3)},
        "opt_state": ({"graph.shape_turn.bias": np.ones(1)}, ()),
    }
    assert compat.has_former_weights(former)
    new = compat.upgrade_weights(former)
    assert not compat.has_former_weights(new)
    assert set(new["params"]) == {"graph.offset_voting.correction", "graph.blocks.0.neighbor"}
    assert set(compat.downgrade_weights(new, former)["opt_state"][0]) == {"graph.shape_turn.bias"}


def test_names_of_registered_heatmap_models_stay():
    weights = {"heatmap_model.own.kernel": 1, "heatmap_model.neighbour": 2, "graph.owner.bias": 3}
    assert compat.upgrade_weights(weights) == weights
    assert not compat.has_former_weights({"params": weights})
    config = {"model": {"heatmap": {"name": "mine", "shape_turn": 1, "darkness": {"turns": 2}}}}
    assert compat.upgrade_config(config) == config
    overrides = {"model.heatmap.turns": "2", "model.heatmap.darkness": "1", "data.turns": "3"}
    assert compat.upgrade_overrides(overrides) == overrides


def test_configuration_is_renamed_at_every_depth():
    former = {
        "init_parts": "heatmap",
        "data": {
            "augment": {"darkness": 0.1, "darkness_factor": [0.1, 1.0], "mirror_offset": 0.0038}
        },
        "model": {"heatmap_origin": None, "graph": {"name": "dag", "turns": 2}},
    }
    assert compat.upgrade_config(former) == {
        "init_scope": "heatmap",
        "data": {
            "augment": {"low_light": 0.1, "low_light_factor": [0.1, 1.0], "flip_bias": 0.0038}
        },
        "model": {"heatmap_offset": None, "graph": {"name": "dag", "fine_steps": 2}},
    }


def test_command_line_settings_are_renamed():
    former = {"init_parts": "whole", "data.augment.darkness": "0.1", "model.graph.turns": "2"}
    assert compat.upgrade_overrides(former) == {
        "init_scope": "whole",
        "data.augment.low_light": "0.1",
        "model.graph.fine_steps": "2",
    }


@pytest.mark.parametrize(
    ("former", "today"),
    [
        (["--flip_test"], ["--flip-test"]),
        (["--per_face=a_b.csv"], ["--per-face=a_b.csv"]),
        (["--degrade", "dark"], ["--corruption", "dark"]),
        (["--config.train.batch_size=4"], ["--config.train.batch_size=4"]),
        (["--unknown_option"], ["--unknown_option"]),
        (["--", "--flip_test"], ["--", "--flip_test"]),
    ],
)
def test_former_options(former, today):
    known = {"--flip-test", "--per-face", "--corruption"}
    assert compat.upgrade_arguments(former, known) == today


PAPER = {
    "positions": "center",
    "shape_features": "all",
    "activation": "relu",
    "mlp_output": "linear",
}
AUTHORS = {
    "positions": "corner",
    "shape_features": "first_last",
    "activation": "none",
    "mlp_output": "activated",
}


@pytest.mark.parametrize(("former", "is_authors"), [(PAPER, False), (AUTHORS, True)])
def test_former_conventions_of_the_graph_are_one_field(former, is_authors):
    config = {"heatmap": {"activation": "linear"}, "graph": former | {"message": "offsets"}}
    assert compat.upgrade_config(config) == {
        "heatmap": {"activation": "linear"},
        "graph": {"message": "offset_votes", "authors_conventions": is_authors},
    }


def test_former_conventions_on_the_command_line_are_one_field():
    authors = {"positions": "corner", "shape_features": "first_last", "activation": "none"}
    authors = {f"model.graph.{name}": value for name, value in authors.items()}
    upgraded = compat.upgrade_overrides(authors | {"model.graph.mlp_output": "activated"})
    assert upgraded == {"model.graph.authors_conventions": "true"}
    upgraded = compat.upgrade_overrides({"model.graph.positions": "center", "seed": "1"})
    assert upgraded == {"model.graph.authors_conventions": "false", "seed": "1"}
    with pytest.raises(InputError, match="mixes conventions"):
        compat.upgrade_overrides(authors)


def test_create_model_takes_a_former_configuration():
    config = default_config().model.to_dict()
    del config["graph"]["authors_conventions"]
    config["graph"] |= {"positions": "center", "message": "offsets"}
    config["heatmap"]["arch"] = "tiny"
    model = nnx.eval_shape(lambda: create_model(config, num_landmarks=5))
    assert model.graph.offset_voting is not None


def test_mixed_conventions_are_an_error():
    with pytest.raises(InputError, match="mixes conventions"):
        compat.upgrade_config({"graph": PAPER | {"activation": "none"}})


def test_former_message_on_the_command_line():
    former = {"model.graph.message": "offsets"}
    assert compat.upgrade_overrides(former) == {"model.graph.message": "offset_votes"}


def test_checkpoint_with_some_former_names_is_described():
    saved = {"graph.offset_voting.correction": 0, "graph.blocks.0.own": 0}
    current = compat.upgrade_weights(saved)
    assert set(current) == {"graph.offset_voting.correction", "graph.blocks.0.node"}
    assert compat.downgrade_weights(current, saved) == saved


def test_config_file_with_former_names_is_upgraded(tmp_path):
    path = tmp_path / "former.py"
    path.write_text(
        """
from lcgcn_jax.training.config import default_config

def get_config():
    config = default_config()
    config.model.graph.message = "offsets"
    config.data.augment.darkness = 0.2
    config.init_parts = "whole"
    return config
"""
    )
    config = load_config(str(path))
    check_config(config)
    assert config.model.graph.message == "offset_votes"
    assert config.data.augment.low_light == 0.2
    assert config.init_scope == "whole"
