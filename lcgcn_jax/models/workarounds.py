"""Replacements for parts of Flax and JAX that are slow to trace, compile or run.

Each entry names the upstream code or issue and the condition for deletion. `lcgcn bench` and
`benchmarks/step_variants.py` measure it; docs/research/compilation.md has the results.

- `normal_init`, `he_normal`, `glorot_normal`: XLA compiles one sampler for each shape
  (https://github.com/jax-ml/jax/issues/1172, https://github.com/jax-ml/jax/pull/37872). Delete when HRNet-W18
  initializes on a CPU in under 2 s with `nnx.initializers`; the weights then differ for the same seed.
- `make_rngs`: `RngStream` updates its counter by index
  (https://github.com/google/flax/blob/main/flax/nnx/rnglib.py, not reported). Delete when `nnx.eval_shape` of
  HRNet-W18 is as fast with `nnx.Rngs`.
- `Conv`: XLA runs 1x1 convolutions on a CPU 2 to 4 times slower than a matrix product
  (https://github.com/openxla/xla/issues/34273). Delete when `nnx.Conv` is as fast.
- `BatchNorm`: `nnx.BatchNorm` updates its statistics by index
  (https://github.com/google/flax/blob/main/flax/nnx/nn/normalization.py, not reported). Delete when the
  gradient of HRNet-W18 traces as fast with it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lcgcn_jax import cpu_kernels

EPSILON = 1e-5
"""Added to the variance in BatchNorm."""


def per_channel(values: Float[Array, "c"], like: Float[Array, "*b c"]) -> Float[Array, "... c"]:
    """Reshape one value per channel to the dtype and the number of axes of `like`."""
    return values.astype(like.dtype).reshape((1,) * (like.ndim - 1) + values.shape)


def to_float64(weights: nnx.Variable[Array]) -> np.ndarray:
    """Copy weights to the host in float64, for folding."""
    return np.asarray(weights[...], np.float64)


def to_float32(weights: np.ndarray) -> jax.Array:
    """Convert folded weights to float32."""
    # `jnp.asarray` compiles a copy for each shape.
    return jax.device_put(weights.astype(np.float32))


def normal_init(std: float) -> nnx.Initializer:
    """Gaussian initializer that samples with NumPy from the bits of the key.

    A network has hundreds of weights with dozens of shapes, and XLA compiles one sampler for each shape: 20 s
    for the smallest HRNet on a CPU, compared to 1 s with this function.
    """

    def init(
        key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: Any = None
    ) -> Array:
        del out_sharding

        def sample(bits: Array) -> np.ndarray:
            rng = np.random.default_rng(np.asarray(bits).tolist())
            return (std * rng.standard_normal(shape)).astype(dtype)

        bits = jax.random.key_data(key)
        if isinstance(bits, Tracer):
            return jax.pure_callback(sample, jax.ShapeDtypeStruct(shape, dtype), bits)
        return jnp.asarray(sample(bits))  # outside of `jit`, even a callback would be compiled

    return init


def he_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: Any = None
) -> Array:
    """Initialize for ReLU networks (He et al. 2015, fan-out): std sqrt(2 / (outputs x kernel area))."""
    fan_out = math.prod(shape) / shape[-2]
    return normal_init(math.sqrt(2 / fan_out))(key, shape, dtype, out_sharding)


def glorot_normal(
    key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32, out_sharding: Any = None
) -> Array:
    """Initialize by Glorot and Bengio 2010: std sqrt(2 / (inputs + outputs))."""
    return normal_init(math.sqrt(2 / sum(shape)))(key, shape, dtype, out_sharding)


class _RngStream(nnx.RngStream):
    """Stream of keys that replaces its whole counter instead of updating it by index."""

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + jnp.uint32(1))
        return key


def make_rngs(seed: int) -> nnx.Rngs:
    """Create `nnx.Rngs(seed)`, with the same keys, for models that are built under a transformation.

    Under a transformation, each key of `nnx.Rngs` takes longer than the previous one. For the shapes of
    HRNet-W18 the total is four times as long.
    """
    rngs = nnx.Rngs()
    rngs.default = _RngStream(seed, tag="default")  # pyright: ignore[reportAttributeAccessIssue]
    return rngs


class Conv(nnx.Module):
    """Square convolution with the symmetric padding of PyTorch, `size // 2`, in NHWC."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        use_bias: bool = False,
        kernel_init: nnx.Initializer = he_normal,
        bias_init: float = 0.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.size, self.stride, self.dtype = size, stride, dtype
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), (size, size, inputs, outputs), jnp.float32)
        )
        self.bias = nnx.Param(jnp.full((outputs,), bias_init, jnp.float32)) if use_bias else None

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        *,
        residual: Float[Array, "b hh hw o"] | None = None,
        relu: bool = False,
    ) -> Float[Array, "b hh hw o"]:
        """Convolve, add bias and residual, and apply ReLU."""
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        if self.size % 2 and cpu_kernels.is_active(x, kernel, residual):
            bias = None if self.bias is None else self.bias[...]
            return cpu_kernels.convolution(
                x, kernel, stride=self.stride, bias=bias, residual=residual, relu=relu
            )
        if self.size == 1 and self.stride == 1:
            y = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
        else:
            pad = self.size // 2
            y = lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                [(pad, pad), (pad, pad)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.bias is not None:
            y = y + per_channel(self.bias[...], y)
        return _add_and_activate(y, residual, relu=relu)

    def fold(self, norm: "BatchNorm") -> None:
        """Fold the BatchNorm that follows into kernel and bias."""
        factor, offset = norm.scale_and_offset()
        bias = 0.0 if self.bias is None else to_float64(self.bias)
        self.kernel.set_value(to_float32(to_float64(self.kernel) * factor))
        self.bias = nnx.data(nnx.Param(to_float32(bias * factor + offset)))


def _add_and_activate(
    y: Float[Array, "*b c"], residual: Float[Array, "*b c"] | None, *, relu: bool
) -> Float[Array, "*b c"]:
    if residual is not None:
        y = y + residual
    return jax.nn.relu(y) if relu else y


@functools.partial(jax.jit, static_argnames=("momentum", "dtype", "train"))
def _batch_norm(
    x: Float[Array, "*b c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    mean: Float[Array, "c"],
    var: Float[Array, "c"],
    *,
    momentum: float,
    dtype: DTypeLike,
    train: bool,
) -> tuple[Float[Array, "*b c"], Float[Array, "c"], Float[Array, "c"]]:
    """Normalize `x`, and update the running mean and variance.

    The nested `jit` makes a program with hundreds of these trace, differentiate and lower only one for each
    shape. That saves a third of the tracing time of W18's training step.
    """
    running_mean, running_var = mean, var
    x32 = x.astype(jnp.float32)
    if train:
        axes = tuple(range(x.ndim - 1))
        # One pass over x, whose gradient needs no further reduction. Relative to the running mean, because
        # E[x^2] - E[x]^2 loses precision where the mean is large.
        shift = lax.stop_gradient(running_mean)
        difference = x32 - per_channel(shift, x32)
        mean = difference.mean(axis=axes)
        var = jnp.maximum(jnp.square(difference).mean(axis=axes) - jnp.square(mean), 0.0)
        mean = shift + mean
        running_mean = _running_average(running_mean, mean, momentum)
        running_var = _running_average(running_var, var, momentum)
    factor = scale * lax.rsqrt(var + EPSILON)
    offset = bias - mean * factor
    y = (x32 * per_channel(factor, x32) + per_channel(offset, x32)).astype(dtype)
    return y, running_mean, running_var


def _running_average(
    average: Float[Array, "c"], value: Float[Array, "c"], momentum: float
) -> Float[Array, "c"]:
    return momentum * average + (1 - momentum) * lax.stop_gradient(value)


class BatchNorm(nnx.Module):
    """Batch normalization over all axes except the last, with running statistics for evaluation.

    Statistics are replaced as a whole. The indexed update of `nnx.BatchNorm` checks shardings, which makes
    tracing the gradient of HRNet-W18 ten times slower. Under `jit` with a sharded batch, the statistics are
    those of the global batch.
    """

    def __init__(self, channels: int, *, momentum: float, dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs  # accepted so that all layers are constructed alike
        self.momentum, self.dtype = momentum, dtype
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(
        self,
        x: Float[Array, "*b c"],
        *,
        train: bool,
        residual: Float[Array, "*b c"] | None = None,
        relu: bool = False,
    ) -> Float[Array, "*b c"]:
        """Normalize, add the residual, and apply ReLU."""
        if (
            train
            and x.ndim == 4
            and self.dtype == jnp.float32
            and cpu_kernels.is_active(x, residual)
        ):
            return self._with_cpu_kernel(x, residual, relu)
        y, mean, var = _batch_norm(
            x,
            self.scale[...],
            self.bias[...],
            self.mean[...],
            self.var[...],
            momentum=self.momentum,
            dtype=self.dtype,
            train=train,
        )
        if train:
            self.mean.set_value(mean)
            self.var.set_value(var)
        return _add_and_activate(y, residual, relu=relu)

    def _with_cpu_kernel(
        self, x: Float[Array, "b h w c"], residual: Float[Array, "b h w c"] | None, relu: bool
    ) -> Float[Array, "b h w c"]:
        means, variances = self.mean[...], self.var[...]
        y, mean, var = cpu_kernels.batch_norm(
            x, self.scale[...], self.bias[...], means, residual, epsilon=EPSILON, relu=relu
        )
        self.mean.set_value(_running_average(means, mean, self.momentum))
        self.var.set_value(_running_average(variances, var, self.momentum))
        return y

    def scale_and_offset(self) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
        """Return factor and offset of each channel in evaluation, in float64: `x * factor + offset`."""
        factor = to_float64(self.scale) / np.sqrt(to_float64(self.var) + EPSILON)
        return factor, to_float64(self.bias) - to_float64(self.mean) * factor
