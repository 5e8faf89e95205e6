"""Strict JAX, eight simulated devices, and where the real data is."""

import dataclasses
import functools
import math
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

# Before anything imports JAX.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest
import yaml

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_CACHE = Path(__file__).parents[1] / ".cache" / "jit"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real data, beside the repository; it is for research and not part of it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared: the real faces are not here")
    return folder


@pytest.fixture(scope="session")
def detector_model(shared) -> Path:
    """YuNet's file."""
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is fetched in tests."""

    def refuse(url, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture(scope="session")
def synthetic98(tmp_path_factory) -> Path:
    """A prepared dataset of a few synthetic faces with WFLW's points."""
    from lcgcn_jax.commands.prepare import prepare_synthetic

    out = tmp_path_factory.mktemp("data") / "wflw98"
    prepare_synthetic("wflw98", out, num_train=40, num_test=24, seed=0)
    return out


@pytest.fixture(scope="session")
def synthetic68(tmp_path_factory) -> Path:
    """A prepared dataset of a few synthetic faces with 300W's points."""
    from lcgcn_jax.commands.prepare import prepare_synthetic

    out = tmp_path_factory.mktemp("data") / "ibug68"
    prepare_synthetic("ibug68", out, num_train=40, num_test=16, seed=0)
    return out


@pytest.fixture(scope="session")
def own_points_page() -> list[tuple[str, str]]:
    """The blocks of code of the page on own points: what stands behind the three ticks, and the code."""
    page = Path(__file__).parents[1] / "docs" / "own_points.md"
    return re.findall(r"^```(\w.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)


@pytest.fixture(scope="session")
def own29(tmp_path_factory, synthetic98, own_points_page) -> Path:
    """A prepared dataset of the page's 29 points: each face lacks some, and `left_pupil` is never there."""
    from lcgcn_jax.data import builders, wflw
    from lcgcn_jax.data.records import AnnotationList
    from lcgcn_jax.landmarks import LandmarkScheme

    blocks = dict(own_points_page)
    scheme = LandmarkScheme.from_dict(yaml.safe_load(blocks["yaml face29.yaml"]))
    part = [
        int(n)
        for line in re.findall(r"PART \+?= \[(.*)\]", blocks["python"])
        for n in line.split(",")
    ]
    rng = np.random.default_rng(0)
    faces = []
    for face in wflw.read(synthetic98 / "official").faces:
        visible = rng.random(29) < 0.85
        visible[scheme.find("left_pupil")] = False
        points = np.where(visible[:, None], face.landmarks[part], np.nan)
        faces.append(dataclasses.replace(face, landmarks=points, visible=visible, attributes=()))
    out = tmp_path_factory.mktemp("data") / "own29"
    builders.prepare(AnnotationList("own", scheme, (), faces, [], []), out)
    return out


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, synthetic98) -> Path:
    """A workdir that `lcgcn train` made: two steps of the demo's model."""
    from lcgcn_jax.commands.main import main

    workdir = tmp_path_factory.mktemp("runs") / "small"
    overrides = [f"--config.data.dir={synthetic98}", "--config.train.keep=1"]
    assert main(["train", "--config", "demo:small", "--workdir", str(workdir), *overrides]) == 0
    return workdir


@pytest.fixture
def config_of(synthetic68, synthetic98):
    """Loads a config by name, and sets its data to a few synthetic faces of its scheme."""
    from lcgcn_jax.training.config import load_config

    def load(spec):
        config = load_config(spec)
        config.data.dir = str(synthetic68 if config.scheme == "ibug68" else synthetic98)
        return config

    return load


@functools.cache
def toy_model():
    """The least that a heatmap model has to be: two convolutions."""
    from flax import nnx

    from lcgcn_jax.models.layers import ConvBN

    class Toy(nnx.Module):
        stride = 4
        feature_channels = 6

        def __init__(self, num_landmarks, *, width=8, bn_momentum, dtype, rngs):
            make = {"stride": 2, "momentum": bn_momentum, "dtype": dtype, "rngs": rngs}
            self.first = ConvBN(3, width, 3, **make)
            self.second = ConvBN(width, num_landmarks + self.feature_channels, 3, **make)

        def __call__(self, images, *, train):
            x = self.second(jax.nn.relu(self.first(images, train=train)), train=train)
            return x[..., self.feature_channels :], x[..., : self.feature_channels]

    return Toy


@pytest.fixture
def toy(monkeypatch):
    """A heatmap model from outside the package, registered as `toy`."""
    from lcgcn_jax.models import registry

    monkeypatch.setattr(registry, "_HEATMAP_MODELS", dict(registry._HEATMAP_MODELS))
    registry.register_heatmap_model("toy", toy_model())
    return toy_model()


@pytest.fixture(scope="session")
def random_bundle():
    """Makes bundles of random weights that behave like trained ones: no norm is the identity."""
    from lcgcn_jax.models.bundles import Bundle, abstract_weights

    def make(model, scheme, image_size):
        _, params, batch_stats = abstract_weights(model, scheme.num_landmarks)
        rng = np.random.default_rng(0)

        def draw(name, shape):
            values = rng.normal(size=shape)
            if name.endswith((".var", ".scale")):
                return np.exp(values / 5)
            if name.startswith(("graph.transform", "graph.displacement")):
                return values / 100  # a cascade moves the mean shape a little
            return values / math.sqrt(math.prod(shape[:-1]) if len(shape) > 1 else 100)

        weights = {
            name: draw(name, leaf.shape).astype(np.float32)
            for name, leaf in (params | batch_stats).items()
        }
        return Bundle(model, scheme, image_size, weights)

    return make
