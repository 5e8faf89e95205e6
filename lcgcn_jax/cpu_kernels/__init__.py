"""Kernels in C++ for training and inference on a CPU.

XLA has no direct convolution on a CPU: it copies patches of the image and multiplies matrices, which takes
about twice as long for the narrow convolutions of HRNet. Its gradient of a batch normalization makes a dozen
passes over memory, and its bilinear upsampling transposes the image (docs/research/cpu-kernels.md).

The kernels need Linux and a C++ compiler, and are used for float32 in programs for one CPU. Everything else,
and all exports, use XLA's operations, with the same results up to rounding. Their functions have no
derivatives in forward mode.

Slow 1x1 convolutions are https://github.com/openxla/xla/issues/34273; the others are not reported. Delete the
kernels when HRNet-W18 trains as fast on a CPU with XLA's operations.
"""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lcgcn_jax.cpu_kernels.library import compiler_advice, load_library

__all__ = [
    "batch_norm", "compiler_advice", "convolution", "is_active", "kernel_prefix", "load_library", "upsample",
    "with_cpu_kernels",
]  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")

# Part of the key of JAX's caches, so that functions are traced again where it differs.
_ACTIVE_PREFIX = jax.make_user_context(None)


def kernel_prefix(platform: str, num_devices: int = 1, *, build: bool) -> str | None:
    """Prefix of the kernels for programs on these devices (`load_library`).

    Args:
      platform: platform of the devices (`jax.Device.platform`).
      num_devices: number of devices of a program.
      build: whether to compile the kernels if there are none.
    """
    return load_library(build=build) if platform == "cpu" and num_devices == 1 else None


def with_cpu_kernels(function: Callable[P, T], prefix: str | None) -> Callable[P, T]:
    """Trace `function` with the kernels that have a prefix (`kernel_prefix`), if it is not None."""

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> T:
        with _ACTIVE_PREFIX(prefix):
            return function(*args, **kwargs)

    return traced


def is_active(*arrays: Array | None) -> bool:
    """Whether operations on these arrays use the kernels in the function that is being traced."""
    is_float32 = all(array is None or array.dtype == jnp.float32 for array in arrays)
    return _ACTIVE_PREFIX.value is not None and is_float32


def _call(prefix: str, name: str, results: Any, *arrays: Array, **attributes: Any) -> Any:
    call = jax.ffi.ffi_call(prefix + name, results, vmap_method="sequential")
    return call(*arrays, **attributes)


def _like(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def convolution(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "s s i o"],
    *,
    stride: int,
    bias: Float[Array, "o"] | None = None,
    residual: Float[Array, "b hh hw o"] | None = None,
    relu: bool = False,
) -> Float[Array, "b hh hw o"]:
    """Convolution of odd size with the padding `s // 2`, plus bias and residual, then ReLU."""
    y: Any = _convolution(x, kernel, bias, residual, stride, relu, _ACTIVE_PREFIX.value)
    return y


# The prefix is an argument, because gradients can be traced later, outside of `with_cpu_kernels`.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _convolution(
    x: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    stride: int,
    relu: bool,
    prefix: str,
) -> Array:
    others = [array for array in (bias, residual) if array is not None]
    size, outputs = kernel.shape[0], kernel.shape[-1]
    if (size, stride, others, relu) == (1, 1, [], False):
        # XLA's matrix product is as fast; only the gradient of its kernel is slow.
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
    height, width = ((n + size // 2 * 2 - size) // stride + 1 for n in x.shape[1:3])
    shape = jax.ShapeDtypeStruct((x.shape[0], height, width, outputs), x.dtype)
    return _call(prefix, "Convolution", shape, x, kernel, *others, stride=stride, relu=relu)


def _convolution_forward(*arguments: Any) -> tuple[Array, tuple[Any, ...]]:
    x, kernel, bias, residual, _, relu, _ = arguments
    y: Any = _convolution(*arguments)
    # An empty tuple is no array, but differs from None.
    markers = tuple(None if array is None else () for array in (bias, residual))
    return y, (x, kernel, y if relu else None, *markers)


def _convolution_backward(
    stride: int, relu: bool, prefix: str, saved: tuple[Any, ...], gradient: Array
) -> tuple[Array | None, ...]:
    x, kernel, y, has_bias, has_residual = saved
    if relu:
        gradient = jnp.where(y > 0, gradient, 0)
    x_gradient: Any
    if stride == 1:
        mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        x_gradient = _convolution(gradient, mirrored, None, None, 1, False, prefix)
    else:
        pad = kernel.shape[0] // 2
        strided = functools.partial(
            lax.conv_general_dilated,
            rhs=kernel,
            window_strides=(stride, stride),
            padding=[(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        (x_gradient,) = jax.linear_transpose(strided, x)(gradient)
    kernel_gradient = _call(prefix, "KernelGradient", _like(kernel), x, gradient, stride=stride)
    bias_gradient = None if has_bias is None else gradient.sum(axis=(0, 1, 2))
    residual_gradient = None if has_residual is None else gradient
    return x_gradient, kernel_gradient, bias_gradient, residual_gradient


_convolution.defvjp(_convolution_forward, _convolution_backward)


def batch_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    shift: Float[Array, "c"],
    residual: Float[Array, "b h w c"] | None = None,
    *,
    epsilon: float,
    relu: bool,
) -> tuple[Float[Array, "b h w c"], Float[Array, "c"], Float[Array, "c"]]:
    """Batch normalization with the statistics of `x`, plus the residual, then ReLU.

    Args:
      x: input.
      scale: factor of each channel.
      bias: offset of each channel.
      shift: values near the means of the channels, for the precision of the variance.
      residual: added to the normalized input.
      epsilon: added to the variance.
      relu: whether negative outputs become 0.

    Returns:
      Output, mean and variance of each channel. Mean and variance have no gradient.
    """
    outputs: Any = _batch_norm(x, scale, bias, shift, residual, epsilon, relu, _ACTIVE_PREFIX.value)
    return outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    shift: Array,
    residual: Array | None,
    epsilon: float,
    relu: bool,
    prefix: str,
) -> tuple[Array, Array, Array]:
    others = () if residual is None else (residual,)
    results = (_like(x), _like(scale), _like(scale))
    attributes = {"epsilon": np.float32(epsilon), "relu": relu}
    return _call(prefix, "BatchNorm", results, x, scale, bias, shift, *others, **attributes)


def _batch_norm_forward(*arguments: Any) -> tuple[tuple[Array, Array, Array], tuple[Any, ...]]:
    x, scale, _, _, residual, *_ = arguments
    outputs: Any = _batch_norm(*arguments)
    y, mean, variance = outputs
    # An empty tuple is no array, but differs from None.
    marker = None if residual is None else ()
    return (y, mean, variance), (x, y, scale, mean, variance, marker)


def _batch_norm_backward(
    epsilon: float,
    relu: bool,
    prefix: str,
    saved: tuple[Any, ...],
    gradients: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array, None, Array | None]:
    x, y, scale, mean, variance, marker = saved
    results = [_like(x), _like(scale), _like(scale)]
    if marker is not None:
        results.append(_like(x))
    attributes = {"epsilon": np.float32(epsilon), "relu": relu}
    arrays = (x, y, gradients[0], scale, mean, variance)
    x_gradient, scale_gradient, bias_gradient, *residual_gradient = _call(
        prefix, "BatchNormGradient", results, *arrays, **attributes
    )
    residual = residual_gradient[0] if residual_gradient else None
    return x_gradient, scale_gradient, bias_gradient, None, residual


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def upsample(x: Float[Array, "b h w c"], size: tuple[int, ...]) -> Float[Array, "b hh ww c"]:
    """Bilinear upsampling to a height and width, with half-pixel centers."""
    y: Any = _upsample(x, x.shape[1:3], size, _ACTIVE_PREFIX.value)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _upsample(x: Array, before: tuple[int, ...], after: tuple[int, ...], prefix: str) -> Array:
    del before
    return _call(prefix, "Upsampling", _resized(x, after), x)


def _upsample_forward(
    x: Array, before: tuple[int, ...], after: tuple[int, ...], prefix: str
) -> tuple[Array, None]:
    y: Any = _upsample(x, before, after, prefix)
    return y, None


def _upsample_backward(
    before: tuple[int, ...], after: tuple[int, ...], prefix: str, saved: None, gradient: Array
) -> tuple[Array]:
    del after, saved
    return (_call(prefix, "UpsamplingGradient", _resized(gradient, before), gradient),)


_upsample.defvjp(_upsample_forward, _upsample_backward)


def _resized(x: Array, size: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((x.shape[0], *size, x.shape[3]), x.dtype)
