"""Ranges of configuration fields."""

import dataclasses
import functools
import math

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.models.config import GRAPHS, HEATMAP_CONFIGS
from lcgcn_jax.training.config import apply_overrides, config_names, default_config, load_config
from lcgcn_jax.training.config_checks import (
    FIELDS,
    GRAPH_FIELDS,
    HEATMAP_MODEL_FIELDS,
    check_config,
    leaf_fields,
)


@pytest.fixture
def config():
    return default_config().lock()


def refusal(config):
    with pytest.raises(InputError) as error:
        check_config(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_field_has_a_range():
    leaves = leaf_fields(default_config().to_dict())
    leaves = {n for n in leaves if not n.startswith(("model.heatmap.", "model.graph."))}
    assert leaves == FIELDS.keys()


@pytest.mark.parametrize("name", GRAPHS)
def test_every_field_of_a_graph_has_a_range(name):
    assert {f.name for f in dataclasses.fields(GRAPHS[name])} == GRAPH_FIELDS[name].keys()


@pytest.mark.parametrize("name", HEATMAP_CONFIGS)
def test_every_option_of_a_heatmap_model_has_a_range(name):
    options = {field.name for field in dataclasses.fields(HEATMAP_CONFIGS[name])}
    assert options == HEATMAP_MODEL_FIELDS[name].keys()


@pytest.mark.parametrize("name", config_names())
@pytest.mark.parametrize("argument", ["", ":small"])
def test_shipped_configs_are_in_range(name, argument):
    check_config(load_config(name + argument))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, {}, [None], b"x", True, ""])
def test_invalid_values_are_refused_for_every_field(config, name, value):
    """Some fields accept -1, true or an empty text."""
    allowed = {
        -1: ("model.heatmap_offset",),
        True: ("train.cache", "train.remat"),
        "": ("init_from", "data.offsets"),
    }
    *path, last = name.split(".")
    node = config
    for part in path:
        node = node[part]
    with node.ignore_type(), node.unlocked():
        node[last] = value
    if value is True and node[last] is not True:
        return  # ml_collections converted it to a number
    if not isinstance(value, float | dict | list) and name in allowed.get(value, ()):
        if name != "train.cache":  # needs frozen mode
            check_config(config)
        return
    assert name in refusal(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "config train.steps: got 0; expected a whole number from 1 to"),
        ("train.steps=many", "config train.steps: got 'many'; expected a whole number"),
        ("train.steps=1.5", "config train.steps: got 1.5; expected a whole number"),
        ("train.steps=true", "config train.steps: got True; expected a whole number"),
        ("train.steps=9999999999", "config train.steps: got 9999999999;"),
        ("train.epochs=0", "config train.epochs: got 0.0; expected a number above 0"),
        ("train.epochs=nan", "config train.epochs: got nan;"),
        ("train.eval_every_epochs=-2", "config train.eval_every_epochs: got -2.0;"),
        ("train.eval_every=0", "config train.eval_every: got 0;"),
        ("train.log_every=0", "config train.log_every: got 0;"),
        ("train.keep=0", "config train.keep: got 0;"),
        ("train.batch_size=-8", "config train.batch_size: got -8;"),
        ("train.ema_decay=1", "config train.ema_decay: got 1.0; expected a number of at least 0 and below 1"),
        ("data.image_size=-64", "config data.image_size: got -64;"),
        ("data.image_size=130", "got 130; expected a multiple of 4, the stride of the heatmap model"),
        ("data.views=-1", "config data.views: got -1;"),
        ("data.augment.zoom=1.2,0.8", "got (1.2, 0.8); expected low and high, low <= high, each"),
        ("data.augment.zoom=1", "config data.augment.zoom: got (1.0,);"),
        ("data.augment.zoom=", "config data.augment.zoom: got ();"),
        ("data.augment.zoom=0.8,1,1.2", "config data.augment.zoom: got (0.8, 1.0, 1.2);"),
        ("data.augment.zoom=.nan,1", "config data.augment.zoom: got (nan, 1.0);"),
        ("data.augment.shift=50", "config data.augment.shift: got 50.0; expected a number from 0 to 0.5"),
        ("data.augment.occlusion_side=0.2,2", "config data.augment.occlusion_side: got (0.2, 2.0);"),
        ("optimizer.milestones=0.8,0.5", "at most 1, in ascending order"),
        ("optimizer.milestones=0,0.5", "config optimizer.milestones: got (0.0, 0.5);"),
        ("optimizer.milestones=50,80", "config optimizer.milestones: got (50.0, 80.0);"),
        ("optimizer.warmup_steps=-1", "config optimizer.warmup_steps: got -1;"),
        ("optimizer.learning_rate.graph=-1e-3", "config optimizer.learning_rate.graph: got -0.001;"),
        ("optimizer.schedule=cosin", "expected one of constant, cosine, step; did you mean 'cosine'?"),
        ("loss.sigma=0", "config loss.sigma: got 0.0; expected a number from 0.25 to 16"),
        (
            "loss.heatmap=mae",
            "config loss.heatmap: got 'mae'; expected one of focal, bce, mse, adaptive_wing",
        ),
        ("model.decode=sharp", "config model.decode: got 'sharp'; expected one of argmax"),
        ("model.bn_momentum=1", "config model.bn_momentum: got 1.0;"),
        ("model.heatmap_offset=left", "got 'left'; expected a number from -64 to 64, or null"),
        ("model.heatmap.arch=w19", "config model.heatmap.arch: got 'w19';"),
        ("model.graph.refinements=-1", "config model.graph.refinements: got -1;"),
        ("model.graph.gcn_widths=64,16", "config model.graph.gcn_widths: got (64, 16); expected"),
        ("model.graph.gcn_widths=", "config model.graph.gcn_widths: got ();"),
        ("model.graph.pair_width=0", "config model.graph.pair_width: got 0;"),
        ("seed=-1", "config seed: got -1; expected a whole number from 0 to 4,294,967,295"),
        ("data.dir= ", "config data.dir: got ' '; expected a text that is not empty"),
        ("data.sources=[[a, 1], [a, 2]]", "config data.sources: got (('a', 1), ('a', 2)); expected"),
        ("data.sources=[[a, 0]]", "config data.sources: got (('a', 0),); expected ((dir, weight), ...)"),
        ("data.sources=[[a]]", "config data.sources: got (('a',),);"),
        ("data.sources=[[a, 1, 2]]", "config data.sources: got (('a', 1, 2),); expected"),
        ("data.sources=[[a, 1, b, c]]", "config data.sources: got (('a', 1, 'b', 'c'),); expected"),
        ("data.sources=[[a, 1, '']]", "or (dir, weight, offsets file) for some"),
        ("data.sources=[a, 1]", "config data.sources: got ('a', 1);"),
        ("optimizer.method=sgd", "config optimizer.method: got 'sgd'; expected"),
        ("train.cache=true", "config train.cache: needs a frozen heatmap model"),
    ],
)  # fmt: skip
def test_message_states_the_value_and_the_range(config, override, message):
    name, _, text = override.partition("=")
    apply_overrides(config, {name: text})
    assert message in refusal(config)


@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        ("joint", ("loss.heatmap_weight", "loss.coordinate_weight")),
        ("heatmap_only", ("loss.heatmap_weight",)),
        ("frozen", ("optimizer.learning_rate.graph",)),
    ],
)
def test_run_without_anything_to_learn_is_refused(config, mode, fields):
    apply_overrides(config, {"train.mode": mode} | dict.fromkeys(fields, "0"))
    message = refusal(config)
    assert "nothing is learned" in message
    assert all(field in message for field in fields)


@pytest.mark.parametrize(
    "overrides", [{"train.mode": "frozen"}, {"optimizer.learning_rate.heatmap": "0"}]
)
def test_muon_is_refused_without_kernels_to_train(config, overrides):
    apply_overrides(config, {"optimizer.method": "muon"} | overrides)
    assert "optimizer.method: 'muon' is for the kernels of the heatmap model" in refusal(config)


def test_one_loss_is_enough_to_learn(config):
    apply_overrides(config, {"loss.heatmap_weight": "0", "train.mode": "heatmap_only"})
    assert "nothing is learned" in refusal(config)
    config.loss.heatmap_coordinate = "smooth_l1"
    check_config(config)
    config.loss.heatmap_coordinate_weight = 0.0
    assert "loss.heatmap_coordinate_weight" in refusal(config)
    apply_overrides(config, {"train.mode": "joint", "loss.coordinate_weight": "0"})
    assert "nothing is learned" in refusal(config)
    config.model.visibility.head = "attention"
    check_config(config)


def test_missing_and_unknown_fields_are_refused(config):
    with config.unlocked():
        del config.train["keep"]
    assert refusal(config) == (
        "config train.keep: is missing; expected a whole number from 1 to 2,147,483,647"
    )
    with config.unlocked():
        config.train.keeep = 2
    assert refusal(config) == "config train.keeep: unknown field; did you mean 'train.keep'?"


@pytest.mark.parametrize(
    "name", ["model", "model.heatmap", "train", "optimizer.learning_rate", "data.augment"]
)
def test_null_group_of_fields_is_refused(config, name):
    with pytest.raises(InputError, match=f"^config {name}: is a group of fields; set one of them$"):
        apply_overrides(config, {name: "null"})
    *path, last = name.split(".")
    node = functools.reduce(lambda node, part: node[part], path, config)
    with config.unlocked(), config.ignore_type():  # as a config file can
        node[last] = None
    assert f"config {name}: " in refusal(config)


def test_registered_heatmap_model_without_a_graph_is_accepted(config):
    config.train.mode = "heatmap_only"
    with config.unlocked(), config.ignore_type():
        config.model.graph = None
        config.model.heatmap = {"name": "mine", "depth": -3}
    check_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train.mode": "frozen"}, "its weights would be random; set init_from"),
        ({"init_grow": "true"}, "grows the model of init_from, which is empty"),
    ],
)
def test_fields_that_need_pretrained_weights(config, fields, message):
    apply_overrides(config, fields)
    assert message in refusal(config)
    config.init_from = "w300-lcgcn-small"
    check_config(config)
