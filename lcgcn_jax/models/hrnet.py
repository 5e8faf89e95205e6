"""HRNet (Wang et al. 2020) for facial landmarks, all variants from one table of widths."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lcgcn_jax.models.config import HRNetArch, HRNetConfig
from lcgcn_jax.models.layers import (
    BatchNorm,
    Conv,
    ConvBN,
    Identity,
    heatmap_conv,
    run_module,
    upsample_bilinear,
)


@dataclasses.dataclass(frozen=True)
class Arch:
    """Size of an HRNet.

    Attributes:
      bottleneck_width: inner width of the bottlenecks in the first stage, whose output is 4 times as wide.
      bottlenecks: number of bottlenecks.
      widths: channels of the four branches, at strides 4, 8, 16 and 32.
      modules: number of modules in the stages with 2, 3 and 4 branches.
      blocks: number of basic blocks in each branch of a module.
    """

    bottleneck_width: int
    bottlenecks: int
    widths: tuple[int, int, int, int]
    modules: tuple[int, int, int]
    blocks: int


ARCHS: dict[HRNetArch, Arch] = {
    "w18": Arch(64, 4, (18, 36, 72, 144), (1, 4, 3), 4),
    "w32": Arch(64, 4, (32, 64, 128, 256), (1, 4, 3), 4),
    "w48": Arch(64, 4, (48, 96, 192, 384), (1, 4, 3), 4),
    "w18-small-v1": Arch(32, 1, (16, 32, 64, 128), (1, 1, 1), 2),
    "w18-small-v2": Arch(64, 2, (18, 36, 72, 144), (1, 3, 2), 2),
    "tiny": Arch(8, 1, (4, 8, 16, 32), (1, 1, 1), 1),
}
"""HRNets of the paper, the two small ones of its authors, and `tiny`, which is only for tests."""


class HRNet(nnx.Module):
    """Images `[b h w 3]` to heatmap logits `[b h/4 w/4 k]` and features `[b h/4 w/4 c]`.

    Args:
      remat: whether to recompute the activations of each multi-scale module in the backward pass.
    """

    stride = 4
    """Number of input pixels for each heatmap pixel."""

    head_modules = ("head_conv", "head_bn", "head_out")
    """Submodules of the head, which a model trained on ImageNet does not have."""

    def __init__(
        self,
        config: HRNetConfig,
        num_landmarks: int,
        *,
        bn_momentum: float = 0.99,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        size = ARCHS[config.arch]
        options: dict[str, Any] = {"momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        self.features, self.activation = config.features, config.activation
        self.remat = remat
        self.stem1 = ConvBN(3, 64, 3, stride=2, **options)
        self.stem2 = ConvBN(64, 64, 3, stride=2, **options)
        stage1_width = 4 * size.bottleneck_width
        self.stage1 = nnx.List(
            Bottleneck(64 if i == 0 else stage1_width, size.bottleneck_width, **options)
            for i in range(size.bottlenecks)
        )
        self.transitions: nnx.List[Transition] = nnx.List()
        self.stages: nnx.List[nnx.List[MultiScaleModule]] = nnx.List()
        previous = (stage1_width,)
        for branches, modules in zip((2, 3, 4), size.modules, strict=True):
            widths = size.widths[:branches]
            self.transitions.append(Transition(previous, widths, **options))
            self.stages.append(
                nnx.List(MultiScaleModule(widths, size.blocks, **options) for _ in range(modules))
            )
            previous = widths
        self.feature_channels = sum(size.widths)
        self.head_conv = Conv(
            self.feature_channels, self.feature_channels, 1, use_bias=True, dtype=dtype, rngs=rngs
        )
        self.head_bn = BatchNorm(self.feature_channels, **options)
        self.head_out = heatmap_conv(
            self.feature_channels, num_landmarks, config.activation, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b hh hw k"], Float[Array, "b hh hw c"]]:
        x = self.stem1(images, train=train, relu=True)
        x = self.stem2(x, train=train, relu=True)
        for block in self.stage1:
            x = block(x, train=train)
        branches = [x]
        for transition, stage in zip(self.transitions, self.stages, strict=True):
            branches = transition(branches, train=train)
            for module in stage:
                branches = run_module(module, branches, train=train, remat=self.remat)
        shape = branches[0].shape[1:3]
        concat = jnp.concatenate([upsample_bilinear(x, shape) for x in branches], axis=-1)
        head = jax.nn.relu(self.head_bn(self.head_conv(concat), train=train))
        return self.head_out(head), concat if self.features == "concat" else head

    def fold_batch_norm(self) -> None:
        """Fold the BatchNorm of the head, see `bn_folding.fold_batch_norm`."""
        assert isinstance(self.head_bn, BatchNorm)
        self.head_conv.fold(self.head_bn)
        self.head_bn = Identity()


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the output has 4 x width channels."""

    def __init__(self, inputs: int, width: int, **options: Any):
        self.conv1 = ConvBN(inputs, width, 1, **options)
        self.conv2 = ConvBN(width, width, 3, **options)
        self.conv3 = ConvBN(width, 4 * width, 1, **options)
        self.shortcut = ConvBN(inputs, 4 * width, 1, **options) if inputs != 4 * width else None

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = self.conv1(x, train=train, relu=True)
        y = self.conv2(y, train=train, relu=True)
        residual = x if self.shortcut is None else self.shortcut(x, train=train)
        return self.conv3(y, train=train, residual=residual, relu=True)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with an identity shortcut."""

    def __init__(self, width: int, **options: Any):
        self.conv1 = ConvBN(width, width, 3, **options)
        self.conv2 = ConvBN(width, width, 3, **options)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = self.conv1(x, train=train, relu=True)
        return self.conv2(y, train=train, residual=x, relu=True)


class Transition(nnx.Module):
    """Convolutions from the branches of one stage to those of the next, which has one branch more."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...], **options: Any):
        self.convs: nnx.List[ConvBN | None] = nnx.List()
        for i, width in enumerate(outputs):
            if i < len(inputs):
                same = inputs[i] == width
                self.convs.append(None if same else ConvBN(inputs[i], width, 3, **options))
            else:
                self.convs.append(ConvBN(inputs[-1], width, 3, stride=2, **options))

    def __call__(self, branches: list[Array], *, train: bool) -> list[Array]:
        out: list[Array] = []
        for i, conv in enumerate(self.convs):
            x = branches[min(i, len(branches) - 1)]
            out.append(x if conv is None else conv(x, train=train, relu=True))
        return out


class MultiScaleModule(nnx.Module):
    """Parallel branches of basic blocks, followed by fusion: every branch is added to every other."""

    def __init__(self, widths: tuple[int, ...], blocks: int, **options: Any):
        self.branches = nnx.List(
            nnx.List(BasicBlock(width, **options) for _ in range(blocks)) for width in widths
        )
        self.fuse = nnx.List(
            nnx.List(
                nnx.List(_fuse_path(widths, source, target, **options))
                for source in range(len(widths))
            )
            for target in range(len(widths))
        )

    def __call__(self, branches: list[Array], *, train: bool) -> list[Array]:
        outputs: list[Array] = []
        for x, blocks in zip(branches, self.branches, strict=True):
            for block in blocks:
                x = block(x, train=train)
            outputs.append(x)
        fused: list[Array] = []
        for target, paths in enumerate(self.fuse):
            shape = outputs[target].shape[1:3]
            total = outputs[target]
            for source, path in enumerate(paths):
                if source == target:
                    continue
                y = outputs[source]
                for i, conv in enumerate(path):
                    y = conv(y, train=train, relu=i < len(path) - 1)
                total = total + upsample_bilinear(y, shape)
            fused.append(jax.nn.relu(total))
        return fused


def _fuse_path(widths: tuple[int, ...], source: int, target: int, **options: Any) -> list[ConvBN]:
    """Create the convolutions between two branches: 1x1 to a finer one, strided to a coarser one."""
    if source > target:
        return [ConvBN(widths[source], widths[target], 1, **options)]
    steps = target - source
    return [
        ConvBN(
            widths[source],
            widths[target] if step == steps - 1 else widths[source],
            3,
            stride=2,
            **options,
        )
        for step in range(steps)
    ]
