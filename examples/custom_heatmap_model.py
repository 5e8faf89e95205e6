"""Register a custom heatmap model, train it with the graph of the paper, and evaluate it.

lcgcn prepare synthetic --out data/synthetic
python examples/custom_heatmap_model.py data/synthetic runs/custom
"""

import argparse

import jax
from flax import nnx

import lcgcn_jax as lc


class SmallNet(nnx.Module):
    """Three strided convolutions: images `[b h w 3]` to heatmap logits and features at stride 4."""

    stride = 4  # input pixels per heatmap pixel

    def __init__(self, num_landmarks: int, *, width: int = 32, bn_momentum, dtype, rngs):
        self.feature_channels = width
        sizes = (3, width, width, width)
        self.convolutions = nnx.List(
            nnx.Conv(a, b, (3, 3), strides=s, dtype=dtype, rngs=rngs)
            for a, b, s in zip(sizes, sizes[1:], (2, 2, 1), strict=False)
        )
        self.norms = nnx.List(
            nnx.BatchNorm(width, momentum=bn_momentum, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.head = nnx.Conv(width, num_landmarks, (1, 1), dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train: bool):
        """Returns logits `[b hh hw k]` and features `[b hh hw c]`."""
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.relu(norm(convolution(x), use_running_average=not train))
        return self.head(x), x


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="output folder of lcgcn prepare")
    parser.add_argument("workdir", help="folder of the run")
    parser.add_argument("--steps", type=int, default=200, help="training steps (%(default)s)")
    args = parser.parse_args()

    lc.register_heatmap_model("small_net", SmallNet)
    config = lc.load_config("demo")
    with config.unlocked():
        config.model.heatmap = {"name": "small_net", "width": 32}
    config.data.dir = args.data
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = args.steps
    best = lc.train(config, args.workdir)
    print(lc.evaluate(best, args.data, split="test"))


if __name__ == "__main__":
    main()
