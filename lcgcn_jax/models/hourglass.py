"""Stacked hourglass (Newell et al. 2016) for facial landmarks."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lcgcn_jax.models.layers import BatchNorm, Conv, ConvBN, Identity, heatmap_conv, run_module

_DEPTH = 4  # times that an hourglass halves its maps


class StackedHourglass(nnx.Module):
    """Images `[b h w 3]` to heatmap logits `[b h/4 w/4 k]` and features `[b h/4 w/4 width]`.

    Each hourglass sees the features and the heatmaps of the one before. Logits and features are those of
    the last alone: the intermediate supervision of the paper, a loss on every stack's heatmaps, is left
    out, since a heatmap model hands over one set of them.

    Args:
      num_landmarks: k.
      stacks: number of hourglasses; the paper has 8.
      width: channels throughout; the paper has 256.
      activation: what the logits are meant for, one of `heatmaps.ACTIVATIONS`.
      bn_momentum: part of the running statistics kept a step.
      dtype: what is computed in.
      rngs: for the initial weights.
    """

    stride = 4
    """Input pixels a heatmap cell."""

    head_modules = ("outs", "from_heatmaps")
    """What is not backbone: all that the number of landmarks shapes."""

    def __init__(
        self,
        num_landmarks: int,
        *,
        stacks: int = 2,
        width: int = 128,
        activation: str = "sigmoid",
        bn_momentum: float = 0.99,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if stacks < 1 or width < 2 or width % 2:
            raise ValueError(
                f"an hourglass has at least 1 stack and an even width, not {stacks} and {width}"
            )
        make = {"momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        plain = {"use_bias": True, "dtype": dtype, "rngs": rngs}
        self.activation, self.feature_channels = activation, width
        self.remat = False
        self.stem = ConvBN(3, 64, 7, stride=2, **make)
        self.stem_blocks = nnx.List(
            [
                PreActivation(64, width // 2, **make),
                PreActivation(width // 2, width // 2, **make),
                PreActivation(width // 2, width, **make),
            ]
        )
        self.hourglasses = nnx.List(Hourglass(_DEPTH, width, **make) for _ in range(stacks))
        self.blocks = nnx.List(PreActivation(width, width, **make) for _ in range(stacks))
        self.heads = nnx.List(ConvBN(width, width, 1, **make) for _ in range(stacks))
        self.outs = nnx.List(
            heatmap_conv(width, num_landmarks, activation, dtype=dtype, rngs=rngs)
            for _ in range(stacks)
        )
        self.from_features = nnx.List(Conv(width, width, 1, **plain) for _ in range(stacks - 1))
        self.from_heatmaps = nnx.List(
            Conv(num_landmarks, width, 1, **plain) for _ in range(stacks - 1)
        )

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b hh hw k"], Float[Array, "b hh hw c"]]:
        x = jax.nn.relu(self.stem(images, train=train))
        x = _halve(self.stem_blocks[0](x, train=train))
        for block in self.stem_blocks[1:]:
            x = block(x, train=train)
        for i, hourglass in enumerate(self.hourglasses):
            y = run_module(hourglass, x, train=train, remat=self.remat)
            y = self.blocks[i](y, train=train)
            features = jax.nn.relu(self.heads[i](y, train=train))
            logits = self.outs[i](features)
            if i < len(self.hourglasses) - 1:
                x = x + self.from_features[i](features) + self.from_heatmaps[i](logits)
        return logits, features


class Hourglass(nnx.Module):
    """Blocks at half the resolution, and at half of that, ..., beside a block at the full one."""

    def __init__(self, depth: int, width: int, **make):
        self.beside = PreActivation(width, width, **make)
        self.down = PreActivation(width, width, **make)
        self.inner = (
            Hourglass(depth - 1, width, **make)
            if depth > 1
            else PreActivation(width, width, **make)
        )
        self.up = PreActivation(width, width, **make)

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
        make = {"dtype": dtype, "rngs": rngs}
        self.norms = nnx.List(BatchNorm(n, momentum=momentum, **make) for n in widths[:-1])
        self.convs = nnx.List(
            Conv(widths[i], widths[i + 1], size, **make) for i, size in enumerate((1, 3, 1))
        )
        self.shortcut = (
            None if inputs == outputs else Conv(inputs, outputs, 1, use_bias=True, **make)
        )

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(jax.nn.relu(norm(y, train=train)))
        return y + (x if self.shortcut is None else self.shortcut(x))

    def fold_batch_norm(self) -> None:
        """See `folding.fold_batch_norm`; no convolution leads to the first norm, and it stays."""
        for i, conv in enumerate(self.convs[:-1]):
            conv.fold(self.norms[i + 1])
            self.norms[i + 1] = Identity()


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b hh hw c"]:
    """Maximum over 2x2 cells; of an odd row or column, over what is there."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-jnp.inf)
    # Not `lax.reduce_window`: its window of four dimensions is more than onnxruntime pools over.
    return x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).max(axis=(2, 4))


def _double(x: Float[Array, "b h w c"], shape: tuple[int, int]) -> Float[Array, "b hh hw c"]:
    """Every cell four times, cut to the shape."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : shape[0], : shape[1]]
