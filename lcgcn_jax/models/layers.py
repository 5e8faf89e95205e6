"""Convolution, normalization and MLP: the parts that the models share.

Everything is NHWC. Parameters and statistics are float32; `dtype` is what is computed in.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from lcgcn_jax.heatmaps import ACTIVATIONS

PRIOR_BIAS = -2.19
"""Bias before a sigmoid: every cell starts at a probability of 0.1, or the focal loss diverges."""

_EPSILON = 1e-5  # of BatchNorm

Images = Float[Array, "b h w i"]
Outputs = Float[Array, "b hh hw o"]


def _per_channel(values: Float[Array, "c"], like: Float[Array, "*b c"]) -> Float[Array, "... c"]:
    """One value a channel, in the type and with the number of axes of `like`."""
    return values.astype(like.dtype).reshape((1,) * (like.ndim - 1) + values.shape)


def _wide(weights: nnx.Variable) -> np.ndarray:
    return np.asarray(weights[...], np.float64)


def _narrow(weights: np.ndarray) -> jax.Array:
    return jnp.asarray(weights, jnp.float32)


def normal_init(deviation: float) -> nnx.Initializer:
    """Gaussian initial weights, drawn by NumPy from the key's bits.

    A network has hundreds of weights of dozens of shapes, and XLA compiles a sampler for each of them:
    20 s for the smallest HRNet on CPU, against 1 s this way.
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding

        def draw(bits):
            rng = np.random.default_rng(np.asarray(bits).tolist())
            return (deviation * rng.standard_normal(shape)).astype(dtype)

        bits = jax.random.key_data(key)
        if isinstance(bits, jax.core.Tracer):
            return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), bits)
        return jnp.asarray(draw(bits), dtype)  # a callback, even here, is a program to compile

    return init


def he_normal(key, shape, dtype=jnp.float32, out_sharding=None):
    """He et al. 2015 for ReLU networks, by outputs: deviation sqrt(2 / (outputs x kernel area))."""
    outputs = math.prod(shape) / shape[-2]
    return normal_init(math.sqrt(2 / outputs))(key, shape, dtype, out_sharding)


def glorot_normal(key, shape, dtype=jnp.float32, out_sharding=None):
    """Glorot and Bengio 2010: deviation sqrt(2 / (inputs + outputs))."""
    return normal_init(math.sqrt(2 / sum(shape)))(key, shape, dtype, out_sharding)


class _Stream(nnx.RngStream):
    """Counts by replacing its count whole, as `BatchNorm` does with its statistics, and as slow otherwise."""

    def __call__(self) -> Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + jnp.uint32(1))
        return key


def make_rngs(seed: int) -> nnx.Rngs:
    """`nnx.Rngs(seed)`, with the same keys, for models that are built under a transformation.

    There each key of `nnx.Rngs` takes longer than the one before: HRNet-W18's shapes four times as long.
    """
    rngs = nnx.Rngs()
    rngs.default = _Stream(seed, tag="default")
    return rngs


class Conv(nnx.Module):
    """Square convolution with PyTorch's symmetric padding of `size // 2`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        use_bias: bool = False,
        kernel_init=he_normal,
        bias_init: float = 0.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.size, self.stride, self.dtype = size, stride, dtype
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), (size, size, inputs, outputs), jnp.float32)
        )
        self.bias = nnx.Param(jnp.full((outputs,), bias_init, jnp.float32)) if use_bias else None

    def __call__(self, x: Images) -> Outputs:
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        if self.size == 1 and self.stride == 1:
            # The same thing; on CPU, XLA runs it 2-4 times faster than a 1x1 convolution.
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
        return y if self.bias is None else y + _per_channel(self.bias[...], y)

    def fold(self, norm: "BatchNorm") -> None:
        """Takes in the BatchNorm that follows: from here on the two are this convolution alone."""
        factor, offset = norm.in_evaluation()
        bias = 0.0 if self.bias is None else _wide(self.bias)
        self.kernel.set_value(_narrow(_wide(self.kernel) * factor))
        self.bias = nnx.data(nnx.Param(_narrow(bias * factor + offset)))


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
    """Normalised `x`, and the running mean and variance after it.

    Under a `jit` of its own, so that a program with hundreds of them traces, differentiates and lowers one a
    shape, not each: a third less time for W18's training step.
    """
    running = mean, var
    if train:
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(jnp.float32)
        mean = wide.mean(axis=axes)
        # Subtracting first: E[x^2] - E[x]^2 loses its digits where the mean is large.
        var = jnp.square(wide - _per_channel(mean, wide)).mean(axis=axes)
        running = tuple(
            momentum * old + (1 - momentum) * lax.stop_gradient(new)
            for old, new in zip(running, (mean, var), strict=True)
        )
    factor = scale * lax.rsqrt(var + _EPSILON)
    offset = bias - mean * factor
    x = x.astype(dtype)
    return x * _per_channel(factor, x) + _per_channel(offset, x), *running


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last, with running statistics for evaluation.

    `nnx.BatchNorm` writes its statistics through an indexed assignment whose sharding check makes
    tracing the gradient of HRNet-W18 ten times slower; this one replaces the value whole.
    Under `jit` with a sharded batch the statistics are those of the global batch.
    """

    def __init__(self, channels: int, *, momentum: float, dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs  # nothing random in it; the argument is there for uniform construction
        self.momentum, self.dtype = momentum, dtype
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
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
        return y

    def in_evaluation(self) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
        """What it does to each channel in evaluation: `x * factor + offset`, in float64."""
        factor = _wide(self.scale) / np.sqrt(_wide(self.var) + _EPSILON)
        return factor, _wide(self.bias) - _wide(self.mean) * factor


class Identity(nnx.Module):
    """Stands where a BatchNorm was that its neighbor has taken in; hands on what it gets."""

    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
        if train:
            raise ValueError("the BatchNorms of this model are folded: it cannot be trained")
        return x


class ConvBN(nnx.Module):
    """Convolution without bias, then BatchNorm; no activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        momentum: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(inputs, outputs, size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(outputs, momentum=momentum, dtype=dtype, rngs=rngs)

    def __call__(self, x: Images, *, train: bool) -> Outputs:
        return self.bn(self.conv(x), train=train)

    def fold_batch_norm(self) -> None:
        """See `folding.fold_batch_norm`."""
        self.conv.fold(self.bn)
        self.bn = Identity()


def heatmap_conv(
    inputs: int, num_landmarks: int, activation: str, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> Conv:
    """A heatmap model's last layer: 1x1, starting at `PRIOR_BIAS`, or at 0 if linear.

    Raises:
      ValueError: not one of `heatmaps.ACTIVATIONS`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; use one of {', '.join(ACTIVATIONS)}")
    return Conv(
        inputs,
        num_landmarks,
        1,
        use_bias=True,
        kernel_init=normal_init(0.001),
        bias_init=PRIOR_BIAS if activation == "sigmoid" else 0.0,
        dtype=dtype,
        rngs=rngs,
    )


def run_module(module: nnx.Module, x: PyTree[Array], *, train: bool, remat: bool) -> PyTree[Array]:
    """`module(x, train=train)`; with `remat` its inner values are computed again for the gradient.

    They need not be kept until then: memory for time (Chen et al. 2016). Value, gradient and statistics
    are the same.
    """
    if not remat:
        return module(x, train=train)
    return nnx.remat(lambda module, x: module(x, train=train))(module, x)


NORMS = ("batch", "layer", "none")
MLP_ENDS = ("linear", "relu", "relu_norm")


class MLP(nnx.Module):
    """Linear layers on the last axis; every one but the last is followed by ReLU, then the norm.

    The order (linear, ReLU, norm) is that of the LCGCN authors' code. Leading axes are independent, as
    if vmapped, but for the batch norm's statistics, which are taken over all of them.

    Args:
      inputs: channels of the input.
      widths: channels after each layer.
      norm: one of `NORMS`.
      end: what the last layer is followed by: nothing (`linear`), `relu`, or `relu_norm`.
      momentum: part of the running statistics kept a step.
      dtype: what is computed in.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        *,
        norm: str,
        end: str = "linear",
        momentum: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if end not in MLP_ENDS:
            raise ValueError(f"unknown end {end!r}; use one of {MLP_ENDS}")
        self.end = end
        sizes = (inputs, *widths)
        self.linears = nnx.List(
            nnx.Linear(m, n, kernel_init=glorot_normal, dtype=dtype, rngs=rngs)
            for m, n in itertools.pairwise(sizes)
        )
        normed = widths if end == "relu_norm" else widths[:-1]
        self.norms = nnx.List(
            _norm(norm, n, momentum=momentum, dtype=dtype, rngs=rngs) for n in normed
        )

    def __call__(self, x: Float[Array, "*b i"], *, train: bool) -> Float[Array, "*b o"]:
        activated = len(self.linears) - (self.end == "linear")
        for i, (linear, norm) in enumerate(itertools.zip_longest(self.linears, self.norms)):
            x = linear(x)
            if i < activated:
                x = jax.nn.relu(x)
            if isinstance(norm, BatchNorm):
                x = norm(x, train=train)
            elif norm is not None:
                x = norm(x)
        return x

    def fold_batch_norm(self) -> None:
        """See `folding.fold_batch_norm`; a norm behind the last layer has none to go into, and stays."""
        for i, (norm, after) in enumerate(zip(self.norms, self.linears[1:], strict=False)):
            if isinstance(norm, BatchNorm):
                factor, offset = norm.in_evaluation()
                kernel = _wide(after.kernel)
                after.bias.set_value(_narrow(_wide(after.bias) + offset @ kernel))
                after.kernel.set_value(_narrow(factor[:, None] * kernel))
                self.norms[i] = None


def _norm(kind: str, channels: int, *, momentum: float, dtype: DTypeLike, rngs: nnx.Rngs):
    if kind == "batch":
        return BatchNorm(channels, momentum=momentum, dtype=dtype, rngs=rngs)
    if kind == "layer":
        return nnx.LayerNorm(channels, dtype=dtype, rngs=rngs)
    if kind == "none":
        return None
    raise ValueError(f"unknown norm {kind!r}; use one of {NORMS}")


def upsample_bilinear(x: Images, shape: tuple[int, int]) -> Float[Array, "b hh hw i"]:
    """Bilinear upsampling with half-pixel centers (PyTorch's `align_corners=False`).

    Two matrix products with fixed interpolation matrices: exact, fast on every backend, and within what
    ONNX exporters support.
    """
    if x.shape[1:3] == shape:
        return x
    rows, columns = (
        jnp.asarray(_interpolation_matrix(n, m), x.dtype)
        for n, m in zip(x.shape[1:3], shape, strict=True)
    )
    return jnp.einsum("Yy,byxc,Xx->bYXc", rows, x, columns)


@functools.lru_cache
def _interpolation_matrix(n: int, m: int) -> np.ndarray:
    """`[m n]` matrix that interpolates n samples at m positions."""
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.minimum(position.astype(int), max(n - 2, 0))
    matrix = np.zeros((m, n))
    matrix[np.arange(m), low] = 1 - (position - low)
    matrix[np.arange(m), np.minimum(low + 1, n - 1)] += position - low
    return matrix
