import dataclasses
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulator import bucket, emulator  # noqa: F401
from flax import nnx
from safetensors.numpy import save_file

from lcgcn_jax.errors import InputError
from lcgcn_jax.interop.torch_weights import AUTHORS_GRAPH, export_weights
from lcgcn_jax.landmarks import IBUG68, WFLW98
from lcgcn_jax.models.bundles import BEST, WEIGHTS, Bundle, abstract_weights, save_bundle
from lcgcn_jax.models.registry import create_model
from lcgcn_jax.models.weights import split_weights
from lcgcn_jax.training.config import default_config, to_json
from lcgcn_jax.training.config_types import Config
from lcgcn_jax.training.pretrained import INIT_SCOPES, load_pretrained_weights, read_source
from lcgcn_jax.training.sharding import make_mesh
from lcgcn_jax.training.trainer import Trainer

# After the first array of a damaged checkpoint fails, the others report to a closed event loop of Orbax.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ARCH = "tiny"


@functools.cache
def abstract_model(model, k):
    """A model without arrays, traced once per configuration, and its weights' shapes."""
    built = nnx.eval_shape(lambda: create_model(json.loads(model), k, rngs=nnx.Rngs(0)))
    return built, *split_weights(built)[1:]


def load_weights(config, scheme=WFLW98):
    """Initial weights of a configuration, and the message; random weights are abstract arrays."""
    model, params, batch_stats = abstract_model(
        json.dumps(config.model.to_dict()), scheme.num_landmarks
    )
    typed = Config.from_dict(config.to_dict())
    params, batch_stats, message = load_pretrained_weights(
        typed, scheme, model, params, batch_stats
    )
    return params | batch_stats, message


def assert_loaded(result, weights, *prefixes, excluded=()):
    """Weights with these prefixes are equal to `weights`, and all others are random."""
    loaded = {n for n in result if n.startswith(prefixes) and not n.startswith(excluded)}
    assert len(loaded) > 5
    for name, value in result.items():
        if name in loaded:
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, weights[name])
        else:
            assert isinstance(value, jax.ShapeDtypeStruct), name


def random_weights(model, k):
    _, params, batch_stats = abstract_weights(model, k)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=w.shape).astype(np.float32)
        for name, w in sorted((params | batch_stats).items())
    }
    return {name: np.abs(w) if name.endswith(".var") else w for name, w in weights.items()}


@pytest.fixture
def tiny_bundle(tiny_config):
    model = tiny_config.model.to_dict()
    return Bundle(model, WFLW98, 32, random_weights(model, 98))


@pytest.fixture
def from_bundle(tiny_config, tiny_bundle, tmp_path):
    """Tiny configuration that starts from a bundle of it."""
    save_bundle(tmp_path / "bundle", tiny_bundle, "")
    tiny_config.init_from = str(tmp_path / "bundle")
    return tiny_config


HEAD, HEATMAP = "heatmap_model.out.", "heatmap_model."
SCOPES = {"heatmap": ((HEATMAP,), ()), "whole": (("",), ()), "backbone": ((HEATMAP,), (HEAD,))}


@pytest.mark.parametrize("scope", INIT_SCOPES)
@pytest.mark.parametrize("as_file", [False, True])
def test_bundle_initializes_its_scope(from_bundle, tiny_bundle, scope, as_file):
    from_bundle.init_scope = scope
    if as_file:
        from_bundle.init_from += f"/{WEIGHTS}"
    weights, message = load_weights(from_bundle)
    prefixes, excluded = SCOPES[scope]
    assert_loaded(weights, tiny_bundle.weights, *prefixes, excluded=excluded)
    expected = f"starts with the {INIT_SCOPES[scope]} of {from_bundle.init_from}"
    assert message == expected + ("; the head is random" if scope == "backbone" else "")


def test_backbone_is_loaded_for_another_number_of_landmarks(from_bundle, tiny_bundle):
    from_bundle.init_scope = "backbone"
    weights, _ = load_weights(from_bundle, IBUG68)
    assert_loaded(weights, tiny_bundle.weights, HEATMAP, excluded=(HEAD,))
    assert weights["heatmap_model.out.bias"].shape == (68,)


def test_half_precision_is_converted_to_float32(from_bundle, tiny_bundle, tmp_path):
    save_bundle(tmp_path / "bundle", tiny_bundle, "", dtype=np.float16)
    weights, _ = load_weights(from_bundle)
    name = "heatmap_model.conv2.conv.kernel"
    assert weights[name].dtype == np.float32
    np.testing.assert_array_equal(weights[name], tiny_bundle.weights[name].astype(np.float16))


def two_steps(config, ema_decay):
    config.train.ema_decay = ema_decay
    config.train.steps = config.train.eval_every = 2
    config.train.checkpoint_every = 1
    return config


@pytest.fixture(scope="module", params=[0.9, 0.0], ids=["ema", "no_ema"])
def trained(request, make_tiny_config, tmp_path_factory):
    """Workdir with checkpoints of two steps and no best model, and the weights to evaluate."""
    config = two_steps(make_tiny_config(), ema_decay=request.param)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    training = Trainer(config, workdir, make_mesh(1)).prepare()
    training.run()
    shutil.rmtree(workdir / BEST)
    weights = {n: np.asarray(v) for part in training.state.evaluated for n, v in part.items()}
    return workdir, weights


with_ema = pytest.mark.parametrize("trained", [0.9], ids=["ema"], indirect=True)


@pytest.fixture
def run(trained, tmp_path):
    """Copy of that workdir."""
    return shutil.copytree(trained[0], tmp_path / "source")


def load_from(config, path):
    config.init_from = str(path)
    return load_weights(config)


@pytest.mark.slow
def test_run_without_a_best_model_gives_its_latest_checkpoint(tiny_config, trained):
    workdir, evaluated = trained
    tiny_config.init_scope = "whole"
    latest, message = load_from(tiny_config, workdir)
    assert_loaded(latest, evaluated, "")
    assert message == f"starts with the whole model of {workdir}"
    second, _ = load_from(tiny_config, workdir / "checkpoints" / "2")
    assert_loaded(second, evaluated, "")
    first, _ = load_from(tiny_config, workdir / "checkpoints" / "1")
    assert any(not np.array_equal(first[name], value) for name, value in evaluated.items())


@with_ema
def test_best_model_takes_precedence_over_checkpoints(tiny_config, tiny_bundle, run):
    save_bundle(run / BEST, tiny_bundle, "")
    weights, _ = load_from(tiny_config, run)
    assert_loaded(weights, tiny_bundle.weights, HEATMAP)


@with_ema
def test_resumed_run_does_not_read_init_from(tiny_config, run):
    config = two_steps(tiny_config, ema_decay=0.9)
    config.init_from = "gone"
    (run / "config.json").write_text(to_json(config))
    training = Trainer(config, run, make_mesh(1)).prepare()
    assert (training.start_message, training.step) == ("", 2)


# PyTorch files, of a small HRNet.


def hrnet_config(graph=True, activation="linear"):
    config = default_config()
    config.model.heatmap.arch = ARCH
    config.model.heatmap.activation = activation
    config.model.heatmap_offset = 2.5
    if not graph:
        config.model.graph = None
    return config


@pytest.fixture(scope="module")
def hrnet():
    """Bundle of HRNet with the authors' graph head, and its PyTorch state."""
    config = hrnet_config()
    config.model.graph.update(dataclasses.asdict(AUTHORS_GRAPH))
    model = config.model.to_dict()
    weights = random_weights(model, 98)
    weights |= {
        name: 0 * w
        for name, w in weights.items()
        if name.startswith("graph.blocks") and w.ndim == 1
    }
    bundle = Bundle(model, WFLW98, 256, weights)
    return bundle, export_weights(bundle, graph=True, source="bundle")


@pytest.fixture
def face(hrnet):
    """State of the heatmap model only, with the names of HRNet-Facial-Landmark-Detection."""
    graph = ("class_embedding", "edges", "visual_feature_embedding", "gcn_layers")
    return {key: value for key, value in hrnet[1].items() if not key.startswith(graph)}


HEAD_PREFIXES = tuple(f"heatmap_model.head_{part}." for part in ("conv", "bn", "out"))
BACKBONE_PREFIXES = ("conv", "bn", "layer1", "transition", "stage")


def write(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    return path


def mmpose(state):
    head = {
        "head.0": "head.conv_layers.0",
        "head.1": "head.conv_layers.1",
        "head.3": "head.final_layer",
    }
    return {
        head[key[:6]] + key[6:] if key[:6] in head else f"backbone.{key}": value
        for key, value in state.items()
    }


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("scope", ["heatmap", "backbone"])
def test_pytorch_file_initializes_its_scope(hrnet, face, tmp_path, ending, scope):
    config = hrnet_config()
    config.init_scope = scope
    weights, message = load_from(config, write(tmp_path / f"face{ending}", face))
    assert_loaded(
        weights, hrnet[0].weights, HEATMAP, excluded=HEAD_PREFIXES if scope == "backbone" else ()
    )
    assert message.startswith(f"starts with the {INIT_SCOPES[scope]} of {tmp_path}")


@pytest.mark.slow
def test_names_of_mmpose_are_mapped(hrnet, face, tmp_path):
    config = hrnet_config()
    config.model.heatmap_offset = 0.0
    weights, message = load_from(config, write(tmp_path / "face.safetensors", mmpose(face)))
    assert_loaded(weights, hrnet[0].weights, HEATMAP)
    assert message.endswith("face.safetensors")


@pytest.mark.slow
def test_file_of_the_authors_gives_the_whole_model(hrnet, tmp_path):
    bundle, state = hrnet
    config = hrnet_config(activation="sigmoid")
    config.model.heatmap_offset = 2.0
    config.model.graph = bundle.model["graph"]
    config.init_scope = "whole"
    path = write(tmp_path / "lcgcn.safetensors", state)
    weights, _ = load_from(config, path)
    assert_loaded(weights, bundle.weights, "")
    config.init_scope = "heatmap"
    weights, _ = load_from(config, path)
    assert_loaded(weights, bundle.weights, HEATMAP)


@pytest.mark.parametrize("scope", ["heatmap", "backbone"])
def test_imagenet_file_gives_its_backbone(hrnet, face, tmp_path, scope):
    state = {key: value for key, value in face.items() if key.startswith(BACKBONE_PREFIXES)}
    state["classifier.weight"] = np.ones((3, 2), np.float32)
    config = hrnet_config(activation="sigmoid")
    config.init_scope = scope
    path = write(tmp_path / "imagenet.safetensors", state)
    weights, message = load_from(config, path)
    assert_loaded(weights, hrnet[0].weights, HEATMAP, excluded=HEAD_PREFIXES)
    assert message == f"starts with the backbone of {path}; the head is random"


@pytest.mark.slow
def test_other_meaning_of_heatmaps_is_reported(face, tmp_path):
    config = hrnet_config(activation="sigmoid")
    config.model.heatmap_offset = None
    _, message = load_from(config, write(tmp_path / "face.safetensors", face))
    assert message.endswith(
        "face.safetensors, whose heatmaps have to learn another config (model.heatmap.activation: "
        "'linear' -> 'sigmoid'; model.heatmap_offset: 2.5 -> 1.5)"
    )


def error_of(config, scheme=WFLW98):
    with pytest.raises(InputError) as caught:
        load_weights(config, scheme)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_frozen_heatmaps_need_the_same_meaning(hrnet, face, tmp_path):
    config = hrnet_config(activation="sigmoid")
    config.init_from = str(write(tmp_path / "face.safetensors", face))
    config.train.mode = "frozen"
    message = error_of(config)
    assert "(model.heatmap.activation: 'linear' -> 'sigmoid')" in message
    assert message.endswith("give --config.model.heatmap.activation=linear")
    config.model.heatmap_offset = None
    message = error_of(config)
    assert "model.heatmap_offset: 2.5 -> 1.5)" in message
    assert message.endswith(
        "give --config.model.heatmap.activation=linear --config.model.heatmap_offset=2.5"
    )
    config.model.heatmap_offset = 2.5
    config.model.heatmap.activation = "linear"
    weights, _ = load_weights(config)
    assert_loaded(weights, hrnet[0].weights, HEATMAP)


def test_random_head_cannot_be_frozen(from_bundle):
    from_bundle.init_scope, from_bundle.train.mode = "backbone", "frozen"
    assert "the head would be random, and train.mode 'frozen'" in error_of(from_bundle)


def test_backbone_is_rejected_as_whole_model(face, tmp_path):
    state = {key: value for key, value in face.items() if key.startswith(BACKBONE_PREFIXES)}
    config = hrnet_config(graph=False)
    config.init_from = str(write(tmp_path / "imagenet.safetensors", state))
    config.init_scope = "whole"
    assert error_of(config).endswith("has only a backbone; set config.init_scope to 'backbone'")


def test_another_number_of_landmarks_is_rejected(from_bundle):
    message = error_of(from_bundle, IBUG68)
    assert "its heatmaps are of 98 landmarks, and ibug68 has 68" in message
    assert "config.init_scope to 'backbone'" in message


def test_bundle_of_another_size_is_rejected(from_bundle, tiny_bundle, tmp_path):
    model = tiny_bundle.model | {"heatmap": {"name": "two_convs", "width": 6}}
    save_bundle(tmp_path / "bundle", Bundle(model, WFLW98, 32, random_weights(model, 98)), "")
    from_bundle.unlock().model.heatmap = {"name": "two_convs", "width": 8}
    message = error_of(from_bundle)
    assert (
        "weights cannot be used with the configuration; the first: heatmap_model.conv1.bn.bias"
        in message
    )
    assert message.endswith("its config is another one (model.heatmap.width: 6 -> 8)")


@pytest.mark.slow
def test_file_of_another_size_is_rejected(face, tmp_path):
    config = hrnet_config()
    config.model.heatmap.arch = "w18-small-v2"
    config.init_from = str(write(tmp_path / "face.safetensors", face))
    message = error_of(config)
    assert "face.safetensors: " in message
    assert "keys do not fit the model" in message
    assert "layer1.1.conv1.weight" in message


def test_pytorch_file_in_a_bucket_is_an_error(bucket):  # noqa: F811
    (bucket / "x.pth").write_text("1")
    with pytest.raises(InputError, match=r"/x\.pth: read from a disk only; copy it with `gcloud"):
        read_source(bucket / "x.pth", Config())


@pytest.mark.parametrize("scope", ["heatmap", "backbone"])
def test_unknown_missing_and_misshapen_keys_are_listed(face, tmp_path, scope):
    state = {key: value for key, value in face.items() if key != "conv1.weight"}
    state |= {"extra": np.ones(1, np.float32), "bn1.weight": np.ones(63, np.float32)}
    config = hrnet_config()
    config.init_scope = scope
    config.init_from = str(write(tmp_path / "face.safetensors", state))
    message = error_of(config)
    for part in ("unknown: extra", "missing: conv1.weight", "bn1.weight (63,) instead of (64,)"):
        assert part in message


def test_model_without_head_modules_has_no_backbone(toy, from_bundle):
    with from_bundle.ignore_type():
        from_bundle.model.heatmap = {"name": "toy"}
    from_bundle.init_scope = "backbone"
    assert "'toy' does not define its head" in error_of(from_bundle)


class Code:
    """Object whose unpickling runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_pickle_is_rejected_and_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(
        {"conv1.weight": torch.zeros(2), "extra": Code(tmp_path / "ran")}, tmp_path / "a.pth"
    )
    config = hrnet_config()
    config.init_from = str(tmp_path / "a.pth")
    assert "a.pth: its pickle calls posix.system" in error_of(config)
    assert not (tmp_path / "ran").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_checkpoint(config, tmp_path):
    config.init_from = str(tmp_path / "source")
    for data in (tmp_path / "source" / "checkpoints" / "2" / "state").rglob("d/*"):
        data.write_bytes(bytes(data.stat().st_size))
    return "checkpoints/2: not a checkpoint, or damaged"


def checkpoint_of_another_config(config, tmp_path):
    config.init_from = str(tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    changed = json.loads(file.read_text())
    changed["model"]["heatmap"]["width"] = 6
    file.write_text(json.dumps(changed))
    return "checkpoints/2: .* weights do not fit"


def checkpoint_without_a_config(config, tmp_path):
    config.init_from = str(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text("{}")
    return r"config\.json: not a run's configuration: no 'model'"


def missing(config, tmp_path):
    config.init_from = str(tmp_path / "gone.pth")
    config.unlock().model.heatmap = {"name": "hrnet", "arch": ARCH}
    return r"gone\.pth: no such file"


def nowhere(config, tmp_path):
    config.init_from = str(tmp_path / "nowhere")
    return "nowhere: no such bundle or training workdir"


def no_bundle(config, tmp_path):
    (tmp_path / "empty").mkdir()
    config.init_from = str(tmp_path / "empty")
    return "empty: neither a bundle"


def truncated(config, tmp_path):
    truncate(tmp_path / "bundle" / WEIGHTS)
    return "model.safetensors: cannot be read"


def not_an_hrnet(config, tmp_path):
    config.init_from = str(tmp_path / "face.pth")
    return r"face\.pth: PyTorch weights can be read for HRNet only, and .* is 'two_convs'"


def unknown_part(config, tmp_path):
    config.init_scope = "head"
    return "init_scope: got 'head'; expected one of heatmap, whole, backbone"


@pytest.mark.parametrize(
    "break_source",
    [
        damaged_checkpoint,
        checkpoint_of_another_config,
        checkpoint_without_a_config,
        missing,
        nowhere,
        no_bundle,
        truncated,
        not_an_hrnet,
        unknown_part,
    ],
    ids=lambda break_source: break_source.__name__,
)
@with_ema
def test_unusable_init_from_is_reported_in_one_line(from_bundle, run, tmp_path, break_source):
    message = break_source(from_bundle, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        Trainer(from_bundle, tmp_path / "run", make_mesh(1)).prepare()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_take_effect(from_bundle, tiny_bundle, tmp_path):
    """From the source to the outputs of the model."""
    from_bundle.init_scope = "whole"
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    training = Trainer(from_bundle, tmp_path / "run", make_mesh(1)).prepare()
    _, params, batch_stats = tiny_bundle.create()
    expected = training._predict_step(params, batch_stats, jnp.asarray(images))
    np.testing.assert_array_equal(training.predict(images).landmarks, expected.landmarks)


# Growth.


@pytest.fixture
def small_bundle(tmp_path):
    """Path of a bundle of `tiny`, and its weights."""
    model = hrnet_config().model.to_dict()
    weights = random_weights(model, 68)
    save_bundle(tmp_path / "small", Bundle(model, IBUG68, 32, weights), "")
    return str(tmp_path / "small"), weights


@pytest.mark.parametrize("scope", ["heatmap", "whole"])
def test_smaller_hrnet_is_embedded(small_bundle, scope):
    config = hrnet_config()
    config.model.heatmap.arch = "w18-small-v1"
    config.init_from, config.init_scope, config.init_grow = small_bundle[0], scope, True
    built, params, batch_stats = abstract_model(json.dumps(config.model.to_dict()), 68)
    initial = random_weights(config.model.to_dict(), 68)
    params, batch_stats, message = load_pretrained_weights(
        Config.from_dict(config.to_dict()),
        IBUG68,
        built,
        {name: jnp.asarray(initial[name]) for name in params},
        {name: jnp.asarray(initial[name]) for name in batch_stats},
    )
    part = "heatmap model" if scope == "heatmap" else "whole model"
    assert message == f"starts with the {part} of {small_bundle[0]}, grown to w18-small-v1"
    name = "heatmap_model.stages.2.0.branches.3.0.conv1.conv.kernel"
    np.testing.assert_array_equal(params[name][..., :32, :32], small_bundle[1][name])
    assert not np.any(params[name][..., 32:, :32])
    np.testing.assert_array_equal(params[name][..., 32:], initial[name][..., 32:])
    # The features of the branches have 4, 8, 16 and 32 channels, and then 16, 32, 64 and 128.
    name = "graph.embedding.linears.0.kernel"
    expected = small_bundle[1] if scope == "whole" else initial
    rows = np.r_[0:4, 16:24, 48:64, 112:144] if scope == "whole" else np.s_[:]
    np.testing.assert_array_equal(params[name][rows], expected[name])


def test_mismatch_names_growth_where_it_helps(small_bundle):
    config = hrnet_config()
    config.model.heatmap.arch = "w18-small-v1"
    config.init_from = small_bundle[0]
    with pytest.raises(
        InputError, match=r"\(model\.heatmap\.arch.*--config\.init_grow=True embeds"
    ):
        load_weights(config, IBUG68)


def test_larger_hrnet_or_other_model_cannot_grow(from_bundle, tmp_path):
    from_bundle.init_grow = True
    with pytest.raises(InputError, match=r"bundle: config\.init_grow is for HRNet only"):
        load_weights(from_bundle)
    config = hrnet_config()
    config.model.heatmap.arch = "w18-small-v1"
    model = config.model.to_dict()
    weights = random_weights(model, 68)
    save_bundle(tmp_path / "large", Bundle(model, IBUG68, 32, weights), "")
    config.model.heatmap.arch = ARCH
    config.init_from, config.init_grow = str(tmp_path / "large"), True
    with pytest.raises(InputError, match="large: its HRNet w18-small-v1 does not fit in tiny; set"):
        load_weights(config, IBUG68)
