"""Tiny config at 32 px, whose heatmap model compiles in a second."""

import flax.nnx as nnx
import jax

from lcgcn_jax.models.layers import Conv, ConvBN
from lcgcn_jax.models.registry import register_heatmap_model
from lcgcn_jax.training.config import default_config


class TwoConvs(nnx.Module):
    """Two convolutions with BatchNorm and stride 4: small, but with all kinds of weights."""

    stride = 4
    head_modules = ("out",)

    def __init__(self, num_landmarks, *, width=8, bn_momentum, dtype, rngs):
        self.feature_channels = width
        make = {"momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvBN(3, width, 3, stride=2, **make)
        self.conv2 = ConvBN(width, width, 3, stride=2, **make)
        self.out = Conv(width, num_landmarks, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images, *, train):
        x = jax.nn.relu(self.conv1(images, train=train))
        x = jax.nn.relu(self.conv2(x, train=train))
        return self.out(x), x


register_heatmap_model("two_convs", TwoConvs)


def get_config():
    config = default_config()
    config.unlock()
    config.model.heatmap = {"name": "two_convs"}
    config.lock()
    config.model.graph.embedding_widths = (8, 4)
    config.data.image_size = 32
    config.optimizer.learning_rate = {"heatmap": 1e-2, "graph": 1e-2}
    config.optimizer.schedule = "constant"
    config.train.batch_size = 8
    config.train.steps = 6
    config.train.log_every = 1
    config.train.eval_every = config.train.checkpoint_every = 3
    config.train.ema_decay = 0.9
    return config
