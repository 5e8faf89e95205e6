import importlib.util
from pathlib import Path

import pytest

from lcgcn_jax.errors import InputError
from lcgcn_jax.training import config as config_module
from lcgcn_jax.training.config import (
    apply_overrides,
    config_names,
    default_config,
    differences,
    fill_in,
    load_config,
)
from lcgcn_jax.training.config_checks import check_config
from lcgcn_jax.training.config_types import Config, resolve_steps
from lcgcn_jax.training.optimizer import make_schedule

ROOT = Path(__file__).parents[2]
CONFIGS = (
    "demo",
    "wflw_lcgcn",
    "wflw_lcgcn_best",
    "w300_lcgcn",
    "w300_lcgcn_best",
    "w300_dag",
    "w300_hrnet18",
    "wflw_hrnet18",
    "w300_hourglass",
)


def test_config_names_lists_all_configs():
    assert sorted(CONFIGS) == config_names()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("argument", ["", ":small"])
def test_configs_load_by_name(name, argument):
    config = load_config(name + argument)
    assert set(config.to_dict()) == set(default_config().to_dict())


@pytest.mark.parametrize(
    ("spec", "faces", "size"),
    [("w300_lcgcn:frozen", 2833, 256), ("w300_lcgcn:small,frozen", 1802, 128)],
)
def test_frozen_argument_is_the_ablation_of_the_paper(spec, faces, size):
    config = resolve_steps(Config.from_dict(load_config(spec).to_dict()), faces)
    assert (config.train.mode, config.train.cache, config.data.image_size) == ("frozen", True, size)
    peak = config.optimizer.learning_rate.graph
    rate = make_schedule(config.optimizer, peak, config.train.steps)
    epoch = faces / config.train.batch_size
    assert config.train.steps == pytest.approx(32 * epoch, abs=1)
    rates = [float(rate(int(e * epoch))) for e in (0.1, 1.9, 2.1, 31.9)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("name", ["mine.py", "mine.PY"])
def test_config_loads_by_path(tmp_path, name):
    path = tmp_path / name
    path.write_text(
        "from lcgcn_jax.training.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.seed = 7\n    return config\n"
    )
    assert load_config(str(path)).seed == 7


@pytest.mark.parametrize("name", ["config.json", "mine.yaml", "mine"])
def test_other_files_are_not_configs(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"{name}: a config is a Python file"):
        load_config(str(tmp_path / name))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py", "nowhere.py: no such config file"),
        ("w300_lcgcn:smal", "unknown field 'smal'; did you mean 'small'"),
    ],
)
def test_missing_config_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        load_config(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines get_config"),
        ("def get_config(:", "cannot be run as a config"),
        (
            "from lcgcn_jax.training.config import default_config\n"
            "def get_config():\n    c = default_config()\n    c.lock()\n    c.trian = 1\n    return c\n",
            "trian",
        ),
        (
            "from lcgcn_jax.training.config import default_config\n"
            "def get_config():\n    c = default_config()\n    c.seed = 1.5\n    return c\n",
            r"TypeError: .*seed.* \(line 4\)",
        ),
        ("1 / 0", r"cannot be run as a config: ZeroDivisionError: .*\(line 1\)"),
        ("get_config = 5", "defines get_config"),
        ("raise SystemExit(3)", r"cannot be run as a config: SystemExit: 3 \(line 1\)"),
        ("def get_config():\n    exit(3)", r"SystemExit: 3 \(line 2\)"),
        ("def get_config():\n    return {}", "has to return a ConfigDict, not dict"),
    ],
)
def test_bad_config_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.steps", "100", 100),
        ("optimizer.learning_rate.graph", "1e-3", 1e-3),
        ("loss.sigma", "2", 2.0),
        ("data.dir", "1234", "1234"),
        ("model.decode", "dark", "dark"),
        ("model.graph.gcn_widths", "[32, 2]", (32, 2)),
        ("model.graph.gcn_widths", "(32, 2)", (32, 2)),
        ("model.graph.gcn_widths", "32,2", (32, 2)),
        ("data.augment.zoom", "(0.9, 1)", (0.9, 1.0)),
        ("data.sources", "", ()),
        ("model.graph", "null", None),
        ("init_from", "None", ""),
        ("data.image_size", "0200", 200),
        ("train.steps", "1_000", 1000),
        ("loss.sigma", "-.5e1", -5.0),
        ("data.augment.zoom", "0.9, 010", (0.9, 10.0)),
        ("data.offsets", "null", ""),
    ],
)
def test_override_has_the_type_of_the_field(name, text, value):
    config = default_config().lock()
    apply_overrides(config, {name: text})
    for part in name.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in config] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.step", "1", "unknown field 'step'; did you mean 'steps'"),
        ("modle.decode", "dark", "unknown field 'modle'; did you mean 'model'"),
        ("train.batch_size", "many", "expected a whole number"),
        ("train.batch_size", "1.5", "expected a whole number"),
        ("data.sources", "data/a", "not a list; give"),
        ("train.batch_size", "[1", "'\\[1' cannot be read"),
        ("train.batch_size", "2020-99-99", "cannot be read"),
        ("train.batch_size", "true", "expected a whole number"),
        ("train.batch_size", "", "expected a whole number"),
        ("train.ema_decay", "true", "expected a number"),
        ("data.augment.rotation", "1:30", "expected a number"),
        ("train.batch_size", "0x10", "expected a whole number"),
        ("data.augment.zoom", "(wide, 1)", "got 'wide'; expected a number"),
        ("model.graph.gcn_widths", "[32, 2.5]", "got '2.5'; expected a whole number"),
        ("train.steps.x", "1", "train.steps has no fields"),
        ("model", "1", "is a group of fields"),
        ("x", "y", "^config: unknown field 'x'"),
    ],
)
def test_bad_override_is_one_line(name, text, message):
    with pytest.raises(InputError, match=message) as error:
        apply_overrides(default_config().lock(), {name: text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["null", "None", "none"])
def test_graph_can_be_left_out(text):
    config = default_config().lock()
    for _ in range(2):  # the second time, it is null already
        apply_overrides(config, {"model.graph": text, "train.mode": "heatmap_only"})
        assert config.model.graph is None
        check_config(config)
    with pytest.raises(InputError, match=r"unknown value 'lcgn'; did you mean 'lcgcn'"):
        apply_overrides(config, {"model.graph.name": "lcgn", "model.graph.refinements": "1"})
    with pytest.raises(InputError, match=r"model\.graph is null; set model\.graph\.name too"):
        apply_overrides(config, {"model.graph.refinements": "1"})
    apply_overrides(config, {"model.graph.refinements": "1", "model.graph.name": "lcgcn"})
    assert config.model.graph.refinements == 1
    check_config(config)


def test_another_name_replaces_the_options():
    config = default_config().lock()
    overrides = {"model.graph.fine_steps": "2", "model.graph.name": "dag"}
    apply_overrides(config, overrides | {"model.heatmap.name": "hourglass"})
    assert config.model.graph.to_dict() == {
        "name": "dag",
        "width": 128,
        "blocks": 3,
        "fine_steps": 2,
    }
    assert set(config.model.heatmap) == {"name", "stacks", "width", "activation"}
    check_config(config)
    apply_overrides(config, {"model.heatmap.name": "hrnet", "model.graph.name": "lcgcn"})
    assert config.model.heatmap.arch == "w18"
    assert config.model.to_dict() == default_config().model.to_dict()
    with pytest.raises(InputError, match="unknown field 'stacks'"):
        apply_overrides(config, {"model.heatmap.name": "hrnet", "model.heatmap.stacks": "2"})


def test_path_of_a_project_config_names_it():
    with pytest.raises(InputError, match="give only its name, w300_lcgcn"):
        load_config("configs/elsewhere/w300_lcgcn.py:small")


def test_configs_of_a_checkout_that_is_not_installed(monkeypatch):
    names = config_names()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(config_module, "__file__", str(ROOT / "lcgcn_jax/training/config.py"))
    assert config_names() == names
    assert load_config("w300_lcgcn:small").train.batch_size > 0


def test_folder_beside_an_installed_package_has_no_configs(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/other.py").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(config_module, "__file__", str(tmp_path / "lcgcn_jax/training/config.py"))
    assert config_names() == []


def test_override_of_data_sources():
    config = default_config().lock()
    apply_overrides(config, {"data.sources": "[[data/a (1), 3], [b, 0.5]]"})
    assert config.data.sources == (("data/a (1)", 3), ("b", 0.5))
    apply_overrides(config, {"data.sources": "[[a, 3], [b, 0.5, b.json]]"})
    assert config.data.sources == (("a", 3), ("b", 0.5, "b.json"))


def test_missing_fields_of_an_older_version_get_their_defaults():
    new = default_config().to_dict()
    old = default_config().to_dict()
    del old["model"]["heatmap_offset"], old["model"]["graph"]["norm"]
    assert not differences(fill_in(old, new), new)
    new["model"]["heatmap_offset"], new["train"]["steps"] = 0.0, 7
    assert differences(fill_in(old, new), new) == [
        "model.heatmap_offset: None -> 0.0",
        "train.steps: None -> 7",
    ]


def test_fields_of_another_heatmap_model_are_not_filled_in():
    old, new = default_config().to_dict(), default_config().to_dict()
    for config in (old, new):
        config["model"]["heatmap"] = {"name": "hourglass", "stacks": 2}
    assert fill_in(old, new) == old
    old["model"]["graph"] = None
    assert fill_in(old, new) == old


def test_differences_name_the_fields():
    old = default_config().to_dict()
    config = default_config()
    config.train.steps = 7
    assert differences(old, config.to_dict()) == ["train.steps: None -> 7"]
