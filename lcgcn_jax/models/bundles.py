"""Bundles: folders that hold a trained model.

model.safetensors   parameters and batch statistics by flat name
config.json         format version, model configuration, crop size, landmark scheme and, if it was fitted, the
                    uncertainty model
README.md           model card
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from lcgcn_jax import compat
from lcgcn_jax.atomic_io import write_all
from lcgcn_jax.bucket_copy import local_copy
from lcgcn_jax.errors import InputError, count_of, one_line, require_absent
from lcgcn_jax.landmarks import LandmarkScheme
from lcgcn_jax.models.hub import download_snapshot, hub_reference
from lcgcn_jax.storage import as_path
from lcgcn_jax.uncertainty import UncertaintyModel

# A model whose program is in the cache is loaded without JAX and Flax, whose imports take most of a second.
if TYPE_CHECKING:
    import lcgcn_jax.models.functional

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
BEST = "best"
"""Folder in a training workdir: bundle of the step with the lowest validation error."""

SHIPPED = Path(__file__).parent / "shipped"
"""Folder of the bundles in the package."""

DEFAULT_MODEL = "w300-lcgcn-small"
"""Shipped model that `lcgcn predict` uses by default."""

PACKAGE_HEATMAP_MODELS = ("hrnet", "hourglass")
"""Heatmap models of this package, the keys of `registry.HEATMAP_CONFIGS`."""

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Content of a bundle.

    Attributes:
      model: model configuration for `registry.create_model`.
      scheme: landmarks of the model.
      image_size: side of the crops in training, in pixels.
      weights: parameters and batch statistics by flat name.
      calibration: uncertainty model, which predicts errors; None if it was not fitted.
      flip_bias: horizontal bias of the training annotations relative to their mirror image, as a fraction of
        the side of the crop (`data.augment.AugmentConfig`).
    """

    model: Mapping[str, Any]
    scheme: LandmarkScheme
    image_size: int
    weights: Mapping[str, Any]
    calibration: UncertaintyModel | None = None
    flip_bias: float = 0.0

    def create(
        self, dtype: DTypeLike = np.float32
    ) -> "lcgcn_jax.models.functional.FunctionalModel":
        """Create the model with the weights of the bundle."""
        import jax

        abstract = abstract_weights(self.model, self.scheme.num_landmarks, dtype)

        def select(names):
            return {name: jax.device_put(self.weights[name]) for name in names}

        return abstract._replace(
            params=select(abstract.params), batch_stats=select(abstract.batch_stats)
        )

    def without_graph(self) -> "Bundle":
        """Bundle of only the heatmap model."""
        prefixes = ("graph.", "visibility.")
        weights = {name: w for name, w in self.weights.items() if not name.startswith(prefixes)}
        model = {name: value for name, value in self.model.items() if name != "visibility"}
        return dataclasses.replace(self, model={**model, "graph": None}, weights=weights)

    @property
    def has_visibility(self) -> bool:
        """Whether the model has a visibility head."""
        from lcgcn_jax.models.registry import visibility_config

        return visibility_config(self.model.get("visibility")).head != "none"


def abstract_weights(
    model: Mapping[str, Any],
    num_landmarks: int,
    dtype: DTypeLike = np.float32,
    *,
    remat: bool = False,
) -> "lcgcn_jax.models.functional.FunctionalModel":
    """Structure of a model, with shapes and dtypes instead of weights.

    Tracing a model takes a second or more, so the last structures are cached: loading a bundle, creating its
    model and copying it traces once.

    Args:
      dtype: dtype of the heatmap model's computation.
      remat: see `registry.create_model`.

    Raises:
      InputError: the configuration is not valid.
    """
    from lcgcn_jax.models.registry import heatmap_model_factory

    # JSON text is hashable, unlike mappings. The factory is part of the key, because another one can be
    # registered under the same name.
    factory = heatmap_model_factory(dict(model))
    text = json.dumps(dict(model))
    abstract = _structure(text, factory, num_landmarks, np.dtype(dtype), remat)
    # Copies, which callers can change.
    return abstract._replace(params=dict(abstract.params), batch_stats=dict(abstract.batch_stats))


@functools.lru_cache(maxsize=8)
def _structure(
    model: str, _factory: Any, num_landmarks: int, dtype: np.dtype, remat: bool
) -> "lcgcn_jax.models.functional.FunctionalModel":
    from flax import nnx

    from lcgcn_jax.models.functional import FunctionalModel
    from lcgcn_jax.models.layers import make_rngs
    from lcgcn_jax.models.registry import create_model
    from lcgcn_jax.models.weights import split_weights

    def build():
        return create_model(
            json.loads(model), num_landmarks, dtype=dtype, remat=remat, rngs=make_rngs(0)
        )

    return FunctionalModel(*split_weights(nnx.eval_shape(build)))


def require_bundle_folder(path: Path, *, overwrite: bool) -> None:
    """Check that a bundle can be written to a folder without replacing other files.

    Raises:
      InputError: the folder exists and must not be overwritten, or has files and no bundle.
    """
    require_absent(path, overwrite=overwrite)
    if path.is_dir() and any(path.iterdir()) and not (path / CONFIG).is_file():
        raise InputError(f"{path}: not empty and not a model; choose another folder")


def save_bundle(path: Path, bundle: Bundle, card: str, dtype: DTypeLike = np.float32) -> None:
    """Write a bundle, all of its files or none. Those of an existing bundle are replaced.

    Args:
      card: text of the model card.
      dtype: dtype of the stored kernels and matrices: `float32`, or `float16` for half the size. Vectors
        stay float32, since they are small and may exceed the range of float16. Loaded weights
        are always float32.

    Raises:
      OSError: a file cannot be written.
    """
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
    # safetensors writes memory in its current order, so a transposed view would be read as another matrix.
    weights = {
        name: np.asarray(value, dtype if np.ndim(value) > 1 else np.float32, order="C")
        for name, value in sorted(bundle.weights.items())
    }
    files = {CARD: card.encode(), CONFIG: _encode_config(config), WEIGHTS: save(weights)}
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        write_all({path / name: content for name, content in files.items()})
    except BaseException:  # also a signal
        if is_new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def save_uncertainty(path: Path, calibration: UncertaintyModel) -> None:
    """Write the uncertainty model into an existing bundle.

    Raises:
      OSError: the file cannot be written.
    """
    config = compat.upgrade_config(json.loads((path / CONFIG).read_text(encoding="utf-8")))
    write_all({path / CONFIG: _encode_config(config | {"uncertainty": calibration.to_dict()})})


def _encode_config(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=1) + "\n").encode()


def shipped_bundles() -> list[str]:
    """Names of the bundles in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def find_bundle(model: str | Path) -> Path:
    """Find the folder of a bundle from a path or a name.

    Args:
      model: folder of a bundle, training workdir, name of a shipped bundle, or `hf://owner/repo[@revision]`,
        which is downloaded to the cache of huggingface_hub. A folder in a bucket, `gs://BUCKET/PATH`, is
        copied to the cache folder.

    Raises:
      InputError: there is no such bundle.
    """
    if (reference := hub_reference(model)) is not None:
        snapshot = download_snapshot(reference, (WEIGHTS, CONFIG, CARD))
        if missing := [name for name in (CONFIG, WEIGHTS) if not (snapshot / name).is_file()]:
            raise InputError(
                f"{reference}: the repository has no {' and no '.join(missing)}, so it is not a model of "
                "lcgcn_jax"
            )
        return snapshot
    path = as_path(model)
    try:
        for candidate in (path, path / BEST):
            if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
                return local_copy(candidate)
        has_checkpoints = (path / "checkpoints").is_dir()
    except OSError as error:  # a folder without permission, or a name that is too long
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if has_checkpoints:
        raise InputError(
            f"{path}: this run has not been validated yet, so there is no best model; continue training, or "
            "set a smaller config.train.eval_every"
        )
    if path.exists():
        raise InputError(
            f"{path}: neither a bundle ({WEIGHTS}, {CONFIG}) nor a training workdir; give one of them, or "
            f"a shipped model: {', '.join(shipped_bundles())}"
        )
    if str(model) in (names := shipped_bundles()):
        return SHIPPED / model
    raise InputError(
        f"{path}: no such bundle or training workdir; the shipped models are {', '.join(names)}"
    )


def load_bundle(model: str | Path) -> Bundle:
    """Read a bundle, and check its weights against its configuration.

    Args:
      model: see `find_bundle`.

    Returns:
      The bundle, with float32 weights.

    Raises:
      InputError: the bundle cannot be read, or weights are missing, unknown, not finite or of the wrong
        shape.
    """
    return read_bundle(model)[0]


def read_bundle(
    model: str | Path, is_known: Callable[[str], bool] = lambda digest: False
) -> tuple[Bundle, str]:
    """Read a bundle and its digest; the check of the weights, which needs Flax, can be left out.

    Args:
      model: see `find_bundle`.
      is_known: whether the files with a digest have already passed the check.

    Returns:
      The bundle as from `load_bundle`, and the SHA-256 digest of its configuration and weights, which may be
      empty.

    Raises:
      InputError: as in `load_bundle`.
    """
    path = find_bundle(model)
    source = hub_reference(model) or path  # instead of a folder in the cache of the Hub
    try:
        content = (path / CONFIG).read_bytes()
        config = compat.upgrade_config(json.loads(content.decode("utf-8")))
        if config["format"] != _FORMAT:
            raise ValueError(f"format {config['format']}, but this version reads format {_FORMAT}")
        scheme = LandmarkScheme.from_dict(config["scheme"])
        calibration = config.get("uncertainty")
        if calibration is not None:
            calibration = UncertaintyModel.from_dict(calibration)
            if len(calibration.offsets) != scheme.num_landmarks:
                raise ValueError(
                    f"uncertainty has {count_of(len(calibration.offsets), 'landmark')}, but the scheme has "
                    f"{scheme.num_landmarks}"
                )
        size, flip_bias = int(config["image_size"]), float(config.get("flip_bias", 0.0))
        bundle = Bundle(config["model"], scheme, size, {}, calibration, flip_bias)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _config_error(source, error) from error
    try:
        stored = (path / WEIGHTS).read_bytes()
        try:
            weights, digest = load(stored), _digest(content, stored)
        except KeyError:  # bfloat16, which safetensors reads from files only, so they may differ
            import ml_dtypes  # noqa: F401

            weights, digest = load_file(path / WEIGHTS), ""
    except (OSError, SafetensorError, struct.error) as error:
        raise InputError(f"{source}/{WEIGHTS}: cannot be read: {error}") from error
    weights = compat.upgrade_weights(weights)
    if not is_known(digest):
        try:
            _, params, batch_stats = abstract_weights(bundle.model, scheme.num_landmarks)
        except (ValueError, KeyError, TypeError) as error:
            raise _config_error(source, error) from error
        check_weights(f"{source}/{WEIGHTS}", weights, params | batch_stats)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return dataclasses.replace(bundle, weights=weights), digest


def _digest(*contents: bytes) -> str:
    parts = [hashlib.sha256(content).digest() for content in contents]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _config_error(source: str | Path, error: Exception) -> InputError:
    return InputError(f"{source}/{CONFIG}: not the configuration of a bundle: {one_line(error)}")


def check_weights(
    path: str | Path, weights: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Check names, shapes, dtypes and values of weights. Every floating-point dtype is valid.

    Args:
      path: file of the weights, for the message.
      expected: objects with a `shape` by name.

    Raises:
      InputError: with the number of mismatches and the first of them.
    """
    import jax.numpy as jnp

    mismatches = [f"{name} is missing" for name in sorted(expected.keys() - weights.keys())]
    mismatches += [
        f"{name} does not exist in the model" for name in sorted(weights.keys() - expected.keys())
    ]
    mismatches += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & weights.keys())
        if tuple(weights[name].shape) != tuple(expected[name].shape)
    ]
    mismatches += [
        f"{name} has type {value.dtype}, which is not a floating-point type"
        for name, value in sorted(weights.items())
        if not jnp.issubdtype(value.dtype, jnp.floating)
    ]
    mismatches += [
        f"{name} has values that are NaN or infinite"
        for name, value in sorted(weights.items())
        if jnp.issubdtype(value.dtype, jnp.floating) and not np.isfinite(np.float32(value)).all()
    ]
    if mismatches:
        raise InputError(
            f"{path}: {count_of(len(mismatches), 'weight')} cannot be used with the configuration; "
            f"the first: {mismatches[0]}"
        )
