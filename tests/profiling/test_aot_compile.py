"""Tests of `profiling.aot_compile`."""

import dataclasses
import importlib.util
import math
import re

import pytest

from lcgcn_jax.errors import InputError, install_command
from lcgcn_jax.profiling import aot_compile
from lcgcn_jax.profiling.aot_compile import (
    CHIPS,
    GIB,
    Collective,
    StepCost,
    collectives,
    compile_step,
    devices_of,
    largest_batch,
    least_seconds,
)
from lcgcn_jax.training.config import load_config

needs_cuda_plugin = pytest.mark.skipif(
    not importlib.util.find_spec("jax_plugins")
    or not (
        importlib.util.find_spec("jax_plugins.xla_cuda13")
        or importlib.util.find_spec("jax_plugins.xla_cuda12")
    ),
    reason="the CUDA plugin of JAX is not installed: the extra cuda",
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu (the TPU compiler) is not installed: the extra tpu",
)


@pytest.fixture
def tiny_config():
    """The paper's configuration at 32 px with the tiny heatmap model."""
    config = load_config("w300_lcgcn")
    config.model.heatmap.arch = "tiny"
    config.data.image_size = 32
    return config


# Shortened output of libtpu 0.0.52.
HLO = """
  %all-reduce.3 = (f32[512,512]{1,0:T(8,128)S(1)}, f32[512]{0:T(512)}) all-reduce(%fusion.2, %gte.8), \
channel_id=1, replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%add.clone
  %get-tuple-element.4 = f32[512,512]{1,0:T(8,128)S(1)} get-tuple-element(%all-reduce.3), index=0
  %all-reduce-start = bf16[3,64]{1,0:T(8,128)(2,1)} all-reduce-start(%fusion.9), channel_id=2
  %all-reduce-done = bf16[3,64]{1,0:T(8,128)(2,1)} all-reduce-done(%all-reduce-start)
  %all-gather.12 = pred[256,8]{1,0:T(8,128)(4,1)} all-gather(%bitcast.26), dimensions={0}
  %all-gather-start = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), dimensions={0}
  %reduce-scatter = s32[]{:T(128)} reduce-scatter(%bitcast.1), to_apply=%add
  %collective-permute-start = (f32[512,1,1]{0,1,2:T(1,128)S(1)}, f32[512,1,1]{0,1,2:T(1,128)S(1)}, \
u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%slice.4), source_target_pairs={{1,0},{3,2}}
  %fusion.21 = f32[512,1]{0,1} fusion(%collective-permute-done.2, %all-reduce.3), calls=%all-to-all.7
  %all-to-all = u8[4,128,64]{1,2,0} all-to-all(%bitcast.28), dimensions={0}, metadata={op_name="sort"}
"""


def test_collectives_by_kind():
    assert collectives(HLO) == {
        "all-reduce": Collective(2, 4 * (512 * 512 + 512) + 2 * 3 * 64),
        "all-gather": Collective(2, 256 * 8 + 4 * 8),
        "reduce-scatter": Collective(1, 4),
        "collective-permute": Collective(1, 4 * 512),
        "all-to-all": Collective(1, 4 * 128 * 64),
    }


@pytest.fixture
def cost():
    """Factory of costs whose memory per chip is 2 GiB + 0.25 GiB per face."""

    def make(batch_size, *, topology="v5e:2x2", chips=4):
        memory = 2 * GIB + GIB * batch_size // (4 * chips)
        return StepCost(topology, chips, batch_size, memory, {}, 197e12, 819e9, {})

    return make


@pytest.mark.parametrize(
    ("topology", "chips", "faces"), [("v5e:2x2", 4, 55), ("v5e:4x4", 16, 55), ("v5p:2x2x1", 4, 374)]
)
def test_largest_batch_is_extrapolated_from_two(cost, topology, chips, faces):
    costs = [cost(n * chips, topology=topology, chips=chips) for n in (16, 8)]
    assert largest_batch(costs) == largest_batch(costs[::-1]) == faces * chips


def test_largest_batch_of_a_model_that_does_not_fit_is_zero(cost):
    costs = [dataclasses.replace(cost(n), memory=cost(n).memory + 20 * GIB) for n in (4, 8)]
    assert largest_batch(costs) == 0


def test_constant_memory_raises(cost):
    with pytest.raises(InputError, match="give a larger --batch-size"):
        largest_batch([cost(4), dataclasses.replace(cost(8), memory=cost(4).memory)])


def test_least_seconds_is_the_larger_of_memory_and_arithmetic_time(cost):
    assert least_seconds(cost(4)) == pytest.approx(1.0)
    assert least_seconds(dataclasses.replace(cost(4), flops=394e12)) == pytest.approx(2.0)
    assert least_seconds(dataclasses.replace(cost(4), bytes_accessed=3 * 819e9)) == pytest.approx(3)


@pytest.mark.parametrize("topology", ["v9:2x2", "4x4", "", "h300:1"])
def test_unknown_chip_raises(topology):
    with pytest.raises(InputError, match="v5e:4x4"):
        devices_of(topology)


@pytest.mark.parametrize("topology", ["h200", "h200:", "h200:0", "h200:9", "h200:1x1", "h100:-1"])
def test_unknown_number_of_gpus_raises(topology):
    with pytest.raises(InputError, match=r"1 to 8, such as h[12]00:8"):
        devices_of(topology)


def test_missing_cuda_plugin_raises_with_the_install_command(monkeypatch):
    monkeypatch.setattr(aot_compile.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape(install_command("cuda"))):
        devices_of("h200:1")


def test_missing_libtpu_raises_with_the_install_command(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        aot_compile.importlib.util,
        "find_spec",
        lambda name: None if name == "libtpu" else find_spec(name),
    )
    with pytest.raises(InputError, match=re.escape(install_command("tpu"))):
        devices_of("v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e", "v5e:3x3", "v5e:two"])
def test_unknown_shape_raises(topology):
    with pytest.raises(InputError, match=f"^{topology}: "):
        devices_of(topology)


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "chips"),
    [("v5e:2x2", 4), ("v5e:4x4", 16), ("v5e:16x16", 256), ("v4:2x2x1", 4), ("v4:2x2x2", 8),
     ("v6e:2x2", 4), ("v6e:4x4", 16)],
)  # fmt: skip
def test_the_training_step_compiles_for_a_slice(tiny_config, topology, chips):
    cost = compile_step(tiny_config, topology, 2 * chips)
    assert cost.num_chips == chips
    assert 0 < cost.memory == sum(cost.parts.values()) < CHIPS[topology.split(":")[0]].memory
    assert cost.flops > 0
    assert math.isfinite(least_seconds(cost))
    assert cost.collectives["all-reduce"].size > 0


@pytest.mark.slow
@needs_cuda_plugin
@pytest.mark.parametrize(("topology", "gpus"), [("h200:1", 1), ("h100:2", 2)])
def test_the_training_step_compiles_for_gpus(tiny_config, topology, gpus):
    cost = compile_step(tiny_config, topology, 2 * gpus)
    assert cost.num_chips == gpus
    assert 0 < cost.memory == sum(cost.parts.values()) < CHIPS[topology.split(":")[0]].memory
    assert cost.flops > 0
    assert {"convolution", "matrix product", "reduction", "elementwise"} < cost.kernels.keys()
    assert cost.bytes_accessed == sum(kernels.size for kernels in cost.kernels.values())
    assert bool(cost.collectives) == (gpus > 1)


@needs_libtpu
def test_the_extrapolated_limit_agrees_with_the_compiler(tiny_config):
    costs = [compile_step(tiny_config, "v5e:2x2", n) for n in (4096, 8192)]
    limit = largest_batch(costs)
    assert limit > 8192
    with pytest.raises(InputError, match="does not fit v5e:2x2; give a smaller --batch-size"):
        compile_step(tiny_config, "v5e:2x2", 2 * limit)
    assert compile_step(tiny_config, "v5e:2x2", 4 * int(0.9 * limit / 4)).batch_size < limit
