"""Stacked hourglass (Newell et al. 2016) for facial landmarks."""

# Types of JAX functions are partially unknown.
# pyright: reportUnknownMemberType=false
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lcgcn_jax.models.config import HourglassConfig
from lcgcn_jax.models.layers import BatchNorm, Conv, ConvBN, Identity, heatmap_conv, run_module

_DEPTH = 4  # number of times that an hourglass halves the resolution


class StackedHourglass(nnx.Module):
    """Images `[b h w 3]` to heatmap logits `[b h/4 w/4 k]` and features `[b h/4 w/4 width]`.

    Each hourglass reads the features and the heatmaps of the previous one. Only the logits and features of
    the last one are returned, so the intermediate supervision of the paper, a loss on the heatmaps of
    every stack, is not available.

    Args:
      remat: whether to recompute the activations of each hourglass in the backward pass.
    """

    stride = 4
    """Number of input pixels for each heatmap pixel."""

    head_modules = ("outs", "from_heatmaps")
    """Submodules of the head: those whose shapes depend on the number of landmarks."""

    def __init__(
        self,
        config: HourglassConfig,
        num_landmarks: int,
        *,
        bn_momentum: float = 0.99,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        stacks, width = config.stacks, config.width
        options: dict[str, Any] = {"momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        conv_options: dict[str, Any] = {"use_bias": True, "dtype": dtype, "rngs": rngs}
        self.activation, self.feature_channels = config.activation, width
        self.remat = remat
        self.stem = ConvBN(3, 64, 7, stride=2, **options)
        self.stem_blocks = nnx.List(
            [
                PreActivation(64, width // 2, **options),
                PreActivation(width // 2, width // 2, **options),
                PreActivation(width // 2, width, **options),
            ]
        )
        self.hourglasses = nnx.List(Hourglass(_DEPTH, width, **options) for _ in range(stacks))
        self.blocks = nnx.List(PreActivation(width, width, **options) for _ in range(stacks))
        self.heads = nnx.List(ConvBN(width, width, 1, **options) for _ in range(stacks))
        self.outs = nnx.List(
            heatmap_conv(width, num_landmarks, config.activation, dtype=dtype, rngs=rngs)
            for _ in range(stacks)
        )
        self.from_features = nnx.List(
            Conv(width, width, 1, **conv_options) for _ in range(stacks - 1)
        )
        self.from_heatmaps = nnx.List(
            Conv(num_landmarks, width, 1, **conv_options) for _ in range(stacks - 1)
        )

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b hh hw k"], Float[Array, "b hh hw c"]]:
        x = self.stem(images, train=train, relu=True)
        x = _halve(self.stem_blocks[0](x, train=train))
        for block in self.stem_blocks[1:]:
            x = block(x, train=train)
        logits = features = x
        for i, hourglass in enumerate(self.hourglasses):
            y = run_module(hourglass, x, train=train, remat=self.remat)
            y = self.blocks[i](y, train=train)
            features = self.heads[i](y, train=train, relu=True)
            logits = self.outs[i](features)
            if i < len(self.hourglasses) - 1:
                x = x + self.from_features[i](features) + self.from_heatmaps[i](logits)
        return logits, features


class Hourglass(nnx.Module):
    """Blocks at half the resolution, recursively, in parallel to a block at full resolution."""

    def __init__(self, depth: int, width: int, **options: Any):
        self.beside = PreActivation(width, width, **options)
        self.down = PreActivation(width, width, **options)
        self.inner = (
            Hourglass(depth - 1, width, **options)
            if depth > 1
            else PreActivation(width, width, **options)
        )
        self.up = PreActivation(width, width, **options)

    def __call__(self, x: Float[Array, "b hh hw c"], *, train: bool) -> Float[Array, "b hh hw c"]:
        y = self.down(_halve(x), train=train)
        y = self.up(self.inner(y, train=train), train=train)
        return self.beside(x, train=train) + _double(y, x.shape[1:3])


class PreActivation(nnx.Module):
    """BatchNorm, ReLU and convolution three times (1x1, 3x3, 1x1), with a shortcut (He et al. 2016)."""

    def __init__(
        self, inputs: int, outputs: int, *, momentum: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        widths = (inputs, outputs // 2, outputs // 2, outputs)
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norms: nnx.List[BatchNorm | Identity] = nnx.List(
            BatchNorm(n, momentum=momentum, **options) for n in widths[:-1]
        )
        self.convs = nnx.List(
            Conv(widths[i], widths[i + 1], size, **options) for i, size in enumerate((1, 3, 1))
        )
        self.shortcut = (
            None if inputs == outputs else Conv(inputs, outputs, 1, use_bias=True, **options)
        )

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(jax.nn.relu(norm(y, train=train)))
        return y + (x if self.shortcut is None else self.shortcut(x))

    def fold_batch_norm(self) -> None:
        """Fold all norms except the first, which no convolution precedes."""
        for i, conv in enumerate(self.convs[:-1]):
            norm = self.norms[i + 1]
            assert isinstance(norm, BatchNorm)
            conv.fold(norm)
            self.norms[i + 1] = Identity()


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b hh hw c"]:
    """Max pooling over 2x2 pixels, with padding for odd sizes."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-jnp.inf)
    # Not `lax.reduce_window`: onnxruntime does not pool over windows with four dimensions.
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).max(axis=(2, 4))


def _double(x: Float[Array, "b h w c"], shape: tuple[int, ...]) -> Float[Array, "b hh hw c"]:
    """Nearest-neighbor upsampling by 2, cropped to the shape."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : shape[0], : shape[1]]
