"""Layers that the models share: convolution with BatchNorm, MLP, upsampling.

Arrays are NHWC. Parameters and statistics are float32; `dtype` is the dtype of the computation.
"""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
import functools
import itertools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lcgcn_jax import cpu_kernels
from lcgcn_jax.heatmaps import Activation
from lcgcn_jax.models.config import Norm
from lcgcn_jax.models.workarounds import (
    BatchNorm,
    Conv,
    glorot_normal,
    he_normal,
    make_rngs,
    normal_init,
    to_float32,
    to_float64,
)

__all__ = [
    "MLP", "PRIOR_BIAS", "BatchNorm", "Conv", "ConvBN", "Identity", "glorot_normal", "he_normal",
    "heatmap_conv", "make_rngs", "normal_init", "run_module", "upsample_bilinear",
]  # fmt: skip

PRIOR_BIAS = -2.19
"""Initial bias before a sigmoid: every pixel starts at probability 0.1, or the focal loss diverges."""

T = TypeVar("T")
Images = Float[Array, "b h w i"]
Outputs = Float[Array, "b hh hw o"]


class Identity(nnx.Module):
    """Identity that replaces a folded BatchNorm."""

    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
        if train:
            raise ValueError(
                "the BatchNorms of this model are folded, so it cannot be trained; train the model before "
                "`fold_batch_norm`"
            )
        return x


class ConvBN(nnx.Module):
    """Convolution without bias, followed by BatchNorm, an optional residual and an optional ReLU."""

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

    def __call__(
        self, x: Images, *, train: bool, residual: Outputs | None = None, relu: bool = False
    ) -> Outputs:
        if isinstance(self.bn, Identity):
            return self.bn(self.conv(x, residual=residual, relu=relu), train=train)
        return self.bn(self.conv(x), train=train, residual=residual, relu=relu)

    def fold_batch_norm(self) -> None:
        """Fold the BatchNorm into the convolution, see `bn_folding.fold_batch_norm`."""
        assert isinstance(self.bn, BatchNorm)
        self.conv.fold(self.bn)
        self.bn = Identity()


def heatmap_conv(
    inputs: int, num_landmarks: int, activation: Activation, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> Conv:
    """Create the last layer of a heatmap model: 1x1, with initial bias `PRIOR_BIAS`, or 0 if linear."""
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


def run_module(module: Callable[..., T], x: T, *, train: bool, remat: bool) -> T:
    """Compute `module(x, train=train)`, optionally with activations recomputed in the backward pass.

    With `remat`, activations inside the module are not kept for the gradient: less memory, more work (Chen et
    al. 2016). Values, gradients and statistics are equal.
    """
    if not (remat and train):
        return module(x, train=train)

    def run(module: Callable[..., T], x: T) -> T:
        return module(x, train=train)

    return nnx.remat(run)(module, x)


class MLP(nnx.Module):
    """Linear layers on the last axis; each one except the last is followed by ReLU, then the norm.

    The order (linear, ReLU, norm) is that of the LCGCN authors' code. The leading axes are independent, as if
    vmapped, except in BatchNorm, whose statistics are taken over all of them.
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        *,
        norm: Norm,
        last_relu: bool = False,
        last_norm: bool = False,
        momentum: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.last_relu = last_relu
        sizes = (inputs, *widths)
        self.linears = nnx.List(
            nnx.Linear(m, n, kernel_init=glorot_normal, dtype=dtype, rngs=rngs)
            for m, n in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(
            _norm(norm, n, momentum=momentum, dtype=dtype, rngs=rngs)
            for n in (widths if last_norm else widths[:-1])
        )

    def __call__(self, x: Float[Array, "*b i"], *, train: bool) -> Float[Array, "*b o"]:
        return self._after_first_linear(self.linears[0](x), train=train)

    def of_class_pairs(self, *, train: bool) -> Float[Array, "k k o"]:
        """Apply the MLP to the one-hot vectors of all pairs of k classes; the input width is 2k.

        The first layer of a pair is the sum of two rows of its kernel, so that the cost grows with the square
        of k. The product with the one-hot vectors would be O(k^3).
        """
        first = self.linears[0]
        rows, columns = jnp.split(first.kernel[...], 2)
        assert first.bias is not None
        rows = rows + first.bias[...][None]
        k, n = rows.shape
        pairs = jnp.repeat(rows, k, axis=0) + jnp.tile(columns, (k, 1))
        return self._after_first_linear(pairs.reshape(k, k, n), train=train)

    def _after_first_linear(self, x: Float[Array, "*b n"], *, train: bool) -> Float[Array, "*b o"]:
        for i, (linear, norm) in enumerate(itertools.zip_longest(self.linears, self.norms)):
            if i > 0:
                x = linear(x)
            if self.last_relu or i < len(self.linears) - 1:
                x = jax.nn.relu(x)
            if isinstance(norm, BatchNorm):
                x = norm(x, train=train)
            elif norm is not None:
                x = norm(x)
        return x

    def fold_batch_norm(self) -> None:
        """Fold each BatchNorm into the next linear layer; a norm after the last layer stays."""
        for i, (norm, linear) in enumerate(zip(self.norms, self.linears[1:], strict=False)):
            if isinstance(norm, BatchNorm):
                factor, offset = norm.scale_and_offset()
                assert linear.bias is not None
                kernel = to_float64(linear.kernel)
                linear.bias.set_value(to_float32(to_float64(linear.bias) + offset @ kernel))
                linear.kernel.set_value(to_float32(factor[:, None] * kernel))
                self.norms[i] = None


def _norm(
    kind: Norm, channels: int, *, momentum: float, dtype: DTypeLike, rngs: nnx.Rngs
) -> BatchNorm | nnx.LayerNorm | None:
    if kind == "batch":
        return BatchNorm(channels, momentum=momentum, dtype=dtype, rngs=rngs)
    return nnx.LayerNorm(channels, dtype=dtype, rngs=rngs) if kind == "layer" else None


def upsample_bilinear(x: Images, shape: tuple[int, ...]) -> Float[Array, "b hh hw i"]:
    """Bilinear upsampling with half-pixel centers (`align_corners=False` of PyTorch).

    Without the kernels for CPUs, two matrix products with constant interpolation matrices, which are fast on
    every backend and which ONNX exporters support.
    """
    if x.shape[1:3] == shape:
        return x
    if cpu_kernels.is_active(x):
        return cpu_kernels.upsample(x, shape)
    rows, columns = (
        jnp.asarray(_interpolation_matrix(n, m), x.dtype)
        for n, m in zip(x.shape[1:3], shape, strict=True)
    )
    return jnp.einsum("Yy,byxc,Xx->bYXc", rows, x, columns)


@functools.lru_cache
def _interpolation_matrix(n: int, m: int) -> np.ndarray:
    """Matrix `[m n]` that interpolates n samples at m positions."""
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return np.stack([np.interp(position, np.arange(n), row) for row in np.eye(n)], axis=1)
