import jax
import pytest
from flax import nnx

from lcgcn_jax.models import registry
from lcgcn_jax.models.layers import ConvBN


class Toy(nnx.Module):
    """The least that a heatmap model has to be: two convolutions."""

    stride = 4
    feature_channels = 6

    def __init__(self, num_landmarks, *, width=8, bn_momentum, dtype, rngs):
        make = {"stride": 2, "momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
        self.first = ConvBN(3, width, 3, **make)
        self.second = ConvBN(width, num_landmarks + self.feature_channels, 3, **make)

    def __call__(self, images, *, train):
        x = self.second(jax.nn.relu(self.first(images, train=train)), train=train)
        return x[..., self.feature_channels :], x[..., : self.feature_channels]


@pytest.fixture
def toy(monkeypatch):
    """A heatmap model from outside the package, registered as `toy`."""
    monkeypatch.setattr(registry, "_HEATMAP_MODELS", dict(registry._HEATMAP_MODELS))
    registry.register_heatmap_model("toy", Toy)
    return Toy
