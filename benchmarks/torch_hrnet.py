"""HRNet for facial landmarks in PyTorch, with the state dict keys of HRNet-Facial-Landmark-Detection.

The counterpart of `lcgcn_jax.models.hrnet` for benchmarks; `interop.torch_weights.export_weights` exports its
state dict.
"""

import torch
from torch import nn
from torch.nn import functional as F

from lcgcn_jax.models.hrnet import Arch


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_bn_relu(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU."""
    return conv_bn(inputs, outputs, size, stride).append(nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; 4 x width output channels."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.conv3, self.bn3 = conv_bn(width, outputs, 1)
        self.downsample = None if inputs == outputs else conv_bn(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an identity shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(width, width, 3)
        self.conv2, self.bn2 = conv_bn(width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(x + self.bn2(self.conv2(y)), inplace=True)


class MultiScaleModule(nn.Module):
    """Parallel branches of basic blocks, then fusion of every branch into every other."""

    def __init__(self, widths: tuple[int, ...], blocks: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs = [branch(x) for branch, x in zip(self.branches, branches, strict=True)]
        fused = []
        for target, paths in enumerate(self.fuse_layers):
            total = outputs[target]
            for source, path in enumerate(paths):
                if source != target:
                    total = total + upsample(path(outputs[source]), total)
            fused.append(F.relu(total, inplace=True))
        return fused


def _fuse_path(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(widths[source], widths[target], 1)
    chain = [conv_bn_relu(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*chain, conv_bn(widths[source], widths[target], 3, 2))


def upsample(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Upsample bilinearly to the size of another feature map."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class TorchHRNet(nn.Module):
    """HRNet from images `[b 3 h w]` to heatmap logits `[b k h/4 w/4]`."""

    def __init__(self, arch: Arch, num_landmarks: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 64, 3, 2)
        self.conv2, self.bn2 = conv_bn(64, 64, 3, 2)
        wide = 4 * arch.bottleneck_width
        self.layer1 = nn.Sequential(
            Bottleneck(64, arch.bottleneck_width),
            *(Bottleneck(wide, arch.bottleneck_width) for _ in range(arch.bottlenecks - 1)),
        )
        before = (wide,)
        for number, modules in enumerate(arch.modules, start=1):
            widths = arch.widths[: number + 1]
            self.add_module(f"transition{number}", _transition(before, widths))
            stage = nn.ModuleList(MultiScaleModule(widths, arch.blocks) for _ in range(modules))
            self.add_module(f"stage{number + 1}", stage)
            before = widths
        channels = sum(arch.widths)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_landmarks, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        branches = [self.layer1(x)]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            last = len(branches) - 1
            branches = [path(branches[min(i, last)]) for i, path in enumerate(transition)]
            for module in stage:
                branches = module(branches)
        return self.head(torch.cat([upsample(x, branches[0]) for x in branches], dim=1))


def _transition(before: tuple[int, ...], after: tuple[int, ...]) -> nn.ModuleList:
    paths = nn.ModuleList()
    for i, width in enumerate(after):
        if i >= len(before):
            paths.append(nn.Sequential(conv_bn_relu(before[-1], width, 3, 2)))
        elif before[i] == width:
            paths.append(nn.Identity())
        else:
            paths.append(conv_bn_relu(before[i], width, 3))
    return paths
