"""Tests of `profiling.gpu_program`."""

import pytest

from lcgcn_jax.profiling.gpu_program import Kernels, array_bytes, count_kernels

# Shortened output of XLA's GPU compiler of jaxlib 0.10.2.
HLO = """HloModule jit_train_step, is_scheduled=true

%region_0 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused_reduce (param_0: bf16[8,64]) -> f32[64] {
  %param_0 = bf16[8,64]{1,0} parameter(0)
  %convert = f32[8,64]{1,0} convert(%param_0)
  %zero = f32[] constant(0)
  ROOT %reduce = f32[64]{0} reduce(%convert, %zero), dimensions={0}, to_apply=%region_0
}

%fused_add (param_0.1: f32[4,4], param_1: f32[1000]) -> f32[4,4] {
  %param_0.1 = f32[4,4]{1,0} parameter(0)
  %param_1 = f32[1000]{0} parameter(1)
  %slice = f32[16]{0} slice(%param_1), slice={[16:32]}
  %bitcast.1 = f32[4,4]{1,0} bitcast(%slice)
  ROOT %add.1 = f32[4,4]{1,0} add(%param_0.1, %bitcast.1)
}

%fused_transpose (param_0.2: bf16[64,8]) -> bf16[8,64] {
  %param_0.2 = bf16[64,8]{1,0} parameter(0)
  ROOT %transpose = bf16[8,64]{1,0} transpose(%param_0.2), dimensions={1,0}
}

%fused_scatter (param_0.3: f32[4,4]) -> (f32[4,4], f32[4,4]) {
  %param_0.3 = f32[4,4]{1,0} parameter(0)
  ROOT %tuple.1 = (f32[4,4]{1,0}, f32[4,4]{1,0}) tuple(%param_0.3, %param_0.3)
}

ENTRY %main.1 (x: bf16[64,8], w: bf16[64,64], p: f32[4,4], u: f32[1000]) -> (f32[64], f32[4,4]) {
  %x = bf16[64,8]{1,0} parameter(0)
  %w = bf16[64,64]{1,0} parameter(1)
  %p = f32[4,4]{1,0} parameter(2)
  %u = f32[1000]{0} parameter(3)
  %input_transpose_fusion = bf16[8,64]{1,0} fusion(%x), kind=kInput, calls=%fused_transpose
  %custom-call.1 = (bf16[8,64]{1,0}, s8[33554432]{0}) custom-call(%input_transpose_fusion, %w), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}
  %get-tuple-element = bf16[8,64]{1,0} get-tuple-element(%custom-call.1), index=0
  %cudnn-conv.1 = (bf16[8,64]{1,0}, s8[0]{0}) custom-call(%get-tuple-element, %w), \
custom_call_target="__cudnn$convForward"
  %get-tuple-element.1 = bf16[8,64]{1,0} get-tuple-element(%cudnn-conv.1), index=0
  %all-reduce-start = bf16[8,64]{1,0} all-reduce-start(%get-tuple-element.1), to_apply=%region_0
  %all-reduce-done = bf16[8,64]{1,0} all-reduce-done(%all-reduce-start)
  %input_reduce_fusion = f32[64]{0} fusion(%all-reduce-done), kind=kInput, calls=%fused_reduce
  %loop_add_fusion.125 = f32[4,4]{1,0} fusion(%p, %u), kind=kLoop, calls=%fused_add
  %input_scatter_fusion = (f32[4,4]{1,0}, f32[4,4]{1,0}) fusion(%p), kind=kInput, calls=%fused_scatter
  %triton_softmax.2 = bf16[64,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_transpose
  %copy.5 = f32[4,4]{0,1} copy(%p)
  %while.3 = (s32[], f32[1000]{0}) while(%u), condition=%region_0, body=%region_0
  ROOT %tuple = (f32[64]{0}, f32[4,4]{1,0}) tuple(%input_reduce_fusion, %loop_add_fusion.125)
}
"""


def test_kernels_by_kind():
    matrix, weights, vector = 2 * 8 * 64, 2 * 64 * 64, 4 * 64
    assert count_kernels(HLO) == {
        "matrix product": Kernels(1, matrix + weights + matrix),
        "convolution": Kernels(1, matrix + weights + matrix),
        "transpose": Kernels(1, 2 * matrix),
        "reduction": Kernels(2, matrix + vector + 2 * matrix),
        "scatter": Kernels(1, 3 * 4 * 16),
        # Of the vector with 1,000 values, only a slice is read.
        "elementwise": Kernels(2, 3 * 4 * 16 + 2 * 4 * 16),
    }


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[2,3]{1,0}", 24), ("(bf16[8], pred[3], s8[])", 20), ("token[]", 0), ("f64[0]", 0)],
)
def test_array_bytes(shape, size):
    assert array_bytes(shape) == size
