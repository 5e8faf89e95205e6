"""Bundles: a folder with everything that prediction needs of a model.

model.safetensors   parameters and batch statistics under their flat names
config.json         format version, model configuration, crop side, landmark scheme; where there is one, the
                    calibration of the predicted error
README.md           model card
"""

import dataclasses
import functools
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import write_whole
from lcgcn_jax.errors import InputError, one_line
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.layers import make_rngs
from lcgcn_jax.models.lcgcn import LCGCN
from lcgcn_jax.models.registry import create_model, heatmap_model_factory, visibility_config
from lcgcn_jax.models.weights import Weights, split_weights
from lcgcn_jax.uncertainty import UncertaintyModel

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
BEST = "best"
"""Folder of a training workdir that holds the bundle of its best validation so far."""

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the bundles that come with the package."""

DEFAULT_MODEL = "w300-lcgcn-small"
"""Shipped model that `lcgcn predict` uses without `--model`."""

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model as a bundle holds it.

    Attributes:
      model: the model's configuration, as `registry.create_model` takes it.
      scheme: what its landmarks mean.
      image_size: side of the crops that it was trained on, in pixels.
      weights: parameters and batch statistics under their flat names.
      calibration: from peaks and spreads to predicted errors; None where it was not fitted.
      flip_bias: how far to the right of where a mirror would have them all points lie, as those lie
        that it was trained on, as a part of the crop's side (`data.augment.AugmentConfig`).
    """

    model: Mapping[str, Any]
    scheme: LandmarkScheme
    image_size: int
    weights: Mapping[str, np.ndarray | jax.Array]
    calibration: UncertaintyModel | None = None
    flip_bias: float = 0.0

    def create(self, dtype: DTypeLike = jnp.float32) -> tuple[nnx.GraphDef, Weights, Weights]:
        """The model's structure, parameters and batch statistics."""
        graphdef, params, batch_stats = abstract_weights(
            self.model, self.scheme.num_landmarks, dtype
        )

        def take(names):
            return {name: jax.device_put(self.weights[name]) for name in names}

        return graphdef, take(params), take(batch_stats)

    def without_graph(self) -> "Bundle":
        """The heatmap model alone."""
        others = ("graph.", "visibility.")
        weights = {name: w for name, w in self.weights.items() if not name.startswith(others)}
        model = {name: value for name, value in self.model.items() if name != "visibility"}
        return dataclasses.replace(self, model={**model, "graph": None}, weights=weights)

    @property
    def has_visibility(self) -> bool:
        """Whether the model predicts the visibility of its landmarks."""
        return visibility_config(self.model.get("visibility")).head != "none"


def abstract_weights(
    model: Mapping[str, Any], num_landmarks: int, dtype: DTypeLike = jnp.float32
) -> tuple[nnx.GraphDef, dict, dict]:
    """Structure of a model, and shapes and types of its weights, without making any.

    Tracing a model takes a second or more, so the last structures are kept: reading a bundle, creating its
    model and copying it traces once.
    """
    # As text: it is what a bundle's file holds, and mappings have no hash. A factory may be registered
    # under the name of an earlier one.
    factory = heatmap_model_factory(dict(model))
    structure = _structure(json.dumps(dict(model)), factory, num_landmarks, jnp.dtype(dtype))
    graphdef, params, batch_stats = structure
    return graphdef, dict(params), dict(batch_stats)


@functools.lru_cache(maxsize=8)
def _structure(
    model: str, _factory: Any, num_landmarks: int, dtype: jnp.dtype
) -> tuple[nnx.GraphDef, dict, dict]:
    def build() -> LCGCN:
        return create_model(json.loads(model), num_landmarks, dtype=dtype, rngs=make_rngs(0))

    return split_weights(nnx.eval_shape(build))


def save_bundle(path: Path, bundle: Bundle, card: str, dtype: DTypeLike = np.float32) -> None:
    """Writes a bundle; over an older one, file by file, each of them replaced whole.

    Args:
      path: its folder.
      bundle: the model.
      card: text of the model card.
      dtype: what kernels and matrices are stored in, `float32` or, at half the size, `float16`. Biases
        and statistics are few and may leave float16's range: they stay float32. A bundle is computed
        with in float32, however it is stored.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "format": _FORMAT,
        "model": dict(bundle.model),
        "image_size": bundle.image_size,
        "scheme": bundle.scheme.to_dict(),
    }
    if bundle.flip_bias:
        config["flip_bias"] = bundle.flip_bias
    if bundle.calibration is not None:
        config["uncertainty"] = bundle.calibration.to_dict()
    write_whole(path / CARD, lambda tmp: tmp.write_text(card, encoding="utf-8"))
    _write_config(path, config)
    # safetensors writes memory as it lies there: a transposed view would come back as another matrix.
    weights = {
        name: np.asarray(value, dtype if np.ndim(value) > 1 else np.float32, order="C")
        for name, value in sorted(bundle.weights.items())
    }
    # Not by `save_file`, which has a temporary file of its own, and a kill would leave it.
    write_whole(path / WEIGHTS, lambda tmp: tmp.write_bytes(save(weights)))


def save_uncertainty(path: Path, calibration: UncertaintyModel) -> None:
    """Puts a calibration into the bundle at a folder; the rest of it stays as it is.

    Raises:
      OSError: it cannot be written.
    """
    config = compat.upgrade_config(json.loads((path / CONFIG).read_text(encoding="utf-8")))
    _write_config(path, config | {"uncertainty": calibration.to_dict()})


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=1) + "\n"
    write_whole(path / CONFIG, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def shipped_bundles() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def find_bundle(model: str | Path) -> Path:
    """The bundle folder that a user means: a bundle, a training workdir, or one that is shipped, by name.

    Raises:
      InputError: it is neither.
    """
    path = Path(model)
    try:
        for candidate in (path, path / BEST):
            if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
                return candidate
        has_checkpoints = (path / "checkpoints").is_dir()
    except OSError as error:  # a folder that may not be looked into, or a name that is too long
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if has_checkpoints:
        raise InputError(
            f"{path}: this run has not been validated yet, so there is no best model; train on, or "
            "with a smaller config.train.eval_every"
        )
    if path.exists():
        raise InputError(f"{path}: neither a bundle ({WEIGHTS}, {CONFIG}) nor a training workdir")
    if str(model) in (names := shipped_bundles()):
        return SHIPPED / model
    raise InputError(
        f"{path}: no such bundle or training workdir, and none of the shipped ones: {', '.join(names)}"
    )


def load_bundle(model: str | Path) -> Bundle:
    """Reads a bundle, and checks that its weights are those of its configuration.

    Returns:
      Its weights are float32, in whatever floating-point type they are stored.

    Raises:
      InputError: it cannot be read, or weights are missing, left over, not finite or of the wrong shape.
    """
    path = find_bundle(model)
    try:
        config = compat.upgrade_config(json.loads((path / CONFIG).read_text(encoding="utf-8")))
        if config["format"] != _FORMAT:
            raise ValueError(f"format {config['format']}, and this version reads {_FORMAT}")
        scheme = LandmarkScheme.from_dict(config["scheme"])
        calibration = config.get("uncertainty")
        if calibration is not None:
            calibration = UncertaintyModel.from_dict(calibration)
            if len(calibration.offsets) != scheme.num_landmarks:
                raise ValueError(
                    f"its calibration is of {len(calibration.offsets)} landmarks, not "
                    f"{scheme.num_landmarks}"
                )
        size, flip_bias = int(config["image_size"]), float(config.get("flip_bias", 0.0))
        bundle = Bundle(config["model"], scheme, size, {}, calibration, flip_bias)
        _, params, batch_stats = abstract_weights(bundle.model, scheme.num_landmarks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path / CONFIG}: not a bundle's configuration: {one_line(error)}"
        ) from error
    try:
        weights = compat.upgrade_weights(load_file(path / WEIGHTS))
    except (OSError, SafetensorError, struct.error) as error:
        raise InputError(f"{path / WEIGHTS}: cannot be read: {error}") from error
    check_weights(path / WEIGHTS, weights, params | batch_stats)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return dataclasses.replace(bundle, weights=weights)


def check_weights(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Holds weights against what a model wants: none missing, none left over, shapes right, all finite.

    They may be of any floating-point type.

    Raises:
      InputError: with how many are wrong and the first of them.
    """
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    wrong += [f"{name} is not the model's" for name in sorted(found.keys() - wanted.keys())]
    wrong += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if tuple(found[name].shape) != tuple(wanted[name].shape)
    ]
    wrong += [
        f"{name} is of type {value.dtype}, which is not a floating-point one"
        for name, value in sorted(found.items())
        if not jnp.issubdtype(value.dtype, jnp.floating)
    ]
    wrong += [
        f"{name} has values that are NaN or infinite"
        for name, value in sorted(found.items())
        if jnp.issubdtype(value.dtype, jnp.floating) and not np.isfinite(np.float32(value)).all()
    ]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} weights do not fit the configuration; the first: {wrong[0]}"
        )
