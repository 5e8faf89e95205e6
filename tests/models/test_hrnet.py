import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_reference import torch_normal, torch_tensor

from lcgcn_jax.compilation import compiler_options
from lcgcn_jax.errors import InputError
from lcgcn_jax.fields import constraints_of
from lcgcn_jax.models.bundles import abstract_weights
from lcgcn_jax.models.config import HRNetConfig
from lcgcn_jax.models.functional import FunctionalModel
from lcgcn_jax.models.hrnet import ARCHS, HRNet
from lcgcn_jax.models.layers import PRIOR_BIAS, make_rngs
from lcgcn_jax.models.registry import create_model

# Channels of the concatenated branches; w18 runs at full size below.
CHANNELS = {"w48": 720, "w18-small-v1": 240, "w18-small-v2": 270, "tiny": 60}


def model_config(**heatmap):
    heatmap = {"name": "hrnet", "arch": "w18"} | heatmap
    return {"heatmap": heatmap, "decode": "argmax", "graph": None, "bn_momentum": 0.99}


def make(arch="tiny", *, dtype=jnp.float32, **options):
    return HRNet(HRNetConfig(arch, **options), 7, dtype=dtype, rngs=make_rngs(0))


def shapes(arch, side, **options):
    def run():
        model = make(arch, **options)
        return model(jnp.zeros((2, side, side + 32, 3)), train=False)

    return nnx.eval_shape(run)


def test_every_arch_has_a_size():
    assert constraints_of(HRNetConfig)["arch"].choices == tuple(ARCHS)


@pytest.mark.parametrize(
    "arch",
    [arch if arch == "tiny" else pytest.param(arch, marks=pytest.mark.slow) for arch in CHANNELS],
)
def test_heatmaps_and_features_have_stride_4(arch):
    logits, features = shapes(arch, 64)
    assert logits.shape == (2, 16, 24, 7)
    assert features.shape == (2, 16, 24, CHANNELS[arch])


@pytest.mark.parametrize(("arch", "width"), [("w18", 18), ("w32", 32), ("w48", 48)])
def test_each_branch_is_twice_as_wide(arch, width):
    assert ARCHS[arch].widths == (width, 2 * width, 4 * width, 8 * width)


def test_outputs_are_bfloat16():
    logits, features = shapes("w18-small-v1", 64, dtype=jnp.bfloat16)
    assert logits.dtype == features.dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def small():
    return make(features="head")


def test_head_features_are_the_input_of_the_last_convolution(small):
    images = jnp.asarray(torch_normal("image", (1, 32, 32, 3)))
    logits, features = nnx.jit(lambda model: model(images, train=False))(small)
    assert features.shape == (1, 8, 8, CHANNELS["tiny"])
    np.testing.assert_allclose(small.head_out(features), logits, rtol=1e-6)


def test_initial_probability_is_the_prior(small):
    assert (small.head_out.bias[...] == PRIOR_BIAS).all()
    assert abs(small.head_out.kernel[...]).max() < 0.01


def test_initial_linear_heatmap_is_0():
    model = make(activation="linear")
    assert model.activation == "linear"
    assert not model.head_out.bias[...].any()


def test_weights_are_float32_with_bfloat16_computation():
    _, params, batch_stats = abstract_weights(model_config(arch="tiny"), 7, dtype=jnp.bfloat16)
    assert {x.dtype for x in (params | batch_stats).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "w19"}, r"'w19'.*w18-small-v1"),
        ({"features": "tail"}, r"'tail'.*concat"),
        ({"activation": "tanh"}, r"'tanh'.*linear"),
    ],
)
def test_unknown_options_are_an_error(options, message):
    with pytest.raises(InputError, match=message):
        create_model(model_config(**options), 3, rngs=nnx.Rngs(0))


# Parity with the public PyTorch code; see ../shared/parity/README.md.


@functools.cache
def w18_weights(k):
    return abstract_weights(model_config(), k)


def torch_key(name):
    """Key of a weight in the PyTorch code."""
    *path, module, leaf = name.removeprefix("heatmap_model.").split(".")
    kind = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    leaf = kind.get(leaf, leaf)
    index = {"conv": "0", "bn": "1"}.get(module)  # in an nn.Sequential of convolution and norm
    match path:
        case []:
            head = {"head_conv": "head.0", "head_bn": "head.1", "head_out": "head.3"}
            return f"{head[module]}.{leaf}"
        case [stem] if stem in ("stem1", "stem2"):
            return f"{module}{stem[-1]}.{leaf}"
        case ["stage1", block, "shortcut"]:
            return f"layer1.{block}.downsample.{index}.{leaf}"
        case ["stage1", block, conv]:
            return f"layer1.{block}.{module}{conv[-1]}.{leaf}"
        case ["transitions", stage, "convs", branch]:
            new = int(branch) == int(stage) + 1
            return f"transition{int(stage) + 1}.{branch}.{'0.' if new else ''}{index}.{leaf}"
        case ["stages", stage, m, "branches", branch, block, conv]:
            return f"stage{int(stage) + 2}.{m}.branches.{branch}.{block}.{module}{conv[-1]}.{leaf}"
        case ["stages", stage, m, "fuse", target, source, step]:
            step = f"{step}." if int(source) < int(target) else ""
            return f"stage{int(stage) + 2}.{m}.fuse_layers.{target}.{source}.{step}{index}.{leaf}"
    raise AssertionError(name)


def torch_shapes(shared, k):
    keys = json.loads((shared / "parity" / f"hrnet_face_{k}_keys.json").read_text())
    return {key: tuple(shape) for key, shape in keys if not key.endswith("num_batches_tracked")}


@pytest.mark.slow
def test_weights_match_those_of_the_public_code(shared):
    _, params, batch_stats = w18_weights(98)
    ours = {
        torch_key(name): tuple(np.array(w.shape)[[3, 2, 0, 1]]) if w.ndim == 4 else w.shape
        for name, w in (params | batch_stats).items()
    }
    assert len(ours) == len(params) + len(batch_stats)
    assert ours == torch_shapes(shared, 98)


@pytest.mark.slow
def test_w18_has_the_number_of_parameters_of_the_public_code(shared):
    _, params, _ = w18_weights(98)
    count = sum(math.prod(w.shape) for w in params.values())
    trained = {n: s for n, s in torch_shapes(shared, 98).items() if "running" not in n}
    assert count == sum(math.prod(shape) for shape in trained.values())
    assert count == pytest.approx(9.66e6, rel=2e-3)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.slow
def test_outputs_match_those_of_the_public_code(shared):
    graphdef, params, batch_stats = w18_weights(68)
    tensors = torch_shapes(shared, 68)

    def weight(name):
        key = torch_key(name)
        tensor = torch_tensor(key, tensors[key])
        return jnp.asarray(tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def forward(params, batch_stats, images):
        hrnet = FunctionalModel(graphdef, params, batch_stats).merge().heatmap_model
        logits, concat = hrnet(images, train=False)
        head = jax.nn.relu(hrnet.head_bn(hrnet.head_conv(concat), train=False))
        return logits[:, ::2, ::2], concat[:, ::8, ::8], head[:, ::8, ::8]

    image = jnp.asarray(torch_normal("image", (1, 3, 256, 256)).transpose(0, 2, 3, 1))
    outputs = forward(
        {name: weight(name) for name in params}, {name: weight(name) for name in batch_stats}, image
    )
    theirs = np.load(shared / "parity" / "hrnet_face_68.npz")
    names = ("heatmap_logits", "concat_features", "head_features")
    errors = {
        name: relative_error(np.asarray(ours).reshape(theirs[name].shape), theirs[name])
        for name, ours in zip(names, outputs, strict=True)
    }
    assert max(errors.values()) < 1e-5, errors
